"""Keys and values in 16 bits beside a model of float32: what answers are then, how much fits, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from loramux import EngineArgs, LLMEngine
from loramux.errors import ConfigInvalid
from loramux.model.loader import load_model
from loramux_kernels import select_backend
from loramux_kernels.attention import as_kept
from tiny_engines import PROMPTS, Reference, engine_args, greedy, run, staggered, three_adapters

MakeAdapter = Callable[..., Path]

DTYPES = ["float16", "bfloat16"]


class RoundedCache(DynamicCache):
    """transformers' own cache, which keeps rounded keys and values."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        rounded = (as_kept(states, self._dtype).float() for states in (key_states, value_states))
        return super().update(*rounded, *args, **kwargs)


class RoundedReference(Reference):
    """transformers + PEFT with a cache of 16 bits."""

    def __init__(self, folder: Path, dtype: str) -> None:
        super().__init__(folder)
        self._dtype = getattr(torch, dtype)

    @torch.inference_mode()
    def logprobs(self, tokens: Sequence[int], adapter: Path | None = None) -> torch.Tensor:
        cache = RoundedCache(self._dtype)
        logits = self._model(adapter)(input_ids=torch.tensor([list(tokens)]), cache=cache).logits[0]
        return logits.log_softmax(dim=-1)


@pytest.mark.parametrize("kv_cache_dtype", DTYPES)
def test_a_mixed_batch_is_transformers_and_peft_with_a_rounded_cache(
    tiny_llama: Path, make_adapter: MakeAdapter, kv_cache_dtype: str
) -> None:
    reference = RoundedReference(tiny_llama, kv_cache_dtype)
    owners = [None, *three_adapters(make_adapter)]
    engine = LLMEngine(engine_args(tiny_llama, max_loras=3, kv_cache_dtype=kv_cache_dtype))

    answers = staggered(engine, owners)

    for index, (tokens, owner) in enumerate(zip(answers, owners, strict=True)):
        adapter = None if owner is None else Path(owner.lora_path)
        assert tokens == reference.greedy(PROMPTS[index], len(tokens), adapter)


@pytest.mark.parametrize("kv_cache_dtype", DTYPES)
def test_keys_and_values_are_rounded_as_the_type_says_and_not_otherwise(tiny_llama: Path, kv_cache_dtype: str) -> None:
    engine = LLMEngine(engine_args(tiny_llama, kv_cache_dtype=kv_cache_dtype))
    prompt = [*range(3, 40)]
    engine.add_request("a", prompt, greedy(8, logprobs=1))
    answer = run(engine)["a"].outputs[0]
    tokens = [*prompt, *answer.token_ids]

    def distance(reference: Reference) -> float:
        rows = reference.logprobs(tokens)[len(prompt) - 1 : -1]
        want = sum(float(row[token]) for row, token in zip(rows, answer.token_ids, strict=True))
        assert answer.cumulative_logprob is not None
        return abs(answer.cumulative_logprob - want)

    assert distance(RoundedReference(tiny_llama, kv_cache_dtype)) < 0.1 * distance(Reference(tiny_llama))


@pytest.mark.parametrize("kv_cache_dtype", DTYPES)
def test_neither_neighbours_nor_chunks_nor_a_cached_prefix_change_an_answer(
    tiny_llama: Path, kv_cache_dtype: str
) -> None:
    prompt = [*range(3, 40)]
    alone = LLMEngine(engine_args(tiny_llama, kv_cache_dtype=kv_cache_dtype, enable_prefix_caching=False))
    alone.add_request("alone", prompt, greedy(8, logprobs=2))
    together = LLMEngine(engine_args(tiny_llama, kv_cache_dtype=kv_cache_dtype, max_num_batched_tokens=10))
    for name, given in {"a": prompt, "b": prompt[:17], "c": [*PROMPTS[1]], "d": prompt[4:]}.items():
        together.add_request(name, given, greedy(8, logprobs=2))

    want, got = run(alone)["alone"].outputs[0], run(together)["a"].outputs[0]
    together.add_request("again", prompt, greedy(8, logprobs=2))
    again = run(together)["again"]

    assert again.num_cached_tokens > 0
    assert got.token_ids == again.outputs[0].token_ids == want.token_ids
    assert got.cumulative_logprob == again.outputs[0].cumulative_logprob == want.cumulative_logprob


@pytest.mark.parametrize("kv_cache_dtype", DTYPES)
def test_the_reference_in_torch_gives_the_same_answers(tiny_llama: Path, kv_cache_dtype: str) -> None:
    by_loops = staggered(LLMEngine(engine_args(tiny_llama, kv_cache_dtype=kv_cache_dtype)), [None] * 3)
    select_backend("torch")
    try:
        by_torch = staggered(LLMEngine(engine_args(tiny_llama, kv_cache_dtype=kv_cache_dtype)), [None] * 3)
    finally:
        select_backend(None)
    assert by_loops == by_torch


def test_twice_as_many_tokens_fit_and_steps_are_still_recorded(tiny_llama: Path) -> None:
    whole = LLMEngine(engine_args(tiny_llama, max_num_seqs=64))
    halved = LLMEngine(engine_args(tiny_llama, max_num_seqs=64, kv_cache_dtype="float16"))
    assert (whole.summary().kv_cache_dtype, halved.summary().kv_cache_dtype) == ("float32", "float16")
    assert halved.summary().kv_tokens == 2 * whole.summary().kv_tokens
    assert halved.summary().kv_bytes == whole.summary().kv_bytes

    staggered(halved, [None])
    staggered(whole, [None])

    for engine in (whole, halved):
        stack = engine.runner.fused.stack
        assert stack is not None
        assert stack.num_replays == whole.runner.num_steps - 2  # of which one is the prompt, one is recorded


@pytest.mark.parametrize(("kv_cache_dtype", "dtype"), [("float16", "bfloat16"), ("bfloat16", "float16")])
def test_a_model_of_another_16_bit_type_is_refused_before_loading(
    tiny_llama: Path, kv_cache_dtype: str, dtype: str
) -> None:
    message = rf"kv_cache_dtype '{kv_cache_dtype}' is for a model that a CPU computes in float32.* dtype {dtype}"
    with pytest.raises(ConfigInvalid, match=message):
        load_model(EngineArgs(model=str(tiny_llama), kv_cache_dtype=kv_cache_dtype, dtype=dtype))  # type: ignore[arg-type]


def test_the_type_that_a_model_computes_in_anyway_is_no_other(tiny_llama: Path) -> None:
    loaded = load_model(EngineArgs(model=str(tiny_llama), kv_cache_dtype="bfloat16", dtype="bfloat16"))
    assert loaded.kv_dtype is loaded.dtype is torch.bfloat16
