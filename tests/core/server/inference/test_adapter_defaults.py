from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from loramux.adapters.served_adapter import LoadedAdapter, ServedAdapter
from loramux.errors import AdapterInvalid
from loramux.lora.request import LoRARequest
from loramux.server.inference.adapter_defaults import AdapterDefaults, DefaultsCache, read_defaults


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    config = {"do_sample": False, "top_k": 5, "max_new_tokens": 3, "eos_token_id": 7, "unknown": 1}
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    return tmp_path


def served(folder: Path, **fields: object) -> ServedAdapter:
    loaded = LoadedAdapter("digest", 1, 1)
    return ServedAdapter(LoRARequest("sql", 1, str(folder)), "base", str(folder), 0, "resolver", loaded, **fields)


def test_both_files_are_read(folder: Path) -> None:
    defaults = read_defaults(served(folder))

    assert defaults.chat_template == "{{ messages[0].content }}"
    assert defaults.sampling == {"temperature": 0.0, "top_k": 5, "max_tokens": 3, "stop_token_ids": [7]}


def test_an_adapter_without_such_files_has_no_defaults(tmp_path: Path) -> None:
    assert read_defaults(served(tmp_path)) == AdapterDefaults()


def test_what_was_fetched_with_an_adapter_counts_and_not_what_lies_in_its_folder(folder: Path) -> None:
    assert read_defaults(served(folder, defaults={"chat_template.jinja": "own"})) == AdapterDefaults("own")


async def test_a_newer_version_of_the_same_content_may_bring_others(folder: Path) -> None:
    cache = DefaultsCache()
    first = await cache.get(served(folder, revision="1"))
    (folder / "chat_template.jinja").write_text("new")

    assert await cache.get(served(folder, revision="1")) is first
    assert (await cache.get(served(folder, revision="2"))).chat_template == "new"


def test_no_link_is_followed_below_a_resolvers_root(tmp_path: Path, folder: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.jinja").symlink_to(secret)
    found = served(folder)
    below = dataclasses.replace(found, lora_request=dataclasses.replace(found.lora_request, allowed_root=str(tmp_path)))

    assert read_defaults(found).chat_template == "secret"  # the operator's own folders may be made of links
    with pytest.raises(AdapterInvalid, match="chat_template"):
        read_defaults(below)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not valid JSON"),
        ("[1]", "must hold an object"),
        ('{"temperature": "hot"}', "temperature"),
        ('{"eos_token_id": [-1]}', "stop_token_ids"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_a_file_that_cannot_be_used_makes_the_adapter_invalid(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "generation_config.json").write_text(content)

    with pytest.raises(AdapterInvalid, match=reason):
        read_defaults(served(tmp_path))


@pytest.mark.parametrize(("content", "reason"), [(b"\xff", "UTF-8"), (b"x" * (2**17 + 1), "more than")])
def test_a_template_is_a_text_of_bounded_size(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(content)

    with pytest.raises(AdapterInvalid, match=reason):
        read_defaults(served(tmp_path))


async def test_an_adapter_brings_its_own_only_where_the_operator_allows_it(start, engine, registry, folder) -> None:
    (folder / "adapter_config.json").write_text("{}")
    await registry.add("sql", str(folder))
    for cache in (None, DefaultsCache()):
        client = await start(adapter_defaults=cache)
        assert (await client.chat(model="sql")).status == 200
        assert (await client.chat(model="sql", temperature=0.5)).status == 200
        assert (await client.chat()).status == 200
        assert ("chat_template" in client.server.tokenizer.template_arguments) is False  # the base's own

    plain, plain_hot, _, own, own_hot, base = [params for _, params, _, _ in engine.seen]
    assert (plain.temperature, plain.max_tokens) == (1.0, None)
    assert (own.temperature, own.top_k, own.max_tokens, own.stop_token_ids) == (0.0, 5, 3, (7,))
    assert (plain_hot.temperature, own_hot.temperature) == (0.5, 0.5)
    assert base.max_tokens is None


async def test_its_template_writes_the_prompt_unless_the_client_brings_one(start, registry, folder) -> None:
    client = await start(adapter_defaults=DefaultsCache(), trust_request_chat_template=True)
    await registry.add("sql", str(folder))

    await client.chat(model="sql")
    own = client.server.tokenizer.template_arguments["chat_template"]
    await client.chat(model="sql", chat_template="{{ x }}")

    assert own == "{{ messages[0].content }}"
    assert client.server.tokenizer.template_arguments["chat_template"] == "{{ x }}"


async def test_a_refusal_names_the_adapters_defaults_where_they_are_the_reason(start, registry, folder) -> None:
    client = await start(adapter_defaults=DefaultsCache())
    await registry.add("sql", str(folder))

    reply = await client.chat(model="sql", n=2)

    assert (reply.status, reply.error["param"]) == (400, "n")
    assert "the adapter's generation_config.json gives" in reply.error["message"]
