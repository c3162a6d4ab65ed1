"""Requests share what was computed for a prefix only with those of their own salt and adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loramux import LLM, AsyncLLMEngine, LLMEngine, LoRARequest
from loramux.engine.block_pool import hash_block
from loramux.errors import RequestInvalid
from tiny_engines import engine_args, greedy, kv_bytes, run

PROMPT = [17, 200, 45, 8, 99, 310, 61, 7, 150, 33, 42]


def cached(engine: LLMEngine, salt: str | None, lora: LoRARequest | None = None) -> int:
    engine.add_request("x", PROMPT, greedy(2), lora, cache_salt=salt)
    return run(engine)["x"].num_cached_tokens


def test_a_prefix_is_shared_within_a_salt_and_not_beyond(make_engine: Callable[..., LLMEngine]) -> None:
    engine = make_engine()

    first = [cached(engine, salt) for salt in (None, "a", "b", "None", "base")]
    again = [cached(engine, salt) for salt in (None, "a", "b", "None", "base")]

    assert first == [0] * 5
    assert again == [8] * 5


def test_equal_salts_do_not_join_adapters(
    make_engine: Callable[..., LLMEngine], make_adapter: Callable[..., Path]
) -> None:
    engine = make_engine()
    adapter = LoRARequest("r8", 1, str(make_adapter("r8", rank=8, seed=1)))

    assert [cached(engine, "a"), cached(engine, "a", adapter), cached(engine, "a", adapter)] == [0, 0, 8]


def test_no_digest_and_salt_read_like_another_pair() -> None:
    pairs = [(None, None), (None, "a"), ("a", None), ("a", "a"), ("a', 'a", None), (None, "None"), ("None", None)]
    assert len({hash_block(None, [1, 2], *pair) for pair in pairs}) == len(pairs)


def test_an_offline_prompt_may_bring_its_salt(tiny_llama: Path) -> None:
    llm = LLM(str(tiny_llama), max_model_len=64, kv_cache_memory_bytes=kv_bytes(64), block_size=4)
    prompts: list[Any] = [
        {"prompt_token_ids": PROMPT, "cache_salt": "a"},
        {"prompt_token_ids": PROMPT},
        {"prompt_token_ids": PROMPT, "cache_salt": "a"},
        {"prompt": "The quick brown fox jumps", "cache_salt": "a"},
    ]
    try:
        outputs = [llm.generate(prompt, greedy(2), use_tqdm=False)[0] for prompt in prompts]
    finally:
        llm.llm_engine.shutdown()

    assert [output.num_cached_tokens for output in outputs] == [0, 0, 8, 0]
    assert outputs[3].prompt == "The quick brown fox jumps"


async def test_beside_an_event_loop_it_is_the_same(tiny_llama: Path) -> None:
    engine = AsyncLLMEngine.from_engine_args(engine_args(tiny_llama))
    found = []
    try:
        for salt in ("a", "b", "a"):
            outputs = [output async for output in engine.generate(PROMPT, greedy(1), "x", cache_salt=salt)]
            found.append(outputs[-1].num_cached_tokens)
    finally:
        engine.shutdown()

    assert found == [0, 0, 8]


@pytest.mark.parametrize("salt", ["", 3, b"a"])
def test_a_salt_that_is_none_is_refused(shared_engine: LLMEngine, salt: Any) -> None:
    for prompt, argument in ((PROMPT, salt), ({"prompt_token_ids": PROMPT, "cache_salt": salt}, None)):
        with pytest.raises(RequestInvalid, match="cache_salt must be a non-empty string") as refused:
            shared_engine.add_request("x", prompt, greedy(), cache_salt=argument)  # type: ignore[arg-type]
        assert refused.value.param == "cache_salt"
