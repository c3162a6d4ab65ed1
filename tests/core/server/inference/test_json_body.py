from __future__ import annotations

import json
import threading

import pytest

from loramux.outputs import CompletionOutput, Logprob, RequestOutput
from loramux.server.inference.json_body import LARGE_NUM_LOGPROBS, respond

BODY = {"a": [], "b": {}, "c": [1, -0.5, None, True, '\u00fc"\U0001f600'], "d": [[[[[[{"e": [2]}]]]]]]}


def outputs(num_tokens: int) -> list[RequestOutput]:
    entries = [{1: Logprob(-0.5, 1)}] * num_tokens
    return [RequestOutput("r", None, [1], None, [CompletionOutput(0, "", [1] * num_tokens, logprobs=entries)], True)]


@pytest.mark.parametrize("num_tokens", [0, LARGE_NUM_LOGPROBS + 1])
async def test_small_and_large_bodies_are_the_same_json(num_tokens: int) -> None:
    response = await respond(lambda: BODY, outputs(num_tokens))

    assert json.loads(response.body) == BODY
    assert response.body.decode() == json.dumps(BODY)
    assert response.headers["Content-Type"] == "application/json; charset=utf-8"


@pytest.mark.parametrize(("num_tokens", "is_here"), [(LARGE_NUM_LOGPROBS, True), (LARGE_NUM_LOGPROBS + 1, False)])
async def test_a_large_body_does_not_keep_the_loop(num_tokens: int, is_here: bool) -> None:
    builders = []

    def build() -> dict[str, object]:
        builders.append(threading.current_thread())
        return {}

    await respond(build, outputs(num_tokens))

    assert (builders == [threading.current_thread()]) is is_here
