from __future__ import annotations

from pathlib import Path

import pytest

from loramux.errors import AdapterInvalid

LOAD = "/v1/load_lora_adapter"
UNLOAD = "/v1/unload_lora_adapter"
ALIAS = "/v1/move_lora_alias"
EXPLAIN = "/v1/explain_lora_adapter"
PIN = "/v1/pin_lora_adapter"
UNPIN = "/v1/unpin_lora_adapter"
LIST = "/v1/lora_adapters"


@pytest.fixture
async def client(start, adapter_folder: Path):
    return await start(allow_runtime_updates=True, allowed_lora_roots=(adapter_folder.parent,))


@pytest.mark.parametrize("path", [LOAD, UNLOAD, ALIAS, EXPLAIN, PIN, UNPIN, LIST])
async def test_the_addresses_do_not_exist_unless_they_are_allowed(start, path: str) -> None:
    client = await start()

    reply = await client.post(path, {"lora_name": "sql", "lora_path": "/x"})

    assert (reply.status, reply.error["code"]) == (404, "unknown_url")
    assert reply.error["message"] == f"Unknown request URL: POST {path}."


async def test_an_adapter_is_loaded_used_and_unloaded(client, adapter_folder: Path) -> None:
    loaded = await client.post(LOAD, {"lora_name": "sql", "lora_path": str(adapter_folder)})
    answer = await client.complete(model="sql")
    unloaded = await client.post(UNLOAD, {"lora_name": "sql"})

    assert (loaded.status, loaded.text) == (200, "Success: LoRA adapter 'sql' added successfully.")
    assert answer.json["choices"][0]["text"] == "sql>hi"
    assert (unloaded.status, unloaded.text) == (200, "Success: LoRA adapter 'sql' removed successfully.")
    assert (await client.complete(model="sql")).status == 404


async def test_an_adapter_can_be_unloaded_by_its_id(client, adapter_folder: Path) -> None:
    await client.post(LOAD, {"lora_name": "sql", "lora_path": str(adapter_folder)})
    lora_int_id = (await client.get("/v1/models/sql")).json["lora_int_id"]

    reply = await client.post(UNLOAD, {"lora_int_id": lora_int_id})

    assert reply.text == "Success: LoRA adapter 'sql' removed successfully."


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "lora_name"),
        ({"lora_path": "/x"}, "lora_name"),
        ({"lora_name": "", "lora_path": "/x"}, "lora_name"),
        ({"lora_name": "sql", "lora_path": ""}, "lora_path"),
    ],
)
async def test_loading_needs_a_name_and_no_empty_path(client, body: dict[str, str], param: str) -> None:
    reply = await client.post(LOAD, body)

    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "missing_required_parameter", param)
    assert reply.error["message"] == (
        "'lora_name' must be provided, and 'lora_path' must not be empty; without it the resolvers are asked."
    )


@pytest.mark.parametrize("body", [{}, {"lora_name": ""}])
async def test_unloading_needs_a_name_or_an_id(client, body: dict[str, str]) -> None:
    reply = await client.post(UNLOAD, body)

    assert (reply.status, reply.error["code"]) == (400, "missing_required_parameter")


@pytest.mark.parametrize(("body", "shown"), [({"lora_name": "sql"}, "sql"), ({"lora_int_id": 7}, "7")])
async def test_an_adapter_that_is_not_loaded_cannot_be_unloaded(client, body: dict[str, object], shown: str) -> None:
    reply = await client.post(UNLOAD, body)

    assert (reply.status, reply.error["code"]) == (404, "adapter_not_found")
    assert reply.error["message"] == f"The lora adapter '{shown}' cannot be found."


async def test_a_name_is_loaded_once(client, adapter_folder: Path) -> None:
    body = {"lora_name": "sql", "lora_path": str(adapter_folder)}
    await client.post(LOAD, body)

    reply = await client.post(LOAD, body)

    assert (reply.status, reply.error["code"]) == (400, "adapter_already_loaded")
    assert reply.error["message"].startswith("The lora adapter 'sql' has already been loaded.")


async def test_the_names_of_the_base_model_are_taken(client, adapter_folder: Path) -> None:
    reply = await client.post(LOAD, {"lora_name": "llama", "lora_path": str(adapter_folder)})

    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "adapter_name_reserved", "lora_name")


async def test_an_invalid_adapter_says_why(client, engine, adapter_folder: Path) -> None:
    engine.refusals["sql"] = AdapterInvalid(
        "sql", f"rank 128 in {adapter_folder} is too high", code="adapter_rank_too_high"
    )

    reply = await client.post(LOAD, {"lora_name": "sql", "lora_path": str(adapter_folder)})

    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "adapter_rank_too_high", "lora_path")
    assert reply.error["message"] == "Adapter `sql` cannot be served: rank 128 in <path> is too high"


async def test_outside_and_missing_look_the_same(client, adapter_folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "adapter_config.json").write_text("{}")
    (adapter_folder.parent / "link").symlink_to(outside)
    root = adapter_folder.parent

    replies = [
        await client.post(LOAD, {"lora_name": "sql", "lora_path": str(path)})
        for path in (
            outside,
            root / "link",
            root / "../outside",
            root / "missing",
            root,
            "a\x00b",
            "x" * 5000,
            "~nobody/x",
        )
    ]

    assert {reply.status for reply in replies} == {404}
    assert {reply.text for reply in replies} == {replies[0].text}
    assert replies[0].error["message"] == "No adapter found at the given path."


async def test_a_link_inside_the_roots_is_followed(client, adapter_folder: Path) -> None:
    (adapter_folder.parent / "link").symlink_to(adapter_folder)

    reply = await client.post(LOAD, {"lora_name": "sql", "lora_path": str(adapter_folder.parent / "link")})

    assert reply.status == 200


async def test_without_roots_any_folder_will_do(start, adapter_folder: Path) -> None:
    client = await start(allow_runtime_updates=True)

    reply = await client.post(LOAD, {"lora_name": "sql", "lora_path": str(adapter_folder)})

    assert reply.status == 200


async def test_without_a_path_the_resolvers_are_asked(client) -> None:
    loaded = await client.post(LOAD, {"lora_name": "found/sql"})
    unknown = await client.post(LOAD, {"lora_name": "unknown"})
    broken = await client.post(LOAD, {"lora_name": "down/sql"})

    assert (loaded.status, loaded.text) == (200, "Success: LoRA adapter 'found/sql' added successfully.")
    assert [card["id"] for card in (await client.get("/v1/models")).json["data"]][-1] == "found/sql"
    assert (unknown.status, unknown.error["code"], unknown.error["param"]) == (404, "adapter_not_found", "lora_name")
    assert (broken.status, broken.error["code"]) == (503, "adapter_source_unavailable")


async def test_an_adapter_is_replaced_in_place_under_a_new_id(client, adapter_folder: Path) -> None:
    body = {"lora_name": "sql", "lora_path": str(adapter_folder)}
    await client.post(LOAD, body)

    again = await client.post(LOAD, body)
    in_place = await client.post(LOAD, {**body, "load_inplace": True})

    assert (again.status, again.error["code"]) == (400, "adapter_already_loaded")
    assert "'load_inplace' to true" in again.error["message"]
    assert in_place.status == 200
    assert (await client.get("/v1/models/sql")).json["lora_int_id"] == 2


async def test_an_alias_is_moved_only_from_where_it_is_expected(client) -> None:
    first = await client.post(ALIAS, {"alias": "prod", "target": "found/v1", "expected_target": None})
    await client.complete(model="prod")
    moved = await client.post(ALIAS, {"alias": "prod", "target": "found/v2", "expected_target": "found/v1"})
    late = await client.post(ALIAS, {"alias": "prod", "target": "found/v3", "expected_target": "found/v1"})
    answer = await client.complete(model="prod")

    assert first.json == {"alias": "prod", "target": "found/v1", "previous_target": None}
    assert moved.json["previous_target"] == "found/v1"
    assert (late.status, late.error["code"], late.error["param"]) == (400, "alias_conflict", "expected_target")
    assert (answer.json["model"], answer.json["choices"][0]["text"]) == ("prod", "found/v2>hi")
    card = (await client.get("/v1/models/prod")).json
    assert (card["id"], card["parent"], card["root"]) == ("prod", "found/v2", "/adapters/found/v2")

    await client.post(ALIAS, {"alias": "prod", "target": None})
    assert (await client.complete(model="prod")).status == 404


async def test_an_alias_needs_a_name_and_says_where_it_goes(client) -> None:
    assert (await client.post(ALIAS, {"target": "x"})).error["param"] == "alias"
    assert (await client.post(ALIAS, {"alias": "x"})).error["param"] == "target"


async def test_what_the_resolvers_said_can_be_read(client) -> None:
    await client.complete(model="found/sql")
    await client.complete(model="unknown")
    await client.complete(model="down/sql")

    found = (await client.get(f"{EXPLAIN}?lora_name=found/sql")).json
    unknown = (await client.get(f"{EXPLAIN}?lora_name=unknown")).json
    down = (await client.get(f"{EXPLAIN}?lora_name=down/sql")).json
    never = await client.get(f"{EXPLAIN}?lora_name=never")

    assert [step["verdict"] for step in found["steps"]] == ["found", "loaded"]
    assert [(step["resolver"], step["verdict"]) for step in unknown["steps"]] == [("found", "not found")]
    assert [(step["verdict"], step["reason"]) for step in down["steps"]] == [("failed", "secret-bucket is down")]
    assert (never.status, never.error["code"]) == (404, "adapter_not_found")
    assert (await client.get(EXPLAIN)).error["code"] == "missing_required_parameter"


async def test_an_alias_of_the_base_model_answers_and_is_listed(client) -> None:
    await client.post(ALIAS, {"alias": "default", "target": "llama"})

    assert (await client.complete(model="default")).json["choices"][0]["text"] == "base>hi"
    assert (await client.get("/v1/models/default")).json["parent"] == "llama"


async def test_a_name_of_the_resolvers_is_loaded_again_only_in_place(client) -> None:
    await client.post(LOAD, {"lora_name": "found/sql"})

    again = await client.post(LOAD, {"lora_name": "found/sql"})
    in_place = await client.post(LOAD, {"lora_name": "found/sql", "load_inplace": True})

    assert (again.status, again.error["code"]) == (400, "adapter_already_loaded")
    assert in_place.status == 200


@pytest.mark.parametrize("by", ["lora_name", "lora_int_id", "id", "number"])
async def test_an_adapter_can_be_named_in_every_way(client, by: str) -> None:
    await client.post(LOAD, {"lora_name": "found/sql"})
    number = (await client.get("/v1/models/found/sql")).json["lora_int_id"]
    body = {"number": {"id": number}, "lora_int_id": {"lora_int_id": number}}.get(by, {by: "found/sql"})

    pinned = await client.post(PIN, body)
    unpinned = await client.post(UNPIN, body)
    unloaded = await client.post(UNLOAD, body)

    where = {"lora_name": "found/sql", "lora_int_id": number, "tier": "host"}
    assert (pinned.status, pinned.json) == (200, {**where, "pinned": True})
    assert (unpinned.status, unpinned.json) == (200, {**where, "pinned": False})
    assert unloaded.text == "Success: LoRA adapter 'found/sql' removed successfully."


async def test_a_name_and_an_id_that_do_not_belong_together_mean_nothing(client) -> None:
    await client.post(LOAD, {"lora_name": "found/sql"})

    reply = await client.post(UNLOAD, {"lora_name": "found/sql", "lora_int_id": 99})

    assert (reply.status, reply.error["code"], reply.error["param"]) == (404, "adapter_not_found", "lora_name")
    assert (await client.get("/v1/models/found/sql")).status == 200


@pytest.mark.parametrize("path", [PIN, UNPIN])
async def test_what_is_not_served_is_neither_pinned_nor_unpinned(client, path: str) -> None:
    unknown = await client.post(path, {"id": "found/sql"})
    nameless = await client.post(path, {"id": ""})

    assert (unknown.status, unknown.error["code"], unknown.error["param"]) == (404, "adapter_not_found", "id")
    assert (nameless.status, nameless.error["code"]) == (400, "missing_required_parameter")


async def test_a_pin_that_leaves_no_place_is_refused_for_good(client, engine) -> None:
    engine.max_pinned = 0
    await client.post(LOAD, {"lora_name": "found/sql"})

    reply = await client.post(PIN, {"lora_name": "found/sql"})

    assert (reply.status, reply.error["code"]) == (400, "adapter_pin_refused")
    assert reply.headers["x-should-retry"] == "false"


async def test_an_evicted_adapter_is_read_again_to_be_pinned(client, engine) -> None:
    await client.post(LOAD, {"lora_name": "found/sql"})
    del engine.loaded[1]
    client.server.registry.notify_evicted(1)

    reply = await client.post(PIN, {"lora_name": "found/sql"})

    assert (reply.json["tier"], reply.json["pinned"]) == ("host", True)


async def test_a_pin_goes_over_to_the_adapter_that_replaces_it(client, adapter_folder: Path) -> None:
    body = {"lora_name": "sql", "lora_path": str(adapter_folder)}
    await client.post(LOAD, body)
    await client.post(PIN, {"lora_name": "sql"})

    await client.post(LOAD, {**body, "load_inplace": True})

    assert [(row["lora_int_id"], row["pinned"]) for row in (await client.get(LIST)).json["data"]] == [(2, True)]


async def test_unloading_ends_a_pin(client) -> None:
    await client.post(LOAD, {"lora_name": "found/sql"})
    await client.post(PIN, {"lora_name": "found/sql"})
    await client.post(UNLOAD, {"lora_name": "found/sql"})

    await client.complete(model="found/sql")

    assert [row["pinned"] for row in (await client.get(LIST)).json["data"]] == [False]
