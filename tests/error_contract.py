"""The promises that every response keeps, checked on any of them; and how often each error was seen."""

from __future__ import annotations

import json
import re
from collections import Counter

from loramux.server.errors import ERROR_KINDS
from wire import Answer

CANARY = "canary"
"""Stands in keys, in the names of folders and in the messages of failures: in whatever no client may see."""

SECRETS = re.compile(
    rf"{CANARY}|Traceback|File \"|site-packages|\.py\b|\b[A-Z]\w+(Error|Exception|Warning)\b|/(home|usr|work)/"
)
RETRIED = frozenset({408, 409, 429, *range(500, 600)})
HEALING = frozenset(
    {
        "adapter_loading",
        "adapter_source_unavailable",
        "adapter_store_full",
        "server_overloaded",
        "server_draining",
        "engine_unavailable",
        "rate_limit_exceeded",
        "adapter_resolution_rate_limited",
    }
)
"""The codes whose failures pass by themselves."""


class Census:
    """Checks answers and counts them by what they say."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[int, str]] = Counter()

    @property
    def total(self) -> int:
        return self.counts.total()

    def take(self, answer: Answer | None) -> None:
        """Hold an answer to the contract; None is a connection that was left before one came."""
        if answer is None:
            self.counts[0, "no answer was waited for"] += 1
            return
        self.counts[answer.status, code_of(answer)] += 1

    def table(self) -> str:
        lines = [f"{count:>8,}  {status or '-':>3}  {code}" for (status, code), count in sorted(self.counts.items())]
        return "\n".join([*lines, f"{self.total:>8,}  in all"])


def code_of(answer: Answer) -> str:
    """Return the code of an error, or what kind of success it is; fails where the contract is broken."""
    assert answer.headers["x-request-id"], answer
    assert answer.headers["server"] == "loramux", answer
    if answer.status < 400:
        assert answer.status == 200, answer
        return _end_of_stream(answer) if answer.headers.get("content-type", "").startswith("text/event-stream") else ""
    assert answer.status != 500, answer
    assert answer.headers["content-type"].startswith("application/json"), answer
    assert not SECRETS.search(str(answer.headers)), answer
    if answer.method == "HEAD":
        assert answer.body == b"", answer
        assert answer.status in {kind.status for kind in ERROR_KINDS.values()}, answer
        return "(HEAD)"
    code = _code(answer.body)
    assert ERROR_KINDS[code].status == answer.status, answer
    if answer.status in RETRIED:
        assert code in HEALING or answer.headers.get("x-should-retry") == "false", answer
        assert "x-should-retry" in answer.headers or 1 <= int(answer.headers["retry-after"]) <= 60, answer
    return code


def _code(body: bytes) -> str:
    assert not SECRETS.search(body.decode()), body
    value = json.loads(body)
    assert set(value) == {"error"}, body
    error = value["error"]
    assert set(error) == {"message", "type", "param", "code"}, body
    assert isinstance(error["message"], str), body
    assert error["message"], body
    assert error["param"] is None or isinstance(error["param"], str), body
    assert error["type"] == ERROR_KINDS[error["code"]].type, body
    code: str = error["code"]
    return code


def _end_of_stream(answer: Answer) -> str:
    events = [event for event in answer.body.decode().split("\n\n") if event and not event.startswith(":")]
    assert events, answer
    if events[-1] == "data: [DONE]":
        return "stream"
    return f"stream ended by {_code(events[-1].removeprefix('data: ').encode())}"
