from __future__ import annotations

from pathlib import Path

import pytest

from loramux.bench.adapter_choice import AdapterChoice, lora_requests, read_local, read_served
from loramux.errors import ConfigInvalid


def names(*items: str) -> list[str | None]:
    return [choice.name for choice in read_served(items)]


def test_a_name_is_sent_as_it_is_and_base_is_no_adapter() -> None:
    assert names("org/sql@v1", "base") == ["org/sql@v1", None]


def test_a_range_in_braces_is_written_out_as_a_shell_does() -> None:
    assert names("a-{8..11}") == ["a-8", "a-9", "a-10", "a-11"]
    assert names("{008..010}") == ["008", "009", "010"]
    assert names("{0..1}/x{1..2}") == ["0/x1", "0/x2", "1/x1", "1/x2"]


def test_folders_are_named_after_themselves_unless_a_name_is_given(tmp_path: Path) -> None:
    for name in ("sql", "json"):
        (tmp_path / name).mkdir()

    choices = read_local([f"{tmp_path}/sql", f"mine={tmp_path}/json", "base"])

    assert choices == (
        AdapterChoice("sql", str(tmp_path / "sql")),
        AdapterChoice("mine", str(tmp_path / "json")),
        AdapterChoice(None),
    )


def test_every_adapter_with_a_folder_has_an_id_of_its_own() -> None:
    requests = lora_requests([AdapterChoice("a", "/a"), AdapterChoice(None), AdapterChoice("b", "/b")])

    assert {name: request.lora_path for name, request in requests.items()} == {"a": "/a", "b": "/b"}
    assert len({request.lora_int_id for request in requests.values()}) == 2


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["a", "a"], "'a' is there twice"),
        (["base", "base"], "'base' is there twice"),
        (["a-{3..2}"], "the range must go up"),
        (["a-{0..1000000}"], "by less than 1,000,000"),
        ([""], "a name must not be empty"),
    ],
)
def test_names_that_cannot_be_are_refused(items: list[str], message: str) -> None:
    with pytest.raises(ConfigInvalid, match=f"^--adapters.*{message}"):
        read_served(items)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="there is no such folder"):
        read_local([f"x={tmp_path}/nothing"])
