"""The official client, unmodified, against `loramux serve`: what it gets is what the offline LLM gives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from loramux import LLM, LoRARequest, SamplingParams
from served import Served, serving

PROMPTS = ("SELECT name", "the quick brown fox jumps over", "x", "What is the capital? " * 4)
STATIC = ("one", "org/two")
RESOLVED = ("three", "org/four", "five")
RANKS = {"one": 8, "org/two": 4, "three": 17, "org/four": 1, "five": 64}
MAX_TOKENS = 12


@pytest.fixture(scope="module")
def adapters(make_adapter: Callable[..., Path]) -> dict[str, Path]:
    return {name: make_adapter(f"e2e/{name}", rank=rank, seed=seed) for seed, (name, rank) in enumerate(RANKS.items())}


@pytest.fixture(scope="module")
def served(tiny_llama: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    for name in RESOLVED:
        link = folder / "root" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        adapters[name].rename(link)
        adapters[name] = link
    with serving(
        str(tiny_llama),
        *("--served-model-name", "tiny", "alias"),
        "--enable-lora",
        *("--max-loras", "2"),
        *("--lora-modules", f"one={adapters['one']}", f'{{"name": "org/two", "path": "{adapters["org/two"]}"}}'),
        *("--resolver-option", f"filesystem.root={folder / 'root'}"),
        *("--kv-cache-memory-bytes", "32MiB"),
        *("--api-key", "test-key"),
        log=folder / "log",
        LORAMUX_ALLOW_RUNTIME_LORA_UPDATING="True",
    ) as served:
        yield served


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="test-key") as client:
        yield client


@pytest.fixture(scope="module")
def offline(tiny_llama: Path, adapters: dict[str, Path], served: Served) -> dict[tuple[str, str], str]:
    """What the offline LLM answers for every model and prompt; `served` only because it moves the adapters."""
    llm = LLM(model=str(tiny_llama), enable_lora=True, max_loras=2, kv_cache_memory_bytes=32 * 2**20)
    pairs = [(model, prompt) for model in ("tiny", *RANKS) for prompt in PROMPTS]
    requests = {name: LoRARequest(name, index, str(path)) for index, (name, path) in enumerate(adapters.items(), 1)}
    outputs = llm.generate(
        [prompt for _, prompt in pairs],
        SamplingParams(temperature=0, max_tokens=MAX_TOKENS),
        lora_request=[requests.get(model) for model, _ in pairs],
    )
    return {pair: output.outputs[0].text for pair, output in zip(pairs, outputs, strict=True)}


def test_the_screen_says_what_is_served(served: Served, tiny_llama: Path) -> None:
    assert f"model      {tiny_llama}, served as tiny, alias" in served.screen
    assert "2 slots" in served.screen
    assert "loaded: one, org/two" in served.screen
    assert "filesystem: " in served.screen


async def test_base_and_adapters_in_parallel_answer_as_offline(
    served: Served, offline: dict[tuple[str, str], str]
) -> None:
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="test-key") as client:

        async def whole(model: str, prompt: str) -> str:
            answer = await client.completions.create(model=model, prompt=prompt, temperature=0, max_tokens=MAX_TOKENS)
            assert answer.model == model
            return answer.choices[0].text

        async def streamed(model: str, prompt: str) -> str:
            stream = await client.completions.create(
                model=model, prompt=prompt, temperature=0, max_tokens=MAX_TOKENS, stream=True
            )
            return "".join([chunk.choices[0].text async for chunk in stream])

        texts = await asyncio.gather(*(ask(model, prompt) for ask in (whole, streamed) for model, prompt in offline))

    assert texts == [*offline.values()] * 2
    assert len(set(texts)) > len(PROMPTS), "the adapters were meant to change the answers"


def test_models_are_listed_with_their_lineage_once_they_were_used(
    client: openai.OpenAI, adapters: dict[str, Path]
) -> None:
    client.completions.create(model="org/four", prompt="x", max_tokens=1)

    cards = {card.id: card.model_dump() for card in client.models.list().data}
    assert [*cards][:4] == ["tiny", "alias", "one", "org/two"]
    assert cards["tiny"]["parent"] is None
    assert (cards["org/four"]["parent"], cards["org/four"]["root"]) == ("tiny", str(adapters["org/four"]))
    assert client.models.retrieve("org/four").owned_by == "loramux"


def test_a_chat_streams_what_it_answers_whole(client: openai.OpenAI) -> None:
    request = {
        "model": "one",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
        "temperature": 0,
        "max_completion_tokens": 10,
    }

    whole = client.chat.completions.create(**request)
    chunks = list(client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}))

    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert whole.usage.completion_tokens <= 10


def test_sampling_with_a_seed_is_repeatable(client: openai.OpenAI) -> None:
    def ask(seed: int) -> list[str]:
        answer = client.completions.create(model="one", prompt="x", n=3, temperature=1, seed=seed, max_tokens=8)
        return [choice.text for choice in answer.choices]

    assert ask(1) == ask(1) != ask(2)
    assert len(set(ask(1))) > 1


def test_logprobs_name_the_chosen_token_as_the_likeliest_when_greedy(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        temperature=0,
        logprobs=True,
        top_logprobs=2,
        max_tokens=3,
    )

    for token in answer.choices[0].logprobs.content:
        assert len(token.top_logprobs) == 2
        assert token.logprob == token.top_logprobs[0].logprob


def test_an_echo_scores_every_token_of_the_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="one", prompt=list(b"hello"), echo=True, max_tokens=0, logprobs=1, extra_body={"min_tokens": 0}
    )

    logprobs = answer.choices[0].logprobs
    assert len(logprobs.token_logprobs) == 5
    assert logprobs.token_logprobs[0] is None
    assert all(value < 0 for value in logprobs.token_logprobs[1:])
    assert answer.usage.completion_tokens == 0


def test_a_prompt_asked_twice_is_cached(client: openai.OpenAI) -> None:
    request = {"model": "one", "prompt": "cache this prompt, please: " * 3, "max_tokens": 1, "temperature": 0}
    client.completions.create(**request)

    usage = client.completions.create(**request).usage

    assert usage.prompt_tokens_details.cached_tokens > 0


@pytest.mark.parametrize(
    ("request_", "error", "code"),
    [
        ({"model": "nobody"}, openai.NotFoundError, "model_not_found"),
        ({"model": "../one"}, openai.NotFoundError, "model_not_found"),
        ({"max_tokens": 100_000}, openai.BadRequestError, "context_length_exceeded"),
        ({"temperature": 5}, openai.BadRequestError, "invalid_value"),
        ({"prompt": [100_000]}, openai.BadRequestError, "invalid_value"),
        ({"best_of": 3}, openai.BadRequestError, "unsupported_parameter"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_arrive_as_the_clients_own(
    client: openai.OpenAI, request_: dict[str, object], error: type[openai.APIStatusError], code: str, stream: bool
) -> None:
    with pytest.raises(error) as caught:
        client.completions.create(**{"model": "one", "prompt": "x", "stream": stream, **request_})

    assert caught.value.code == code


def test_a_wrong_key_is_refused(served: Served) -> None:
    with (
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong") as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.models.list()

    assert caught.value.code == "invalid_api_key"


def test_an_adapter_is_loaded_and_unloaded_at_run_time(
    client: openai.OpenAI, make_adapter: Callable[..., Path]
) -> None:
    folder = make_adapter("e2e/late", rank=2, seed=9)
    too_big = make_adapter("e2e/too-big", rank=65, seed=9)

    loaded = client.post("/load_lora_adapter", cast_to=str, body={"lora_name": "late", "lora_path": str(folder)})
    answer = client.completions.create(model="late", prompt="x", max_tokens=2)
    lora_int_id = client.models.retrieve("late").lora_int_id
    unloaded = client.post("/unload_lora_adapter", cast_to=str, body={"lora_int_id": lora_int_id})

    assert loaded == "Success: LoRA adapter 'late' added successfully."
    assert answer.model == "late"
    assert unloaded == "Success: LoRA adapter 'late' removed successfully."
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="late", prompt="x", max_tokens=2)
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/load_lora_adapter", cast_to=str, body={"lora_name": "big", "lora_path": str(too_big)})
    assert caught.value.code == "adapter_rank_too_high"
