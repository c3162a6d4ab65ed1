from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re

import aiohttp
import pytest
from aiohttp import web

from loramux.errors import AdapterInvalid
from loramux.server import app
from loramux.server.access.auth import ApiKey, ApiKeys
from loramux.server.access.principal import Principal
from loramux.server.operations import dashboard_state
from loramux.server.operations.dashboard_feed import DashboardFeed
from loramux.server.state import Server

PAGES = ("/dashboard", "/dashboard/state", "/dashboard/events")


def basic(key: str, user: str = "") -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{key}".encode()).decode()}


@pytest.fixture
def feeds(monkeypatch: pytest.MonkeyPatch) -> list[DashboardFeed]:
    """The feeds of the servers that are started; each takes one watcher, and makes no pause worth mentioning."""
    made: list[DashboardFeed] = []

    def make(server: Server) -> DashboardFeed:
        made.append(DashboardFeed(server, max_watchers=1, interval=0.01))
        return made[-1]

    monkeypatch.setattr(app, "DashboardFeed", make)
    return made


async def state_of(client, query: str = "") -> dict[str, object]:
    return (await client.get("/dashboard/state", params={"q": query})).json


async def next_event(response: aiohttp.ClientResponse) -> tuple[str, dict[str, object]]:
    """The next event with data, with its name."""
    name = ""
    async with asyncio.timeout(30):
        async for raw in response.content:
            line = raw.decode().strip()
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            if line.startswith("data: "):
                return name, json.loads(line.removeprefix("data: "))
    raise EOFError


async def test_the_page_may_run_its_own_script_and_style_and_nothing_else(client) -> None:
    reply = await client.get("/dashboard")
    policy = dict(part.split(" ", 1) for part in reply.headers["Content-Security-Policy"].split("; "))

    assert (reply.status, reply.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        (block,) = re.findall(f"<{tag}>(.*?)</{tag}>", reply.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
        assert policy[directive] == f"'sha256-{digest}'"
    assert policy["default-src"] == "'none'"
    assert (reply.headers["Cache-Control"], reply.headers["X-Content-Type-Options"]) == ("no-store", "nosniff")


async def test_the_page_never_builds_html_and_names_no_other_place(client) -> None:
    page = (await client.get("/dashboard")).text.replace("http://www.w3.org/2000/svg", "")

    assert (
        re.findall(r"https?://|innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(| on\w+=|style=", page)
        == []
    )


@pytest.mark.parametrize("path", PAGES)
async def test_a_browser_is_asked_for_a_key_and_sends_it_as_a_password(start, path: str) -> None:
    client = await start(api_keys=ApiKeys.from_keys(["secret:with:colons"]))

    for headers in ({}, basic("wrong"), {"Authorization": "Basic !"}, {"Authorization": "Basic gA=="}):
        refused = await client.request("HEAD", path, headers=headers)
        assert refused.status == 401
        assert refused.headers["WWW-Authenticate"].startswith("Basic realm=")
    assert (await client.request("HEAD", path, headers=basic("secret:with:colons", "anybody"))).status == 200
    assert (await client.request("HEAD", path, headers={"Authorization": "Bearer secret:with:colons"})).status == 200


async def test_no_other_route_takes_a_password(start) -> None:
    client = await start(api_keys=ApiKeys.from_keys(["secret"]))

    reply = await client.get("/v1/models", headers=basic("secret"))

    assert (reply.status, reply.headers["WWW-Authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize("path", PAGES)
async def test_a_key_without_the_scope_admin_sees_nothing(start, path: str) -> None:
    key = ApiKey(hashlib.sha256(b"infer").digest(), Principal("someone", scopes=frozenset({"infer"})))
    client = await start(api_keys=ApiKeys([key]))

    reply = await client.get(path, headers=basic("infer"))

    assert (reply.status, reply.error["code"]) == (403, "insufficient_permissions")


async def test_the_state_counts_what_was_asked_and_answered(client) -> None:
    await client.complete(model="found/sql", max_tokens=3)
    await client.complete(model="found/sql", max_tokens=2)
    await client.complete(max_tokens=1)
    await client.complete(model="unknown")

    state = await state_of(client)

    assert state["totals"] == {"requests": 3, "tokens": 6}
    assert {model["name"]: (model["requests"], model["tokens"]) for model in state["traffic"]} == {
        "found/sql": (2, 5),
        None: (1, 1),
    }


async def test_tokens_are_counted_while_they_come(client, engine) -> None:
    engine.hold_after = 2
    asked = asyncio.create_task(client.complete(model="found/sql"))
    await engine.reached_gate.wait()

    state = await state_of(client)
    engine.gate.set()
    await asked

    assert state["totals"] == {"requests": 1, "tokens": 2}
    assert (state["in_flight"], state["engine"]["running"]) == (1, 1)


async def test_adapters_are_shown_in_the_tier_where_they_rest(client, engine) -> None:
    for name in ("found/a", "found/b", "found/c"):
        await client.complete(model=name)
    engine.in_slots.add(1)
    engine.pinned.add(1)
    del engine.loaded[3]

    state = await state_of(client)

    shown = {tier: [row["lora_name"] for row in part["adapters"]] for tier, part in state["tiers"].items()}
    assert shown == {"slot": ["found/a"], "host": ["found/b"], "disk": ["found/c"]}
    assert [(part["count"], part["capacity"]) for part in state["tiers"].values()] == [(1, 2), (1, 3), (1, None)]
    assert (state["num_served"], state["num_pinned"]) == (3, 1)


async def test_of_many_adapters_the_ones_used_last_are_shown_and_all_are_found(client, monkeypatch) -> None:
    monkeypatch.setitem(dashboard_state.MAX_SHOWN, "host", 2)
    for number in range(5):
        await client.complete(model=f"found/{number}")
    await client.complete(model="found/0")
    client.server.registry.move_alias("prod", "found/2")

    last = (await state_of(client))["tiers"]["host"]
    by_name = (await state_of(client, "FOUND/1"))["tiers"]["host"]
    by_alias = (await state_of(client, "prod"))["tiers"]["host"]

    assert [row["lora_name"] for row in last["adapters"]] == ["found/0", "found/4"]
    assert (last["count"], last["matching"]) == (5, 5)
    assert ([row["lora_name"] for row in by_name["adapters"]], by_name["matching"]) == (["found/1"], 1)
    assert [row["lora_name"] for row in by_alias["adapters"]] == ["found/2"]


async def test_failures_are_shown_with_what_everybody_said(client, engine) -> None:
    engine.refusals["found/bad"] = AdapterInvalid("found/bad", "rank 128 is too high", code="adapter_rank_too_high")
    for name in ("found/bad", "found/bad", "down/sql", "unknown"):
        await client.complete(model=name)

    state = await state_of(client)

    assert [(failure["adapter_name"], failure["kind"], failure["count"]) for failure in state["failures"]] == [
        ("down/sql", "source failed", 1),
        ("found/bad", "invalid", 2),
    ]
    assert [(step["resolver"], step["verdict"], step["reason"]) for step in state["failures"][1]["steps"]] == [
        ("found", "found", "/adapters/found/bad @ "),
        ("engine", "invalid", "rank 128 is too high"),
    ]


async def test_a_source_that_is_left_alone_says_for_how_long(client) -> None:
    for number in range(5):
        await client.complete(model=f"down/{number}")

    ((source),) = (await state_of(client))["sources"]

    assert source["name"] == "found"
    assert 0 < source["retry_after_seconds"] <= 6


async def test_the_server_says_what_it_is(start) -> None:
    client = await start(facts=(("model", "org/llama"), ("device", "cpu, float32")))

    server = (await state_of(client))["server"]

    assert server["names"] == ["llama", "base"]
    assert server["facts"] == [["model", "org/llama"], ["device", "cpu, float32"]]


async def test_a_watcher_gets_the_state_at_once_and_again_when_it_has_changed(feeds, start) -> None:
    client = await start()
    async with client.session.get(f"{client.url}/dashboard/events?q=sql") as response:
        first = await next_event(response)
        second = await next_event(response)
        await client.complete(model="found/sql")
        later = second[1]
        while later.get("num_served") != 1:  # it also tells of the request itself
            _, later = await next_event(response)

    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert (first[0], first[1]["query"], first[1]["num_served"]) == ("state", "sql", 0)
    assert (second[0], set(second[1])) == ("tick", {"time"})


async def test_watchers_are_limited_and_leave_their_place(feeds, start) -> None:
    client = await start()
    (feed,) = feeds
    async with client.session.get(f"{client.url}/dashboard/events") as response:
        await next_event(response)
        refused = await client.get("/dashboard/events")
        assert (refused.status, refused.error["code"]) == (503, "server_overloaded")
        assert feed.num_watchers == 1
    async with asyncio.timeout(30):
        while feed.num_watchers:  # noqa: ASYNC110 - the server notices by itself that the client has left
            await asyncio.sleep(0.01)

    assert feed._latest == {}


async def test_a_stream_ends_when_its_key_is_taken_away(feeds, start) -> None:
    keys = ApiKeys([], [ApiKey.of("mine")])
    client = await start(api_keys=keys)
    headers = {"Authorization": "Bearer mine"}
    async with client.session.get(f"{client.url}/dashboard/events", headers=headers) as response:
        await next_event(response)
        keys.replace([ApiKey.of("another")])
        rest = await asyncio.wait_for(response.read(), 30)

    assert rest.count(b"event: state") <= 1  # what was on its way


async def test_streams_end_when_the_server_stops(client) -> None:
    runner = app.make_runner(app.build_app(client.server))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()

    async with client.session.get(f"http://127.0.0.1:{runner.addresses[0][1]}/dashboard/events") as response:
        await next_event(response)
        await runner.cleanup()

        assert b"event: state" not in await response.content.read()
