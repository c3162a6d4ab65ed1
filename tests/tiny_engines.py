"""Engines over the tiny Llama, driven by hand, and the reference to hold their answers against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from loramux import EngineArgs, LLMEngine, LoRARequest, RequestOutput, SamplingParams

PROMPTS = ([17, 200, 45, 8, 99], [5, 6, 250, 251, 9, 77, 3], [61], [7, 150, 33, 42, 1, 2, 3, 4, 5], [310, 20])


class Reference:
    """transformers, and PEFT on top, one sequence at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._models: dict[str | None, torch.nn.Module] = {}

    @torch.inference_mode()
    def logprobs(self, tokens: Sequence[int], adapter: Path | None = None) -> torch.Tensor:
        """[num_tokens, vocab]: row i is about token i + 1."""
        logits = self._model(adapter)(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0]
        return logits.log_softmax(dim=-1)

    def greedy(self, prompt: Sequence[int], num_tokens: int, adapter: Path | None = None) -> list[int]:
        tokens = list(prompt)
        for _ in range(num_tokens):
            tokens.append(int(self.logprobs(tokens, adapter)[-1].argmax()))
        return tokens[len(prompt) :]

    def _model(self, adapter: Path | None) -> torch.nn.Module:
        key = None if adapter is None else str(adapter)
        if key not in self._models:
            model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
            self._models[key] = (model if adapter is None else PeftModel.from_pretrained(model, adapter)).eval()
        return self._models[key]


def engine_args(model: Path, **changes: object) -> EngineArgs:
    """Small everything: blocks of 4 tokens, 64 of them, two slots."""
    options: dict[str, object] = {
        "enable_lora": True,
        "max_loras": 2,
        "max_cpu_loras": 4,
        "block_size": 4,
        "kv_cache_memory_bytes": kv_bytes(64),
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        **changes,
    }
    return EngineArgs(model=str(model), **options)  # type: ignore[arg-type]


def kv_bytes(num_blocks: int, block_size: int = 4) -> int:
    """The memory of so many blocks for the tiny Llama: 2 layers, 2 KV heads of 16 keys and 16 values in float32."""
    return num_blocks * block_size * 2 * 2 * 32 * 4


def assert_idle(engine: LLMEngine) -> None:
    """Nothing is held by anybody, and the books balance."""
    counters = engine.counters()
    assert counters.pop("free_blocks") == engine.block_pool.num_blocks
    assert not any(counters.values()), counters
    assert not engine.has_unfinished_requests()
    assert not engine._sequences
    engine.block_pool.check_integrity()
    engine.slots.check_integrity()


def run(engine: LLMEngine) -> dict[str, RequestOutput]:
    """Step to the end; return the last output of every request."""
    last: dict[str, RequestOutput] = {}
    while engine.has_unfinished_requests():
        last |= {output.request_id: output for output in engine.step()}
    return last


def answer(
    engine: LLMEngine,
    prompt: object,
    params: SamplingParams,
    lora: LoRARequest | None = None,
) -> RequestOutput:
    """Run one request alone to its end."""
    engine.add_request("the one", prompt, params, lora)  # type: ignore[arg-type]
    return run(engine)["the one"]


def greedy(num_tokens: int = 6, **changes: object) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": num_tokens, "ignore_eos": True, **changes})  # type: ignore[arg-type]


def staggered(engine: LLMEngine, owners: Sequence[LoRARequest | None]) -> list[list[int]]:
    """The tokens of answers that end one after the other, so that the batch shrinks by and by; PROMPTS in turn."""
    for index, owner in enumerate(owners):
        engine.add_request(str(index), PROMPTS[index % len(PROMPTS)], greedy(4 + 3 * index), owner)  # type: ignore[arg-type]
    outputs = run(engine)
    return [outputs[str(index)].outputs[0].token_ids for index in range(len(owners))]


def three_adapters(make_adapter: Callable[..., Path]) -> list[LoRARequest]:
    """Of ranks 8, 3 and 17."""
    return [
        LoRARequest(f"r{rank}", number, str(make_adapter(f"r{rank}", rank=rank, seed=rank)))
        for number, rank in enumerate((8, 3, 17), 1)
    ]
