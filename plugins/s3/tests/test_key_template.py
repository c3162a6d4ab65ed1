"""From a URL and a name to a key: what fills the placeholders, and that no name leaves the prefix."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux.errors import ConfigInvalid
from loramux_s3.key_template import KeyTemplate


@pytest.mark.parametrize(
    ("path", "name", "folder"),
    [
        ("{lora_name}", "team/sql", "team/sql"),
        ("a/b/{lora_name}/", "sql", "a/b/sql"),
        ("{lora_name}/peft", "sql@v2", "sql@v2/peft"),
        ("{lora_name}/{revision}", "sql@v2", "sql/v2"),
        ("{lora_name}/{revision}", "a@b@v2", "a@b/v2"),
        ("{lora_name}/{revision}", "sql", None),
        ("{revision}/{lora_name}", "sql@", None),
        ("{lora_name}/x-{revision}", "sql@..", None),
        ("{lora_name}/{revision}", "a/..@v2", None),
        ("{lora_name}/{revision}", "a/@v2", None),
        ("{lora_name}", "a/../b", None),
        ("{lora_name}", "x" * 256, None),
        ("{lora_name}", "{revision}", None),
    ],
)
def test_a_name_gives_one_key_or_none(path: str, name: str, folder: str | None) -> None:
    assert KeyTemplate(f"s3://bucket/{path}").folder("base", name) == folder


@pytest.mark.parametrize(
    ("base", "folder"),
    [
        ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-hf/sql"),
        ("llama", "llama/sql"),
        ("/srv/models/llama", "llama/sql"),
        ("./models/llama.gguf", "llama.gguf/sql"),
        ("~/llama", "llama/sql"),
        ("{lora_name}", "{lora_name}/sql"),
        ("..", None),
        ("/", None),
        ("a//b", None),
    ],
)
def test_a_base_goes_in_as_it_is_and_a_path_by_its_last_segment(base: str, folder: str | None) -> None:
    assert KeyTemplate("s3://bucket/{base_model_name}/{lora_name}").folder(base, "sql") == folder


def test_a_base_that_is_not_in_the_url_does_not_matter() -> None:
    assert KeyTemplate("s3://bucket/{lora_name}").folder("..", "sql") == "sql"


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/adapters",
        "s3://bucket/{base_model_name}",
        "s3://bucket/{name}/{lora_name}",
        "s3://{lora_name}/adapters",
        "s3://bucket/{lora_name",
        "s3://bucket/{lora_name}}",
        "s3://bucket/a//{lora_name}",
        "s3://bucket/../{lora_name}",
        "s3:///{lora_name}",
        "https://bucket/{lora_name}",
        "bucket/{lora_name}",
    ],
)
def test_another_url_is_refused_at_start(url: str) -> None:
    with pytest.raises(ConfigInvalid, match=r"s3\.url='.*' must look like s3://BUCKET/PREFIX/\{lora_name\}"):
        KeyTemplate(url)


@given(name=st.text(alphabet="ab./@-\\%\0", max_size=12))
def test_no_name_leaves_the_prefix(name: str) -> None:
    folder = KeyTemplate("s3://bucket/adapters/{lora_name}/{revision}").folder("base", name)
    segments = (folder or "adapters").split("/")
    assert segments[0] == "adapters"
    assert not {"", ".", ".."}.intersection(segments)
