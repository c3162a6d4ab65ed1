"""Fields of the HTTP API that reach from the body to the sampler and back, over a real engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from loramux import AsyncLLMEngine, EngineArgs
from loramux.adapters.disk_store import DiskStore
from loramux.adapters.materializer import Materializer
from loramux.lora.plugin_manager import ActiveResolver
from loramux.lora.remote import CONFIG_NAME, WEIGHTS_NAME
from loramux.server.inference.adapter_defaults import DefaultsCache
from remote_cases import Shelf, Upload
from served_engine import ServedEngine, serve_engine

PROMPT = "SELECT name FROM people WHERE age > 30 and so on, as long as it takes"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "東京"]}, "size": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["city", "size"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},  # a random model may write spaces for ever
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Look outside.", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now"}},
]
TEMPLATE = (
    "{% for tool in tools or [] %}<|system|>{{ tool | tojson }}{% endfor %}"
    "{% for message in messages %}<|user|>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class Api:
    """Asks one server; the answers are greedy unless the test says otherwise."""

    def __init__(self, served: ServedEngine, session: aiohttp.ClientSession) -> None:
        self.served = served
        self.session = session
        self.headers: Any = {}

    async def post(self, path: str, **body: Any) -> Any:
        async with self.session.post(self.served.url + path, json=body) as response:
            self.headers = response.headers
            return await response.json()

    async def complete(self, **body: Any) -> Any:
        body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 8, "return_token_ids": True, **body}
        return await self.post("/v1/completions", **body)

    async def chat(self, content: str = "hello", **body: Any) -> Any:
        messages = [{"role": "user", "content": content}]
        body = {"messages": messages, "temperature": 0, "max_tokens": 60, **body}
        return await self.post("/v1/chat/completions", **body)

    async def stream(self, path: str, **body: Any) -> list[Any]:
        async with self.session.post(self.served.url + path, json={**body, "stream": True}) as response:
            text = await response.text()
        events = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
        assert events.pop() == "[DONE]"
        return [json.loads(event) for event in events]


@pytest.fixture
async def engine(tiny_llama: Path) -> AsyncIterator[AsyncLLMEngine]:
    arguments = EngineArgs(
        model=str(tiny_llama), enable_lora=True, max_loras=1, max_cpu_loras=2, kv_cache_memory_bytes=8 * 2**20
    )
    engine = AsyncLLMEngine.from_engine_args(arguments)
    engine.tokenizer.hf.chat_template = TEMPLATE
    yield engine
    engine.shutdown()


@pytest.fixture
async def api(engine: AsyncLLMEngine, tiny_llama: Path) -> AsyncIterator[Api]:
    settings = {"adapter_defaults": DefaultsCache()}
    async with (
        serve_engine(engine, tiny_llama, settings=settings) as served,
        aiohttp.ClientSession() as session,
    ):
        yield Api(served, session)


async def test_an_answer_is_held_to_a_schema_whole_or_streamed(api: Api) -> None:
    held_to = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
    whole = await api.chat(response_format=held_to)
    events = await api.stream(
        "/v1/chat/completions",
        messages=[{"role": "user", "content": "hello"}],
        temperature=0,
        max_tokens=60,
        response_format=held_to,
    )

    text = whole["choices"][0]["message"]["content"]
    assert set(json.loads(text)) == {"city", "size"}
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert "".join(part["delta"].get("content", "") for event in events for part in event["choices"]) == text


@pytest.mark.parametrize(
    ("held_to", "accepted"),
    [
        ({"choice": ["yes", "no"]}, ("yes", "no")),
        ({"regex": "(ab){2}"}, ("abab",)),
        ({"grammar": 'start: "x"'}, ("x",)),
    ],
)
async def test_so_is_a_completion(api: Api, held_to: dict[str, Any], accepted: tuple[str, ...]) -> None:
    assert (await api.complete(structured_outputs=held_to, max_tokens=20))["choices"][0]["text"] in accepted


@pytest.mark.parametrize("parallel", [True, False])
async def test_an_answer_that_must_call_a_tool_does(api: Api, parallel: bool) -> None:
    answer = await api.chat(
        tools=TOOLS[:1], tool_choice="required", parallel_tool_calls=parallel, max_tokens=150, temperature=1, seed=3
    )

    choice = answer["choices"][0]
    for call in choice["message"]["tool_calls"][: None if choice["finish_reason"] == "tool_calls" else -1]:
        assert call["function"]["name"] == "weather"
        assert set(json.loads(call["function"]["arguments"])) == {"city", "size"}
    if not parallel:
        assert (choice["finish_reason"], len(choice["message"]["tool_calls"])) == ("tool_calls", 1)
        assert choice["message"]["content"] is None


async def test_a_named_tool_gets_its_arguments_in_pieces_of_a_stream(api: Api) -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    events = await api.stream(
        "/v1/chat/completions",
        messages=[{"role": "user", "content": "hello"}],
        tools=TOOLS,
        tool_choice=choice,
        temperature=0,
    )

    parts = [part for event in events for part in event["choices"]]
    pieces = [piece for part in parts for piece in part["delta"].get("tool_calls", [])]
    assert [piece["function"]["name"] for piece in pieces if "name" in piece["function"]] == ["weather"]
    assert set(json.loads("".join(piece["function"]["arguments"] for piece in pieces))) == {"city", "size"}
    assert parts[-1]["finish_reason"] == "stop"


async def test_only_allowed_tokens_come_and_no_bad_word(api: Api) -> None:
    free = (await api.complete())["choices"][0]
    allowed = sorted(set(free["token_ids"][2:]))
    held = (await api.complete(allowed_token_ids=allowed))["choices"][0]
    word = free["text"][0]
    without = (await api.complete(bad_words=[word]))["choices"][0]

    assert set(held["token_ids"]) <= set(allowed)
    assert free["token_ids"][0] == (await api.post("/tokenize", prompt=word))["tokens"][0]
    assert free["token_ids"][0] not in without["token_ids"]


@pytest.mark.parametrize("side", ["left", "right"])
async def test_a_prompt_that_is_cut_is_answered_like_what_is_left_of_it(api: Api, side: str) -> None:
    whole = (await api.complete())["choices"][0]["prompt_token_ids"]
    left = whole[-5:] if side == "left" else whole[:5]

    cut = (await api.complete(truncate_prompt_tokens=5, truncation_side=side))["choices"][0]

    assert cut["prompt_token_ids"] == left
    assert cut["token_ids"] == (await api.complete(prompt=left))["choices"][0]["token_ids"]


async def test_a_prompt_beyond_the_context_is_cut_to_what_leaves_room(api: Api) -> None:
    answer = await api.complete(prompt="word " * 1500, truncate_prompt_tokens=-1, max_tokens=12)

    assert answer["usage"]["prompt_tokens"] == api.served.server.max_model_len - 12


async def test_cached_tokens_are_told_and_shared_within_one_salt(api: Api) -> None:
    async def cached(**salt: str) -> int:
        return int((await api.complete(**salt))["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert await cached() == 0
    assert await cached() > 0
    assert await cached(cache_salt="mine") == 0
    assert await cached(cache_salt="mine") > 0


async def test_tokenize_tells_what_a_chat_is_answered_from(api: Api) -> None:
    messages = [{"role": "user", "content": "naïve café, 東京"}]
    told = await api.post("/tokenize", messages=messages)
    answered = await api.post("/v1/chat/completions", messages=messages, max_tokens=1, return_token_ids=True)
    text = await api.post("/detokenize", tokens=told["tokens"])

    assert told["tokens"] == answered["prompt_token_ids"]
    assert told["count"] == answered["usage"]["prompt_tokens"] == len(told["tokens"])
    assert text["prompt"] == "<|user|>naïve café, 東京<|assistant|>"


async def test_the_request_id_of_the_header_wins_over_that_of_the_body(api: Api) -> None:
    assert (await api.complete(request_id="from-body"))["id"] == "cmpl-from-body"
    api.session.headers["X-Request-Id"] = "from-header"
    assert (await api.complete(request_id="from-body"))["id"] == "cmpl-from-header"
    assert api.headers["X-Request-Id"] == "from-header"


async def test_an_adapter_brings_its_own_template_and_defaults(
    api: Api, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(make_adapter("fields/own", seed=1), tmp_path / "own")
    (folder / "chat_template.jinja").write_text("<|system|>{{ messages[0].content }}")
    (folder / "generation_config.json").write_text('{"do_sample": false, "max_new_tokens": 3}')
    await api.served.registry.add("own", str(folder))

    messages = [{"role": "user", "content": "hi"}]
    answers = [
        await api.post("/v1/chat/completions", model="own", messages=messages, return_token_ids=True) for _ in range(2)
    ]

    assert (await api.post("/detokenize", tokens=answers[0]["prompt_token_ids"]))["prompt"] == "<|system|>hi"
    assert (await api.post("/tokenize", model="own", messages=messages))["tokens"] == answers[0]["prompt_token_ids"]
    assert answers[0]["usage"]["completion_tokens"] <= 3
    assert answers[0]["choices"][0]["token_ids"] == answers[1]["choices"][0]["token_ids"]  # greedy, as it asks to be


async def test_the_headers_tell_each_tier_that_an_adapter_goes_through(
    engine: AsyncLLMEngine, tiny_llama: Path, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    shelf = Shelf()
    for seed, name in enumerate(("one", "two", "three")):
        folder = make_adapter(f"fields/{name}", seed=seed)
        files = {"config": (folder / CONFIG_NAME).read_bytes(), "weights": (folder / WEIGHTS_NAME).read_bytes()}
        defaults = {"generation_config.json": b'{"max_new_tokens": 2}'}
        shelf.uploads[name] = Upload(**files, defaults=defaults)
    tiers = []
    with DiskStore.open(tmp_path / "store", min_free_bytes=0) as store:
        fetcher = Materializer(store, fetches_defaults=True)
        async with (
            serve_engine(
                engine,
                tiny_llama,
                resolvers=[ActiveResolver("shelf", shelf)],
                fetcher=fetcher,
                settings={"adapter_defaults": DefaultsCache()},
            ) as served,
            aiohttp.ClientSession() as session,
        ):
            api = Api(served, session)
            for name in ("one", "one", "two", "one", "three", "two"):  # one slot, two places in host memory
                answer = await api.post("/v1/completions", model=name, prompt="hi", ignore_eos=True)
                assert answer["usage"]["completion_tokens"] == 2
                tiers.append(api.headers["X-Loramux-Adapter-Tier"])

    assert tiers == ["source", "slot", "source", "host", "source", "disk"]
