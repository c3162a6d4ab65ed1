from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loramux.server.access.auth import ApiKeys
from loramux.server.observing.exchange import Exchange
from loramux.server.observing.log_format import LogFormat, _log_uncaught, make_handler

DOCS = Path(__file__).parents[4] / "docs" / "metrics.md"
CANARY = "canary5150"
CHAT = {"model": "found/sql", "messages": [{"role": "user", "content": "hi"}]}


class Log:
    """What a server would write to standard error."""

    def __init__(self, log_format: LogFormat) -> None:
        self._stream = io.StringIO()
        self.handler = make_handler(log_format, self._stream)

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    def about(self, request_id: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line.get("request_id") == request_id]


@pytest.fixture
def log(request: pytest.FixtureRequest) -> Iterator[Log]:
    log = Log(getattr(request, "param", "json"))
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.DEBUG)
    root.addHandler(log.handler)
    yield log
    root.removeHandler(log.handler)
    root.setLevel(level)


def test_a_line_is_one_object_whatever_is_in_it(log: Log) -> None:
    logging.getLogger("somebody").warning('two\nlines "quoted" %s', "ü")

    (line,) = log.lines
    assert (line["level"], line["logger"], line["message"]) == ("WARNING", "somebody", 'two\nlines "quoted" ü')
    assert line["timestamp"].endswith("+00:00")
    assert "request_id" not in line


def test_a_traceback_is_part_of_its_line(log: Log) -> None:
    try:
        raise ValueError("oops")
    except ValueError:
        logging.getLogger("somebody").exception("failed")
        _log_uncaught(*sys.exc_info())

    failed, uncaught = log.lines
    assert failed["exc_info"].endswith("ValueError: oops")
    assert (uncaught["level"], uncaught["message"]) == ("CRITICAL", "uncaught exception")
    assert "Traceback" in uncaught["exc_info"]


@pytest.mark.parametrize("log", ["text"], indirect=True)
def test_a_line_for_people_names_its_request_once(log: Log) -> None:
    with Exchange("order-66").as_current():
        logging.getLogger("somebody").info("hello")
        logging.getLogger("somebody").info("failed request_id=%s", "order-66")
    logging.getLogger("somebody").info("elsewhere")

    hello, failed, elsewhere = log.text.splitlines()
    assert hello.endswith("INFO somebody: hello request_id=order-66 adapter=-")
    assert failed.endswith("failed request_id=order-66")
    assert elsewhere.endswith("elsewhere")


async def test_every_line_about_a_request_has_its_id_and_its_adapter(client, engine, log: Log) -> None:
    engine.fail_after, engine.failure = 1, RuntimeError("oops")

    await client.post("/v1/completions", {"prompt": "x", "model": "found/sql"}, headers={"X-Request-Id": "order-66"})

    lines = {line["logger"]: line for line in log.about("order-66")}
    assert lines["loramux.adapters.resolver_chain"]["adapter"] == "-"  # not known to be valid yet
    assert lines["loramux.server.app"]["adapter"] == "found/sql"
    assert lines["loramux.server.app"]["exc_info"].endswith("RuntimeError: oops")
    assert lines["loramux.access"]["adapter"] == "found/sql"


async def test_the_access_line_has_fields(client, log: Log) -> None:
    usage = (await client.post("/v1/chat/completions", CHAT, headers={"X-Request-Id": "order-66"})).json["usage"]

    (line,) = [line for line in log.about("order-66") if line["logger"] == "loramux.access"]
    assert isinstance(line["milliseconds"], float)
    assert {key: line[key] for key in ("method", "route", "status", "adapter", "principal")} == {
        "method": "POST",
        "route": "/v1/chat/completions",
        "status": 200,
        "adapter": "found/sql",
        "principal": "-",
    }
    documented = re.findall(r"`(\w+)`", DOCS.read_text(encoding="utf-8").partition("## The log")[2])
    assert set(line) <= set(documented)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])


async def test_a_request_whose_client_left_has_its_line(client, engine, log: Log) -> None:
    engine.hold_after = 1
    call = asyncio.create_task(client.complete())
    await engine.reached_gate.wait()
    call.cancel()
    await engine.left.wait()
    await client.get("/health")  # the first request is over when the second one is

    statuses = [line["status"] for line in log.lines if line["logger"] == "loramux.access"]
    assert statuses == [499, 200]


async def test_neither_prompts_nor_keys_nor_raw_addresses_are_logged(start, engine, log: Log) -> None:
    client = await start(api_keys=ApiKeys.from_keys([f"sk-{CANARY}"]))
    good = {"Authorization": f"Bearer sk-{CANARY}"}
    bad = {"Authorization": f"Bearer sk-{CANARY}-not"}
    for headers in (good, bad, {**good, "User-Agent": CANARY, "Referer": CANARY, "X-Request-Id": f"{CANARY} x"}):
        for body in (
            {"prompt": CANARY},
            {"prompt": CANARY, "model": "found/sql", "stop": CANARY, "user": CANARY, "stream": True},
            {"prompt": CANARY * 100},
            {"prompt": {"text": CANARY}},
            {"prompt": "x", "model": f"../{CANARY}"},
            {"prompt": "x", "temperature": CANARY},
        ):
            await client.post("/v1/completions", body, headers=headers)
        await client.post("/v1/chat/completions", {"messages": [{"role": "user", "content": CANARY}]}, headers=headers)
        await client.post("/v1/chat/completions", {"messages": [{"role": CANARY, "content": 1}]}, headers=headers)
        await client.request("POST", "/v1/completions", data=f"{{{CANARY}", headers=headers)
        await client.get(f"/v1/models/{CANARY}?key={CANARY}", headers=headers)
        await client.get(f"/{CANARY}", headers=headers)
    engine.failure = RuntimeError("oops")
    for fail_after in (0, 1):
        engine.fail_after = fail_after
        await client.post("/v1/completions", {"prompt": CANARY, "stream": True}, headers=good)

    ours = [line for line in log.lines if line["logger"].startswith(("loramux", "aiohttp"))]
    assert len(ours) > 30
    assert CANARY not in json.dumps(ours)


def test_what_would_be_printed_by_the_interpreter_is_a_line_too() -> None:
    program = """
import logging, threading, warnings
library = logging.getLogger("library")
library.addHandler(logging.StreamHandler())
library.propagate = False
from loramux.server.observing.log_format import configure_logging
configure_logging("json")
library.warning("from a library")
warnings.warn("from Python")
thread = threading.Thread(target=lambda: 1 / 0, name="worker")
thread.start()
thread.join()
raise ValueError("oops")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    library, warning, in_thread, uncaught = [json.loads(line) for line in ended.stderr.splitlines()]
    assert (library["logger"], library["message"]) == ("library", "from a library")
    assert "UserWarning: from Python" in warning["message"]
    assert in_thread["message"] == "uncaught exception in thread=worker"
    assert in_thread["exc_info"].endswith("ZeroDivisionError: division by zero")
    assert uncaught["exc_info"].endswith("ValueError: oops")
    assert ended.returncode == 1
