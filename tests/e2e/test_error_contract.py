"""Whatever is sent, every answer keeps the contract of docs/errors.md, and the engine goes on answering rightly.

`make test` takes a sample; `make campaign` sends more than 100,000 requests and prints what came back.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode

from api_requests import Api, any_requests, broken_http
from error_contract import CANARY, Census
from loramux.server.access.auth import ApiKey, ApiKeys
from loramux.server.access.name_glob import NameGlob
from loramux.server.access.principal import Principal
from served_engine import ServedEngine
from served_thread import fill_with_adapters, serving_thread
from wire import Answer, Wire, render

KEY = f"{CANARY}-key"
SMALL_KEY = f"{CANARY}-small-key"  # may use one adapter and nothing else
KEYS = ApiKeys(
    (
        ApiKey.of(KEY),
        dataclasses.replace(
            ApiKey.of(SMALL_KEY),
            principal=Principal("small", frozenset({"infer"}), (NameGlob("good"),), may_use_base=False),
        ),
    )
)
ADMITTED = {"Host": "localhost", "Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
AUTHORIZATIONS = [
    *[f"Bearer {KEY}"] * 12,
    *[f"Bearer {SMALL_KEY}"] * 3,
    *(None, "", "Bearer", "Bearer wrong", "Basic eDp5", "Bearer é", f"bearer  {KEY} "),
]
MODELS = [
    *("tiny", "good", "corrupt", "empty-config", "high-rank", "pickled", "nobody", "prod") * 3,
    *("down/a", "a/b:c@d", "..", "../good", "good/", ""),
    "slow/a",  # the only one that takes time
]
PROMPT = {"model": "tiny", "prompt": "hi", "max_tokens": 1}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
BODIES = {
    "/v1/completions": [PROMPT, {**PROMPT, "stream": True, "max_tokens": 3}],
    "/v1/chat/completions": [CHAT, {**CHAT, "stream": True, "max_tokens": 3}],
    "/v1/load_lora_adapter": [{"lora_name": "good", "load_inplace": True}, {"lora_name": "mine", "lora_path": "/"}],
    "/v1/unload_lora_adapter": [{"lora_name": "good"}, {"lora_int_id": 1}],
    "/v1/pin_lora_adapter": [{"lora_name": "good"}],
    "/v1/unpin_lora_adapter": [{"lora_name": "good"}],
    "/v1/move_lora_alias": [{"alias": "prod", "target": "good"}],
}
KNOWN_EVERY = 500
PATIENCE_SECONDS = 10


@dataclasses.dataclass(frozen=True)
class Probe:
    """A server, and a client that checks all that it says; every now and then it asks what it knows the answer to."""

    served: ServedEngine
    wire: Wire
    api: Api
    known: dict[str, str]
    census: Census = dataclasses.field(default_factory=Census)

    def ask(self, request: tuple[str, bytes]) -> None:
        method, raw = request
        self._take(self.wire.ask(raw, method), raw)

    def provoke(self, raw: bytes) -> None:
        self._take(self.wire.provoke(raw), raw)

    def call(self, case: schemathesis.Case) -> None:
        given = case.as_transport_kwargs(self.served.url, headers={"Authorization": f"Bearer {KEY}"})
        taken = ("method", "url", "headers", "params", "cookies", "data", "json", "files")
        made = requests.Request(**{name: given[name] for name in taken if name in given}).prepare()
        body = made.body.encode() if isinstance(made.body, str) else made.body or b""
        headers = {"Host": "localhost", **made.headers}
        self.ask((str(made.method), render(str(made.method), made.path_url, headers, body)))

    def check_known_answers(self) -> None:
        assert {model: answer_of(self.wire, model) for model in self.known} == self.known

    def check_nothing_is_held(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS  # those who left must first be noticed
        while any(count for name, count in self.served.engine.counters().items() if name != "free_blocks"):
            assert time.monotonic() < deadline, self.served.engine.counters()
        assert self.served.engine.is_running

    def _take(self, answer: Answer | None, request: object) -> None:
        try:
            self.census.take(answer)
        except AssertionError as exc:
            exc.add_note(f"after {request!r}")
            raise
        if self.census.total % KNOWN_EVERY == 0:
            self.check_known_answers()


def answer_of(wire: Wire, model: str) -> str:
    body = {"model": model, "prompt": "hello", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    answer = wire.ask(render("POST", "/v1/completions", ADMITTED, json.dumps(body).encode()), "POST")
    assert answer.status == 200, answer
    text: str = json.loads(answer.body)["choices"][0]["text"]
    return text


@pytest.fixture(scope="module", params=["open to everybody", "with keys"])
def probe(
    request: pytest.FixtureRequest,
    tiny_llama: Path,
    make_adapter: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Probe]:
    root = tmp_path_factory.mktemp(f"{CANARY}-adapters")
    fill_with_adapters(root, make_adapter)
    keys = KEYS if request.param == "with keys" else ApiKeys()
    with serving_thread(
        tiny_llama, root, api_keys=keys, allow_runtime_updates=True, allowed_lora_roots=(root,)
    ) as served:
        address = urlsplit(served.url)
        wire = Wire(str(address.hostname), int(address.port or 0))
        document = json.loads(wire.ask(render("GET", "/openapi.json", ADMITTED), "GET").body)
        del document["paths"]["/dashboard/events"]  # a stream that only ends with the server
        known = {model: answer_of(wire, model) for model in ("tiny", "known")}
        yield Probe(served, wire, Api(document, BODIES, MODELS, AUTHORIZATIONS), known)
        wire.close()


@pytest.mark.parametrize(
    ("num_requests", "num_broken", "num_generated"),
    [
        pytest.param(500, 100, 200, id="sample"),
        pytest.param(40_000, 6_000, 7_000, id="campaign", marks=pytest.mark.campaign),
    ],
)
def test_every_answer_keeps_the_contract(probe: Probe, num_requests: int, num_broken: int, num_generated: int) -> None:
    for_examples(num_requests, any_requests(probe.api), probe.ask)
    for_examples(num_broken, broken_http(probe.api), probe.provoke)
    cases = cases_of(probe.api)
    for case in cases:
        for_examples(num_generated // len(cases), case, probe.call)

    probe.check_nothing_is_held()
    probe.check_known_answers()
    sys.stdout.write(f"\n{probe.census.table()}\n")


def cases_of(api: Api) -> list[st.SearchStrategy[schemathesis.Case]]:
    """What schemathesis makes of the OpenAPI document: for every operation what fits it, and what does not."""
    schema = schemathesis.openapi.from_dict(dict(api.document))
    return [
        operation.as_strategy(generation_mode=mode)
        for operation in (result.ok() for result in schema.get_all_operations())
        for mode in GenerationMode
        if mode is GenerationMode.POSITIVE or operation.body  # without a body there is little to get wrong
    ]


def for_examples(number: int, strategy: st.SearchStrategy, check: Callable) -> None:
    profile = settings(
        max_examples=number,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )

    @profile
    @given(strategy)
    def run(example: object) -> None:
        check(example)

    run()
