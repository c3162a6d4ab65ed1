"""The probe: before a model serves anyone, a few tokens are computed both ways, paged and by transformers itself.

A family whose attention does not go through the interface, goes through it twice, or means something that we do not
compute, is refused by what it does, not by its name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loramux.batch import BASE_SLOT, ScheduledSequence
from loramux.errors import ModelUnsupported
from loramux.model.attention import ATTENTION_NAME
from loramux.model.batch_inputs import build_inputs
from loramux.model.ends import lm_head, token_embedding, vocab_size
from loramux.model.forward_context import WindowRecord, forward_context
from loramux.model.kv_cache import KVCache, LayerShape

BLOCK_SIZE = 4
LENGTHS = (11, 7)  # tokens of the two probe sequences; not multiples of the block size
FIRST_CHUNK = (6, 6)  # tokens of each that the first pass computes
RELATIVE_TOLERANCE = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """layers: what each attention layer caches. flat_modules: linear layers that work on the batch's rows in order.

    logits: [num_prompts, vocab], the model's own after the probe's prompts.
    """

    layers: tuple[LayerShape, ...]
    flat_modules: frozenset[str]
    logits: torch.Tensor


class _ProbeCache(KVCache):
    """A tiny cache that learns the layers' shapes from what they write, and counts the writes."""

    def __init__(self, num_blocks: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__((), num_blocks=num_blocks, block_size=BLOCK_SIZE, dtype=dtype, device=device)
        self.layers: dict[int, LayerShape] = {}
        self.writes: Counter[int] = Counter()

    def write(self, layer: int, key: torch.Tensor, value: torch.Tensor, kv_slots: torch.Tensor) -> None:
        self.writes[layer] += 1
        if layer not in self.layers:
            if layer != len(self.layers):
                raise ModelUnsupported(f"attention layer {len(self.layers)} does not use the attention interface")
            self.layers[layer] = LayerShape(key.shape[1], key.shape[2], value.shape[2])
            self.keys.append(key.new_zeros(self.num_blocks, self.block_size, *key.shape[1:]))
            self.values.append(value.new_zeros(self.num_blocks, self.block_size, *value.shape[1:]))
        super().write(layer, key, value, kv_slots)


FORWARD_FAILURES = (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError, AssertionError)
"""What the forward pass of a model may raise that is given something else than it was written for."""


def probe(model: PreTrainedModel, name: str) -> ProbeResult:
    """Check that the paged forward pass equals the model's own; raises ModelUnsupported with the reason."""
    try:
        return _probe(model)
    except ModelUnsupported as exc:
        raise ModelUnsupported(f"model {name!r} ({type(model).__name__}) cannot be served: {exc}") from exc
    except FORWARD_FAILURES as exc:
        raise ModelUnsupported(
            f"model {name!r} ({type(model).__name__}) cannot be served: its forward pass does not take a flattened "
            f"batch ({type(exc).__name__}: {exc})"
        ) from exc


@torch.inference_mode()
def check_fused(model: PreTrainedModel, probed: ProbeResult) -> None:
    """Check that a model whose layers were replaced still gives its own logits; raises ModelUnsupported if not."""
    prompts = _prompts(model)
    cache = KVCache(
        probed.layers, num_blocks=_num_blocks(prompts), block_size=BLOCK_SIZE, dtype=model.dtype, device=model.device
    )
    try:
        for is_first in (True, False):
            logits = _paged_logits(model, cache, prompts, WindowRecord(), is_first=is_first)
    except FORWARD_FAILURES as exc:
        raise ModelUnsupported(f"{type(exc).__name__}: {exc}") from exc
    _check_equal(logits, probed.logits, model.dtype)


@torch.inference_mode()
def _probe(model: PreTrainedModel) -> ProbeResult:
    prompts = _prompts(model)
    expected = torch.stack([_own_logits(model, prompt) for prompt in prompts])
    num_layers = int(model.config.get_text_config(decoder=True).num_hidden_layers)
    cache = _ProbeCache(_num_blocks(prompts), model.dtype, model.device)
    windows = WindowRecord()
    with _record_flat_modules(model) as flat_modules:
        for is_first in (True, False):
            logits = _paged_logits(model, cache, prompts, windows, is_first=is_first)
            _check_writes(cache, num_layers)
    _check_windows(windows)
    _check_equal(logits, expected, model.dtype)
    return ProbeResult(tuple(cache.layers[index] for index in range(num_layers)), frozenset(flat_modules), expected)


def _num_blocks(prompts: list[list[int]]) -> int:
    return -(-max(LENGTHS) // BLOCK_SIZE) * len(prompts)


def _prompts(model: PreTrainedModel) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(vocab_size(model), (length,), generator=generator).tolist() for length in LENGTHS]


def _own_logits(model: PreTrainedModel, prompt: list[int]) -> torch.Tensor:
    """The logits [vocab] after the last token, by transformers' own attention."""
    model.set_attn_implementation("eager")
    try:
        logits = model(input_ids=torch.tensor([prompt], device=model.device), use_cache=False).logits
    finally:
        model.set_attn_implementation(ATTENTION_NAME)
    assert isinstance(logits, torch.Tensor)
    return logits[0, -1]


def _paged_logits(
    model: PreTrainedModel, cache: KVCache, prompts: list[list[int]], windows: WindowRecord, *, is_first: bool
) -> torch.Tensor:
    """The logits [num_prompts, vocab] after the last token computed so far: the first chunk, or the rest."""
    sequences = []
    for index, (prompt, split) in enumerate(zip(prompts, FIRST_CHUNK, strict=True)):
        tokens = prompt[:split] if is_first else prompt[split:]
        blocks_each = cache.num_blocks // len(prompts)
        sequences.append(
            ScheduledSequence(
                request_id=str(index),
                token_ids=tuple(tokens),
                position=0 if is_first else split,
                # blocks out of order, as a pool hands them out after a while
                block_table=tuple(range((index + 1) * blocks_each - 1, index * blocks_each - 1, -1)),
                slot=BASE_SLOT,
                num_logits=1,
                samples=True,
            )
        )
    inputs = build_inputs(sequences, cache, model.device, has_lora=False)
    inputs.context.windows = windows
    with forward_context(inputs.context):
        logits = model(
            input_ids=inputs.token_ids,
            position_ids=inputs.positions,
            use_cache=False,
            logits_to_keep=inputs.logit_rows,
        ).logits
    assert isinstance(logits, torch.Tensor)
    if logits.shape[1] != len(prompts):
        raise ModelUnsupported("its forward pass ignores logits_to_keep")
    return logits[0]


def _check_writes(cache: _ProbeCache, num_layers: int) -> None:
    silent = [layer for layer in range(num_layers) if layer not in cache.writes]
    if silent:
        raise ModelUnsupported(f"layers {silent} keep state outside the attention interface")
    repeated = [layer for layer, count in cache.writes.items() if count != 1]
    if repeated:
        raise ModelUnsupported(f"layers {repeated} call attention more than once per pass")
    cache.writes.clear()


def _check_windows(windows: WindowRecord) -> None:
    """A window that only a mask knows of is one that paged attention would not apply to long prompts."""
    if windows.asked != windows.passed:
        raise ModelUnsupported(
            f"it masks attention to windows of {sorted(windows.asked)} tokens, its layers to {sorted(windows.passed)}"
        )


def _check_equal(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    difference = float((got - expected).abs().max())
    allowed = RELATIVE_TOLERANCE[dtype] * max(1e-3, float(expected.abs().max()))
    if not difference <= allowed:
        raise ModelUnsupported(
            f"its paged logits differ by {difference:.2g} from transformers' own (allowed {allowed:.2g})"
        )


@contextmanager
def _record_flat_modules(model: PreTrainedModel) -> Iterator[set[str]]:
    """Collect the paths of linear and embedding layers that see every row of every pass, in batch order, once."""
    seen: Counter[str] = Counter()
    odd: set[str] = set()
    embedding, head = token_embedding(model), lm_head(model)
    handles = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) or module is embedding:

            def watch(
                watched: nn.Module, arguments: tuple[torch.Tensor, ...], _output: object, path: str = path
            ) -> None:
                seen[path] += 1
                rows = arguments[0].numel() if watched is embedding else arguments[0].shape[:-1].numel()
                if rows != _expected_rows(seen[path], is_lm_head=watched is head):
                    odd.add(path)

            handles.append(module.register_forward_hook(watch))
    flat: set[str] = set()
    try:
        yield flat
    finally:
        for handle in handles:
            handle.remove()
    flat.update(path for path, count in seen.items() if count == 2 and path not in odd)


def _expected_rows(pass_number: int, *, is_lm_head: bool) -> int:
    if is_lm_head:
        return len(LENGTHS)
    return sum(FIRST_CHUNK) if pass_number == 1 else sum(LENGTHS) - sum(FIRST_CHUNK)
