from __future__ import annotations

import pytest

from loramux.server.access.auth import ApiKey, ApiKeys
from loramux.server.access.name_glob import NameGlob
from loramux.server.access.principal import Principal


@pytest.fixture
async def client(start):
    return await start(api_keys=ApiKeys.from_keys(["first-key", "second-key"]), allow_runtime_updates=True)


@pytest.fixture
async def client_without_keys(start):
    return await start()


def accepting(**principals: Principal) -> ApiKeys:
    """Each principal under its own name as key."""
    return ApiKeys([ApiKey(ApiKey.of(key).digest, principal) for key, principal in principals.items()])


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
async def test_health_answers_without_a_key(client, path: str) -> None:
    assert (await client.get(path)).status == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/version"),
        ("GET", "/v1/models"),
        ("HEAD", "/v1/models"),
        ("GET", "/v1/models/llama"),
        ("POST", "/v1/completions"),
        ("GET", "/v1/completions"),
        ("POST", "/v1/load_lora_adapter"),
        ("GET", "/no/such/address"),
    ],
)
async def test_everything_else_needs_a_key(client, method: str, path: str) -> None:
    reply = await client.request(method, path)

    assert reply.status == 401
    assert reply.headers["WWW-Authenticate"] == "Bearer"
    if method != "HEAD":
        assert (reply.error["code"], reply.error["type"]) == ("missing_api_key", "authentication_error")
        assert reply.error["message"] == "You didn't provide an API key."


@pytest.mark.parametrize("header", ["Bearer wrong", "Bearer first-key2", "bearer Second-Key", "Bearer \u00fc"])
async def test_a_wrong_key_is_refused_and_never_repeated(client, header: str) -> None:
    reply = await client.get("/v1/models", headers={"Authorization": header})

    assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
    assert reply.error["message"] == "Incorrect API key provided."


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic first-key", "first-key"])
async def test_what_is_no_bearer_key_counts_as_none(client, header: str) -> None:
    reply = await client.get("/v1/models", headers={"Authorization": header})

    assert reply.error["code"] == "missing_api_key"


@pytest.mark.parametrize("header", ["Bearer first-key", "bearer second-key"])
async def test_each_of_the_keys_lets_in(client, header: str) -> None:
    assert (await client.get("/v1/models", headers={"Authorization": header})).status == 200


async def test_hooks_see_who_asks_but_not_the_key(client, monkeypatch: pytest.MonkeyPatch) -> None:
    principals: list[str | None] = []
    lookup = type(client.server.registry).lookup

    async def spy(self, name: str, principal: str | None = None):
        principals.append(principal)
        return await lookup(self, name, principal)

    monkeypatch.setattr(type(client.server.registry), "lookup", spy)
    for key in ("first-key", "second-key", "first-key"):
        await client.post(
            "/v1/completions", {"model": "llama", "prompt": "x"}, headers={"Authorization": f"Bearer {key}"}
        )

    assert principals[0] == principals[2] != principals[1]
    assert "first-key" not in str(principals)


def test_keys_cannot_be_read_back() -> None:
    assert "first-key" not in repr(ApiKeys.from_keys(["first-key"]))


@pytest.mark.parametrize(
    ("scope", "statuses"),
    [("infer", (200, 200, 403)), ("metrics", (200, 403, 403)), ("admin", (200, 403, 404))],
)
async def test_a_key_opens_what_its_scope_is_for(start, scope: str, statuses: tuple[int, ...]) -> None:
    client = await start(api_keys=accepting(k=Principal("k", frozenset({scope}))), allow_runtime_updates=True)
    paths = ("/version", "/v1/models", "/v1/explain_lora_adapter?lora_name=x")

    replies = [await client.get(path, headers=bearer("k")) for path in paths]

    assert tuple(reply.status for reply in replies) == statuses
    refused = [reply.error for reply in replies if reply.status == 403]
    assert {(error["code"], error["type"]) for error in refused} <= {("insufficient_permissions", "permission_error")}


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
async def test_the_engine_knows_whose_turn_a_request_takes(start, engine, route: str) -> None:
    client = await start(api_keys=accepting(a=Principal("team-a"), b=Principal("team-b")))
    body = {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}

    for key in "ab":
        await client.post(route, body, headers=bearer(key))

    assert engine.tenants == ["team-a", "team-b"]


async def test_no_key_shares_cached_prefixes_with_another(start, engine) -> None:
    client = await start(api_keys=accepting(a=Principal("team-a"), b=Principal("team-b")))

    for key, salt in (("a", None), ("b", None), ("a", "x"), ("b", "x"), ("a", "x")):
        await client.post("/v1/completions", {"prompt": "x", "cache_salt": salt}, headers=bearer(key))

    assert len(set(engine.cache_salts)) == 4
    assert engine.cache_salts[2] == engine.cache_salts[4]


async def test_without_keys_the_cache_is_everybodys(client_without_keys, engine) -> None:
    await client_without_keys.complete()
    await client_without_keys.complete(cache_salt="x")

    assert engine.cache_salts == [None, "x"]


async def test_an_address_that_is_not_there_is_only_told_to_who_has_a_key(start) -> None:
    client = await start(api_keys=accepting(k=Principal("k", frozenset({"metrics"}))))

    reply = await client.post("/v1/load_lora_adapter", {}, headers=bearer("k"))

    assert (reply.status, reply.error["code"]) == (404, "unknown_url")


NARROW = Principal("team-a", frozenset({"infer"}), (NameGlob("found/a*"),), may_use_base=False)


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("model", ["found/b", "llama", "alias-b", "down/x"])
async def test_what_a_key_may_not_use_looks_like_what_does_not_exist(
    start, monkeypatch: pytest.MonkeyPatch, route: str, model: str
) -> None:
    client = await start(api_keys=accepting(k=NARROW, boss=Principal("boss")))
    await client.server.registry.lookup("found/b")
    client.server.registry.move_alias("alias-b", "found/b")
    body = {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}
    unknown = await client.post(route, {"model": "nowhere", **body}, headers=bearer("boss"))
    monkeypatch.setattr(type(client.server.registry), "lookup", None)

    refused = await client.post(route, {"model": model, **body}, headers=bearer("k"))

    assert (refused.status, refused.error["code"]) == (404, "model_not_found")
    assert refused.text.replace(model, "nowhere") == unknown.text
    assert set(refused.headers) == set(unknown.headers)


async def test_a_request_that_names_no_model_needs_the_base(start) -> None:
    client = await start(api_keys=accepting(k=NARROW))

    reply = await client.post("/v1/completions", {"prompt": "x"}, headers=bearer("k"))

    assert (reply.status, reply.error["code"]) == (404, "model_not_found")


async def test_a_key_sees_and_uses_what_its_globs_allow(start) -> None:
    client = await start(api_keys=accepting(k=NARROW))
    registry = client.server.registry
    for name in ("found/a1", "found/b1"):
        await registry.lookup(name)
    for alias, target in (("one", "found/a1"), ("two", "found/b1"), ("three", "llama")):
        registry.move_alias(alias, target)

    listed = await client.get("/v1/models", headers=bearer("k"))
    statuses = [
        (await client.get(f"/v1/models/{name}", headers=bearer("k"))).status for name in ("one", "two", "llama")
    ]
    answer = await client.post("/v1/completions", {"model": "one", "prompt": "x"}, headers=bearer("k"))

    assert [card["id"] for card in listed.json["data"]] == ["found/a1", "one"]
    assert statuses == [200, 404, 404]
    assert answer.json["choices"][0]["text"] == "found/a1>x"


async def test_only_operators_see_where_models_lie(start) -> None:
    keys = accepting(k=Principal("k", frozenset({"infer"})), boss=Principal("boss"))
    client = await start(api_keys=keys)
    served = await client.server.registry.lookup("found/a")

    roots = {
        key: [card["root"] for card in (await client.get("/v1/models", headers=bearer(key))).json["data"]]
        for key in ("k", "boss")
    }

    assert roots == {"k": ["llama", "base", served.digest], "boss": ["org/llama", "org/llama", "/adapters/found/a"]}
