"""ModelRunner: executes one ScheduledBatch on the device and brings back each sequence's next token."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from loramux.adapters.packed import PackedAdapter
from loramux.adapters.weights import BaseModelSpec
from loramux.batch import ScheduledBatch, ScheduledSequence
from loramux.config import EngineArgs
from loramux.errors import ModelUnsupported
from loramux.model.adapter_memory import AdapterMemory, CudaStreams, max_slab_numel
from loramux.model.base_names import base_names
from loramux.model.batch_inputs import build_inputs
from loramux.model.decode_graphs import DecodeGraphs
from loramux.model.decode_inputs import DecodeInputs, is_decode
from loramux.model.ends import lm_head, token_embedding
from loramux.model.forward_context import forward_context
from loramux.model.fused.fuse import FusedModel, fuse
from loramux.model.kv_cache import KVCache, bytes_per_token
from loramux.model.kv_sizing import size_kv_cache
from loramux.model.loader import LoadedModel, check_rope
from loramux.model.lora_model import LoRAModel, describe_base
from loramux.model.probe import ProbeResult, check_fused, probe
from loramux.model.sampler import Sampler, SamplingRow, Unchosen
from loramux.model.step_results import SequenceResult, StepOutput, choose_tokens
from loramux_kernels.backend import use_numba

logger = logging.getLogger(__name__)


class ModelRunner:
    """Owns the model, its KV memory and its adapter slots. Every method belongs to the engine thread.

    `graphs` are the captured decode steps, where `warm_up` could capture them; all other steps are computed eagerly. On
    a CPU a decode step's inputs always lie at the same addresses where `fused.stack` can record it.
    """

    def __init__(self, loaded: LoadedModel, args: EngineArgs) -> None:
        self.loaded = loaded
        probed = probe(loaded.model, args.model)
        gguf_name = getattr(loaded.model.config, "_model_name_or_path", None)  # where transformers puts general.name
        names = base_names(args.base_model_names, args.model, gguf_name=gguf_name)
        self.base = describe_base(loaded.model, names=names, flat_modules=probed.flat_modules)
        self._has_tied_ends = _has_tied_ends(loaded)
        self.fused = _fuse(loaded, probed, args)
        self.lora = _lora(loaded, self.base, args, self.fused)  # before KV memory takes its share of what is free
        self.max_model_len, num_blocks = size_kv_cache(loaded, args, probed.layers)
        check_rope(loaded.model.config, args.model, self.max_model_len)
        self.kv_bytes_per_token = bytes_per_token(probed.layers, loaded.kv_dtype)
        self.kv_cache = KVCache(
            probed.layers,
            num_blocks=num_blocks,
            block_size=args.block_size,
            dtype=loaded.kv_dtype,
            device=loaded.device,
        )
        self.graphs: DecodeGraphs | None = None
        self._row = torch.empty(0, dtype=loaded.dtype, device=loaded.device)  # as rows are, for `use_numba`
        is_recorded = self.fused.stack is not None and use_numba(self._row)
        self._fixed_inputs = self.decode_inputs(args) if is_recorded else None
        self.num_steps = 0
        self._sampler = Sampler()

    def base_weight(self, path: str) -> torch.Tensor:
        """The base weight of the module at a path, as products use it, for checks of its values; any thread may ask."""
        module = self.loaded.model.get_submodule(path)
        if self._has_tied_ends and module is lm_head(self.loaded.model):
            module = token_embedding(self.loaded.model)  # which keeps the weight as it was
        product = self.fused.linears.get(module)
        weight = module.weight if product is None else product.weight_of(module)
        assert isinstance(weight, torch.Tensor)
        return weight

    def decode_inputs(self, args: EngineArgs) -> DecodeInputs:
        """Make room for the inputs of decode steps."""
        max_blocks = -(-self.max_model_len // args.block_size)
        device = self.loaded.device
        return DecodeInputs(self.kv_cache, max_rows=args.max_num_seqs, max_blocks=max_blocks, device=device)

    def place_adapter(self, slot: int, adapter: PackedAdapter) -> None:
        """Fill a slot before the step that uses it."""
        assert self.lora is not None
        self.lora.place(slot, adapter)
        if self._fixed_inputs is not None:
            self._fixed_inputs.forget_segments()

    def prefetch_adapters(self, adapters: Sequence[PackedAdapter]) -> None:
        """Begin to bring adapters to the device whose requests wait, the next one first; steps go on meanwhile."""
        assert self.lora is not None
        self.lora.prefetch(adapters)

    def is_adapter_ready(self, digest: str) -> bool:
        """Whether an adapter that is in no slot can be placed without holding up a step."""
        return self.lora is None or self.lora.is_ready(digest)

    def clear_slot(self, slot: int) -> None:
        """Free the memory of a slot whose adapter was unloaded."""
        assert self.lora is not None
        self.lora.clear(slot)
        if self._fixed_inputs is not None:
            self._fixed_inputs.forget_segments()

    @torch.inference_mode()
    def execute(self, batch: ScheduledBatch, rows: Mapping[str, SamplingRow]) -> dict[str, SequenceResult]:
        """Compute every token of the batch; `rows` has the sampling state of each of its sequences."""
        self.num_steps += 1
        sequences = batch.sequences
        if self.graphs is not None and self.graphs.can_run(sequences):
            output = self.graphs.run(sequences)
        else:
            output = self.compute(sequences)
        results = choose_tokens(self._sampler, sequences, output.logits, rows)
        for request_id in self._clear_unusable(sequences, output):
            results[request_id] = SequenceResult(failed=Unchosen.NO_NUMBERS)
        return results

    @torch.inference_mode()
    def compute(self, sequences: Sequence[ScheduledSequence]) -> StepOutput:
        """Compute a forward pass eagerly, whatever is in it."""
        has_lora = self.lora is not None
        if self._fixed_inputs is not None and is_decode(sequences) and use_numba(self._row):
            inputs = self._fixed_inputs.batch(sequences, has_lora=has_lora)
        else:
            inputs = build_inputs(sequences, self.kv_cache, self.loaded.device, has_lora=has_lora)
        with forward_context(inputs.context):
            logits = self.loaded.model(
                input_ids=inputs.token_ids,
                position_ids=inputs.positions,
                use_cache=False,
                logits_to_keep=inputs.logit_rows,
            ).logits[0]
        kv_slots = inputs.context.kv_slots
        return StepOutput(logits, kv_slots, self.kv_cache.are_usable(kv_slots))

    def _clear_unusable(self, sequences: Sequence[ScheduledSequence], output: StepOutput) -> list[str]:
        """Take numbers that are not finite out of the cache; return the requests whose blocks held some."""
        unusable = output.kv_slots[~output.are_usable]
        if not len(unusable):
            return []
        self.kv_cache.clear(unusable)
        blocks = set((unusable // self.kv_cache.block_size).tolist())
        return [sequence.request_id for sequence in sequences if not blocks.isdisjoint(sequence.block_table)]


def _has_tied_ends(loaded: LoadedModel) -> bool:
    head = lm_head(loaded.model)
    return head is not None and head.weight is token_embedding(loaded.model).weight


def _fuse(loaded: LoadedModel, probed: ProbeResult, args: EngineArgs) -> FusedModel:
    """Give the layers their faster forms, unless the model then computes something else."""
    fused = fuse(loaded.model, probed.flat_modules)
    try:
        check_fused(loaded.model, probed)
    except ModelUnsupported as exc:
        logger.warning("layers not fused model=%s reason=%r", type(loaded.model).__name__, str(exc))
        fused.undo()
    if args.quantization is not None:
        _log_quantization(fused, loaded, args)
    fused.pack(args.quantization)
    return fused


def _log_quantization(fused: FusedModel, loaded: LoadedModel, args: EngineArgs) -> None:
    """Say how much of the model is quantized; raises ModelUnsupported where nothing would be."""
    if not fused.linears:
        raise ModelUnsupported(
            f"model {args.model!r} cannot be quantized: none of its layers has a form in {args.quantization}; "
            "leave quantization out"
        )
    in_products = {id(member.weight) for member in fused.linears}
    module: nn.Module = loaded.model
    others = sum(weight.numel() for weight in module.parameters() if id(weight) not in in_products)
    logger.info("weights quantized form=%s weights=%d others=%d", args.quantization, fused.num_weights, others)


def _lora(loaded: LoadedModel, base: BaseModelSpec, args: EngineArgs, fused: FusedModel) -> LoRAModel | None:
    if not args.enable_lora:
        return None
    return LoRAModel(
        loaded.model,
        base.targets,
        num_slots=args.max_loras,
        max_rank=args.max_lora_rank,
        dtype=loaded.dtype,
        linears=fused.linears,
        memory=None if loaded.device.type == "cpu" else _adapter_memory(loaded, base, args),
    )


def _adapter_memory(loaded: LoadedModel, base: BaseModelSpec, args: EngineArgs) -> AdapterMemory:
    max_numel = max_slab_numel(base.targets, max_rank=args.max_lora_rank, dtype=loaded.dtype)
    return AdapterMemory(
        CudaStreams(), num_slots=args.max_loras, max_numel=max_numel, dtype=loaded.dtype, device=loaded.device
    )
