from __future__ import annotations

import pytest


async def test_a_base_model_is_its_own_root_and_has_no_parent(client) -> None:
    card = (await client.get("/v1/models")).json["data"][0]

    permission = card.pop("permission")
    assert card == {
        "id": "llama",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "loramux",
        "root": "org/llama",
        "parent": None,
        "max_model_len": 100,
    }
    assert permission[0].pop("id").startswith("modelperm-")
    assert permission == [
        {
            "object": "model_permission",
            "created": 1_700_000_000,
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": True,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
    ]


async def test_an_adapter_descends_from_its_base_and_is_rooted_in_its_files(client) -> None:
    served = await client.server.registry.add("sql", "/adapters/sql", base_model_name="base", origin="static")

    card = (await client.get("/v1/models/sql")).json
    card.pop("permission")
    assert card == {
        "id": "sql",
        "object": "model",
        "created": served.created,
        "owned_by": "loramux",
        "root": "/adapters/sql",
        "parent": "base",
        "max_model_len": None,
        "lora_int_id": served.lora_request.lora_int_id,
    }


async def test_base_names_come_first_and_adapters_in_the_order_they_were_loaded(client) -> None:
    for name in ("z", "a", "m"):
        await client.server.registry.add(name, f"/adapters/{name}", origin="static")

    reply = await client.get("/v1/models")

    assert reply.json["object"] == "list"
    assert [card["id"] for card in reply.json["data"]] == ["llama", "base", "z", "a", "m"]


async def test_an_adapter_is_listed_once_it_was_used(client) -> None:
    await client.complete(model="found/sql")

    assert [card["id"] for card in (await client.get("/v1/models")).json["data"]] == ["llama", "base", "found/sql"]


@pytest.mark.parametrize(
    "path", ["org/sql:v1@main", "org%2Fsql:v1@main", "org%2Fsql%3Av1%40main"], ids=["raw", "slash", "encoded"]
)
async def test_a_name_may_hold_slashes_colons_and_ats(client, path: str) -> None:
    await client.server.registry.add("org/sql:v1@main", "/adapters/sql", origin="static")

    reply = await client.get(f"/v1/models/{path}")

    assert (reply.status, reply.json["id"]) == (200, "org/sql:v1@main")


@pytest.mark.parametrize("name", ["nobody", "found/not-used-yet"])
async def test_what_is_not_loaded_is_not_found_and_not_resolved(client, engine, name: str) -> None:
    reply = await client.get(f"/v1/models/{name}")

    assert (reply.status, reply.error["code"]) == (404, "model_not_found")
    assert engine.loaded == {}


@pytest.mark.parametrize("name", ["nobody", "../etc/passwd", "", "a b", "x" * 300])
async def test_an_unknown_model_is_a_404_that_is_not_retried(client, name: str) -> None:
    reply = await client.complete(model=name)

    assert (reply.status, reply.error["code"], reply.error["param"]) == (404, "model_not_found", "model")
    assert reply.headers["x-should-retry"] == "false"


async def test_a_source_that_is_down_is_a_503_that_is_retried(client) -> None:
    reply = await client.complete(model="down/sql")

    assert (reply.status, reply.error["code"]) == (503, "adapter_source_unavailable")
    assert reply.headers["Retry-After"] == "8"
    assert "secret-bucket" not in reply.text


async def test_an_alias_is_listed_where_the_plugins_allow_it_and_what_it_stands_for(
    client, registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.complete(model="found/sql")
    registry.move_alias("prod", "found/sql")
    registry.move_alias("default", "base")

    def ids(reply) -> list[str]:
        return [card["id"] for card in reply.json["data"]][2:]

    assert ids(await client.get("/v1/models")) == ["found/sql", "prod", "default"]
    cases = {"found/sql": ["default"], "prod": ["found/sql", "default"], "default": ["found/sql", "prod"]}
    for refused, left in cases.items():
        monkeypatch.setattr(registry._hooks, "authorize", lambda _, name, refused=refused: name != refused)
        assert ids(await client.get("/v1/models")) == left
