"""The anchor of correctness: a mixed batch under pressure == each request alone through transformers + PEFT.

`check_family` serves base and five adapters of one family together, with more adapters than slots, a token budget that
cuts prompts into chunks and so few KV blocks that sequences are preempted, and compares every logit with the reference.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from loramux import LLM, LoRARequest, RequestOutput, SamplingParams
from loramux.model.sampler import SampledToken, Sampler, SamplingRow
from tiny_models import FAMILIES, VOCAB_SIZE, build_adapter, build_model

RANKS = (1, 4, 8, 17, 64)
MAX_TOKENS = 14
LOGIT_TOLERANCE = 1e-4
TIE_GAP = 1e-4
BLOCK_SIZE = 4


@dataclass
class FamilyReport:
    """What a family's check found; `wrong` holds one line per token that should have been another."""

    family: str
    num_requests: int = 0
    num_tokens: int = 0
    max_logit_error: float = 0.0
    num_preemptions: int = 0
    num_placements: int = 0
    num_cached_tokens: int = 0
    ties: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class RecordingSampler(Sampler):
    """Keeps the logits of every sampled row, under the identity of its sampling state."""

    def __init__(self) -> None:
        self.logits: dict[int, list[torch.Tensor]] = {}
        self.rows: dict[int, SamplingRow] = {}

    def sample(self, logits: torch.Tensor, rows: Sequence[SamplingRow]) -> list[SampledToken | None]:
        for row_logits, row in zip(logits, rows, strict=True):
            self.rows[id(row)] = row
            self.logits.setdefault(id(row), []).append(row_logits.clone())
        return super().sample(logits, rows)

    def logits_of(self, output: RequestOutput) -> torch.Tensor:
        """[num_tokens, vocab] of the answer whose tokens and prompt these are."""
        (match,) = [
            key
            for key, row in self.rows.items()
            if list(row.prompt_token_ids) == output.prompt_token_ids
            and list(row.output_token_ids) == output.outputs[0].token_ids
        ]
        return torch.stack(self.logits.pop(match))


def check_family(family: str, root: Path) -> FamilyReport:
    """Serve one family's requests in a mixed batch and hold every one of them against the reference."""
    folder = build_model(root / family, family)
    adapters = _adapters(family, folder, root)
    prompts, owners = _requests(adapters)
    report = FamilyReport(family, num_requests=len(prompts))
    outputs, recorder = _serve(folder, prompts, owners, report)
    with reference_model(folder, adapters) as reference:
        for output, owner in zip(outputs, owners, strict=True):
            _compare(report, output, recorder.logits_of(output), reference.logits(output, owner))
    return report


def _adapters(family: str, folder: Path, root: Path) -> dict[str, Path]:
    """Five adapters of different ranks; each leaves out another of the family's targets."""
    targets = list(FAMILIES[family][2])
    adapters = {}
    for index, rank in enumerate(RANKS):
        some = [target for place, target in enumerate(targets) if place % len(RANKS) != index] or targets
        options: dict[str, object] = {"fan_in_fan_out": family == "gpt2"}
        if rank == 17:
            options |= {"use_rslora": True, "lora_alpha": 8}
        if rank == 8:
            options |= {"rank_pattern": {some[0]: 3}, "alpha_pattern": {some[-1]: 5}}
        name = f"{family}-r{rank}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT explains itself on embeddings and tied weights
            adapters[name] = build_adapter(folder, root / name, rank=rank, targets=some, seed=rank, **options)
    return adapters


def _requests(adapters: dict[str, Path]) -> tuple[list[list[int]], list[LoRARequest | None]]:
    """Three prompts per owner: one of its own, and two that begin alike for everybody."""
    generator = torch.Generator().manual_seed(1)

    def tokens(count: int) -> list[int]:
        return torch.randint(4, VOCAB_SIZE, (count,), generator=generator).tolist()

    shared = tokens(21)
    owners: list[LoRARequest | None] = [None]
    owners += [LoRARequest(name, index, str(path)) for index, (name, path) in enumerate(adapters.items(), 1)]
    prompts, whose = [], []
    for length, prefix in ((1, []), (17, shared), (6, shared)):
        for index, owner in enumerate(owners):
            prompts.append([*prefix, *tokens(length + index)])
            whose.append(owner)
    return prompts, whose


def _serve(
    folder: Path, prompts: list[list[int]], owners: list[LoRARequest | None], report: FamilyReport
) -> tuple[list[RequestOutput], RecordingSampler]:
    kv_heads_bytes = _bytes_per_token(folder)
    llm = LLM(
        str(folder),
        enable_lora=True,
        max_loras=2,
        max_cpu_loras=4,
        slot_wait_limit=2,
        max_num_seqs=8,
        max_num_batched_tokens=16,
        block_size=BLOCK_SIZE,
        kv_cache_memory_bytes=kv_heads_bytes * BLOCK_SIZE * 40,
    )
    recorder = RecordingSampler()
    llm.llm_engine.runner._sampler = recorder
    params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, ignore_eos=True)
    outputs = llm.generate(prompts, params, lora_request=owners, use_tqdm=False)
    engine = llm.llm_engine
    report.num_preemptions = engine.scheduler.num_preemptions
    report.num_cached_tokens = sum(output.num_cached_tokens for output in outputs)
    assert engine.runner.lora is not None
    report.num_placements = engine.runner.lora.num_placements
    counters = engine.counters()
    assert counters.pop("free_blocks") == engine.block_pool.num_blocks
    assert not any(counters.values()), counters
    engine.block_pool.check_integrity()
    engine.slots.check_integrity()
    engine.shutdown()
    return outputs, recorder


def _bytes_per_token(folder: Path) -> int:
    llm = LLM(str(folder), kv_cache_memory_bytes=10**6)
    llm.llm_engine.shutdown()
    return llm.llm_engine.runner.kv_bytes_per_token


class Reference:
    """transformers + PEFT, one request at a time."""

    def __init__(self, model: PeftModel) -> None:
        self.model = model

    @torch.inference_mode()
    def logits(self, output: RequestOutput, owner: LoRARequest | None) -> torch.Tensor:
        """[num_tokens, vocab]: the logits from which each token of the answer had to be chosen."""
        answer = output.outputs[0].token_ids
        tokens = torch.tensor([output.prompt_token_ids + answer[:-1]])
        if owner is None:
            with self.model.disable_adapter():
                logits = self.model(input_ids=tokens, use_cache=False).logits
        else:
            self.model.set_adapter(owner.lora_name)
            logits = self.model(input_ids=tokens, use_cache=False).logits
        return logits[0, len(output.prompt_token_ids) - 1 :]


@contextmanager
def reference_model(folder: Path, adapters: dict[str, Path]) -> Iterator[Reference]:
    """Load the base with every adapter beside each other in PEFT."""
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model: PeftModel | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, path in adapters.items():
            if model is None:
                model = PeftModel.from_pretrained(base, path, adapter_name=name)
            else:
                model.load_adapter(path, adapter_name=name)
        assert model is not None
        yield Reference(model.eval())


def _compare(report: FamilyReport, output: RequestOutput, got: torch.Tensor, expected: torch.Tensor) -> None:
    name = output.lora_request.lora_name if output.lora_request else "base"
    report.max_logit_error = max(report.max_logit_error, float((got - expected).abs().max()))
    report.num_tokens += len(expected)
    for step, (token, logits) in enumerate(zip(output.outputs[0].token_ids, expected, strict=True)):
        best = logits.topk(2)
        if token == int(best.indices[0]):
            continue
        line = f"{name} prompt={len(output.prompt_token_ids)} step={step}: {token}, expected {int(best.indices[0])}"
        is_tie = float(best.values[0] - best.values[1]) < TIE_GAP
        (report.ties if is_tie else report.wrong).append(line)
