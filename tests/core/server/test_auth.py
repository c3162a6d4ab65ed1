from __future__ import annotations

import pytest

from loramux.server.auth import ApiKeys


@pytest.fixture
async def client(start):
    return await start(api_keys=ApiKeys.from_keys(["first-key", "second-key"]))


@pytest.mark.parametrize("path", ["/health", "/version"])
async def test_health_and_version_answer_without_a_key(client, path: str) -> None:
    assert (await client.get(path)).status == 200


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/llama", "/v1/completions", "/no/such/address"])
async def test_everything_else_needs_a_key(client, path: str) -> None:
    reply = await client.get(path)

    assert (reply.status, reply.error["code"]) == (401, "missing_api_key")
    assert reply.error["message"] == "You didn't provide an API key."
    assert reply.error["type"] == "authentication_error"
    assert reply.headers["WWW-Authenticate"] == "Bearer"


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
