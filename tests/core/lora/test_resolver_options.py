"""Options of resolvers: three sources, one text value each."""

from __future__ import annotations

from pathlib import Path

import pytest

from loramux.errors import ConfigInvalid
from loramux.lora.resolver_options import ResolverOptions


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "server.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        (["s3.url=flag"], {"LORAMUX_S3_URL": "environment"}, "flag"),
        ([], {"LORAMUX_S3_URL": "environment"}, "environment"),
        ([], {}, "file"),
    ],
)
def test_the_flag_wins_over_the_environment_over_the_file(
    tmp_path: Path, flags: list[str], environment: dict[str, str], expected: str
) -> None:
    config_file = write(tmp_path, '[resolvers.s3]\nurl = "file"\n')
    options = ResolverOptions.gather(flags=flags, environment=environment, config_file=config_file)
    assert options.of("s3", {"s3"}) == {"url": expected}


def test_a_value_may_hold_equals_signs_and_a_resolver_name_dots() -> None:
    options = ResolverOptions.gather(flags=["my.s3.url=s3://b/?a=b"], environment={})
    assert options.of("my.s3", {"my.s3"}) == {"url": "s3://b/?a=b"}


def test_variables_of_a_longer_named_resolver_are_not_mine() -> None:
    options = ResolverOptions.gather(environment={"LORAMUX_S3_EU_URL": "eu", "LORAMUX_S3_URL": "us"})
    assert options.of("s3", {"s3", "s3-eu"}) == {"url": "us"}
    assert options.of("s3-eu", {"s3", "s3-eu"}) == {"url": "eu"}


def test_file_values_reach_the_resolver_as_text(tmp_path: Path) -> None:
    config_file = write(tmp_path, '[resolvers.hub]\nallow = ["a/*", "b"]\nretries = 2\nPath-Style = true\n')
    options = ResolverOptions.gather(environment={}, config_file=config_file)
    assert options.of("hub", {"hub"}) == {"allow": "a/*,b", "retries": "2", "path_style": "true"}


def test_a_file_may_set_nothing(tmp_path: Path) -> None:
    assert ResolverOptions.gather(environment={}, config_file=write(tmp_path, "# nothing yet\n")).file == {}


@pytest.mark.parametrize("flag", ["root=/srv", "filesystem.root", "filesystem.=x", ".root=x"])
def test_a_malformed_flag_is_shown_with_the_right_form(flag: str) -> None:
    with pytest.raises(ConfigInvalid, match=r"must look like NAME\.OPTION=VALUE"):
        ResolverOptions.gather(flags=[flag], environment={})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resolvers = 1", r"write resolver options as \[resolvers\.NAME\] tables"),
        ("[resolvers]\ns3 = 1", r"write resolver options as \[resolvers\.NAME\] tables"),
        ("[resolvers.s3]\nurl = { a = 1 }", r"resolvers\.s3\.url must be text, .*got dict"),
        ("[resolvers", r"server\.toml"),
        ("[resolver.s3]\nurl = 1\n", r"unknown resolver; only \[resolvers\.NAME\] tables are accepted"),
        ("port = 1\n[server]\n[resolvers]\n", "unknown port, server; only"),
    ],
)
def test_a_wrong_file_is_refused_by_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigInvalid, match=message):
        ResolverOptions.gather(environment={}, config_file=write(tmp_path, text))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"--config .*nowhere\.toml"):
        ResolverOptions.gather(environment={}, config_file=tmp_path / "nowhere.toml")
