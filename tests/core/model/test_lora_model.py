"""Where LoRA can act on a base model, and what a slot does to the rows that use it, and to no others."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from loramux.adapters.packed import PackedAdapter, pack
from loramux.adapters.weights import AdapterWeights, BaseModelSpec, LoRATarget, ModuleWeights
from loramux.batch import BASE_SLOT, ScheduledSequence
from loramux.model.attention import ATTENTION_NAME
from loramux.model.batch_inputs import build_inputs
from loramux.model.forward_context import forward_context
from loramux.model.kv_cache import KVCache, LayerShape
from loramux.model.lora_model import LoRAModel, describe_base
from loramux.model.probe import probe
from tiny_models import build_model
from triton_process import run

UP = "model.layers.0.mlp.up_proj"


def load(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=ATTENTION_NAME
    )
    return model.eval().requires_grad_(False)


def describe(model: PreTrainedModel) -> BaseModelSpec:
    return describe_base(model, names=("m",), flat_modules=probe(model, "m").flat_modules)


@pytest.fixture
def model(tiny_llama: Path) -> PreTrainedModel:
    return load(tiny_llama)


CPU = torch.device("cpu")


def packed(name: str, rank: int, *, scaling: float = 1.0, device: torch.device = CPU) -> PackedAdapter:
    generator = torch.Generator().manual_seed(rank)
    module = ModuleWeights(
        torch.randn(rank, 64, generator=generator), torch.randn(96, rank, generator=generator), scaling
    )
    return pack(AdapterWeights(name, name, {UP: module}, 0), torch.float32, device)


def test_a_dense_model_is_described_whole(model: PreTrainedModel) -> None:
    spec = describe(model)

    assert spec.targets["model.embed_tokens"] == LoRATarget("embedding", 320, 64)
    assert spec.targets["lm_head"] == LoRATarget("lm_head", 64, 320)
    assert spec.targets[UP] == LoRATarget("linear", 64, 96)
    assert len(spec.targets) == 2 + 2 * 7
    assert spec.unservable == {}
    assert (spec.names, spec.architecture, spec.vocab_size) == (("m",), "LlamaForCausalLM", 320)


def test_gpt2s_conv1d_is_described_by_what_goes_in_and_out(tmp_path: Path) -> None:
    spec = describe(load(build_model(tmp_path / "gpt2", "gpt2")))

    assert spec.targets["transformer.h.0.attn.c_attn"] == LoRATarget("conv1d", 64, 192)
    assert "transformer.wpe" in spec.unservable, "positions are not token ids"


def test_experts_and_routers_are_unservable_by_name(tmp_path: Path) -> None:
    spec = describe(load(build_model(tmp_path / "moe", "qwen3_moe")))

    unservable = {path.removeprefix("model.layers.0.mlp") for path in spec.unservable if ".layers.0." in path}
    assert {".experts", ".gate"} & unservable
    assert "model.layers.0.self_attn.q_proj" in spec.targets
    assert not any(".mlp." in path for path in spec.targets)
    assert all("cannot be served" in reason for reason in spec.unservable.values())


def test_packing_folds_the_scaling_into_b_and_keeps_one_slab() -> None:
    adapter = packed("a", 4, scaling=0.5)
    plain = packed("a", 4)

    module = adapter.modules[UP]
    assert torch.equal(module.b, plain.modules[UP].b * 0.5)
    assert torch.equal(module.a, plain.modules[UP].a)
    assert module.a.untyped_storage().data_ptr() == module.b.untyped_storage().data_ptr()
    assert adapter.nbytes == 4 * (64 + 96) * 4


@pytest.mark.parametrize(
    ("stored", "scaling", "serving", "device", "kept"),
    [
        (("float16", "float16"), 1.0, "float32", "cpu", "float16"),
        (("bfloat16", "bfloat16"), 4.0, "float32", "cpu", "bfloat16"),
        (("float16", "float16"), 1 / 3, "float32", "cpu", "float32"),  # no longer exact
        (("bfloat16", "float16"), 1.0, "float32", "cpu", "float32"),
        (("float32", "float32"), 1.0, "float32", "cpu", "float32"),
        (("float16", "float16"), 1.0, "bfloat16", "cpu", "bfloat16"),
        (("float16", "float16"), 1.0, "float32", "meta", "float32"),  # a GPU's kernels read the dtype of the rows
    ],
)
def test_an_adapter_of_16_bits_stays_one_where_nothing_is_lost(
    stored: tuple[str, str], scaling: float, serving: str, device: str, kept: str
) -> None:
    a, b = (
        torch.randn(shape).to(getattr(torch, dtype)) for shape, dtype in zip(((4, 64), (96, 4)), stored, strict=True)
    )
    weights = AdapterWeights("a", "a", {UP: ModuleWeights(a, b, scaling)}, 0)
    adapter = pack(weights, getattr(torch, serving), torch.device(device))
    module = adapter.modules[UP]
    assert adapter.slab.dtype is getattr(torch, kept)
    if serving == "float32":
        assert torch.equal(module.a.float(), a.float())
        assert torch.equal(module.b.float(), b.float() * scaling)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_modules_of_all_shapes_ranks_and_scalings_are_packed_in_their_order(dtype: torch.dtype, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 64, 96), (4, 64, 32), (4, 64, 96), (17, 64, 96), (1, 3, 5), (4, 64, 32), (4, 96, 64)]
    modules = {
        f"m{9 - number}": ModuleWeights(
            torch.randn(rank, width, generator=generator).to(dtype),
            torch.randn(out, rank, generator=generator).to(dtype),
            scaling=(1.0, 2.0, 1 / 3)[number % 3],
        )
        for number, (rank, width, out) in enumerate(shapes)
    }
    adapter = pack(AdapterWeights("a", "a", modules, 0), torch.float32, torch.device(device))

    assert list(adapter.modules) == list(modules)
    for path, module in modules.items():
        packed_module = adapter.modules[path]
        assert torch.equal(packed_module.a, module.a.float())
        assert torch.equal(packed_module.b, module.b.float() * module.scaling)
        assert [tensor.storage_offset() * 4 % 256 for tensor in (packed_module.a, packed_module.b)] == [0, 0]
        assert packed_module.a.is_contiguous()
        assert packed_module.b.t().is_contiguous()


@pytest.mark.parametrize("rank", [1, 4, 17])
def test_every_tensor_of_a_slab_begins_at_a_multiple_of_256_bytes(rank: int) -> None:
    """B lies as its transpose, so that no rank moves the rows of either off the vectors that kernels load."""
    adapter = packed("a", rank, device=torch.device("meta"))
    module = adapter.modules[UP]
    assert [tensor.storage_offset() * 4 % 256 for tensor in (module.a, module.b)] == [0, 0]
    assert module.a.is_contiguous()
    assert module.b.t().is_contiguous()
    assert adapter.slab.numel() * 4 % 256 == 0


def test_an_adapter_placed_in_other_memory_is_read_from_there() -> None:
    adapter = packed("a", 4)
    memory = torch.full((3 + adapter.slab.numel() + 5,), float("nan"))
    memory[3:-5] = adapter.slab

    placed = adapter.placed_in(memory[3:])

    for name in ("a", "b"):
        before, after = getattr(adapter.modules[UP], name), getattr(placed.modules[UP], name)
        assert torch.equal(after, before)
        assert after.stride() == before.stride()
        assert after.untyped_storage().data_ptr() == memory.data_ptr()


def run_up_proj(model: PreTrainedModel, x: torch.Tensor, slots: list[int]) -> torch.Tensor:
    """x: [rows, 64], one sequence of one token per row."""
    device = torch.device("cpu")
    cache = KVCache([LayerShape(1, 1, 1)], num_blocks=8, block_size=1, dtype=torch.float32, device=device)
    sequences = [ScheduledSequence(str(row), (1,), 0, (row,), slot, 1, samples=True) for row, slot in enumerate(slots)]
    with forward_context(build_inputs(sequences, cache, device, has_lora=True).context):
        result: torch.Tensor = model.get_submodule(UP)(x[None])[0]
    return result


def test_every_row_gets_the_delta_of_its_own_slot(model: PreTrainedModel) -> None:
    targets = {UP: LoRATarget("linear", 64, 96)}
    slots = LoRAModel(model, targets, num_slots=2, max_rank=64, dtype=torch.float32, linears={})
    adapters = [packed("a", 1), packed("b", 17)]
    for slot, adapter in enumerate(adapters):
        slots.place(slot, adapter)
    x = torch.randn(4, 64)

    got = run_up_proj(model, x, [BASE_SLOT, 0, 0, 1])

    expected = x @ model.get_submodule(UP).weight.T
    assert torch.equal(got[0], model.get_submodule(UP)(x)[0])
    for row, adapter in ((1, adapters[0]), (2, adapters[0]), (3, adapters[1])):
        module = adapter.modules[UP]
        torch.testing.assert_close(got[row], expected[row] + module.b @ (module.a @ x[row]), atol=1e-4, rtol=1e-4)


def test_a_cleared_slot_adds_nothing_and_holds_nothing(model: PreTrainedModel) -> None:
    targets = {UP: LoRATarget("linear", 64, 96)}
    slots = LoRAModel(model, targets, num_slots=1, max_rank=64, dtype=torch.float32, linears={})
    adapter = packed("a", 8)
    slab = weakref.ref(adapter.slab)
    slots.place(0, adapter)
    del adapter
    x = torch.randn(2, 64)
    run_up_proj(model, x, [0, 0])

    slots.clear(0)

    assert slab() is None
    torch.testing.assert_close(run_up_proj(model, x, [0, 0]), x @ model.get_submodule(UP).weight.T)


def test_placing_replaces_what_was_there(model: PreTrainedModel) -> None:
    targets = {UP: LoRATarget("linear", 64, 96)}
    slots = LoRAModel(model, targets, num_slots=1, max_rank=64, dtype=torch.float32, linears={})
    x = torch.randn(1, 64)
    slots.place(0, packed("a", 8))
    slots.place(0, packed("b", 2))

    module = packed("b", 2).modules[UP]
    expected = x @ model.get_submodule(UP).weight.T + x @ module.a.T @ module.b.T
    torch.testing.assert_close(run_up_proj(model, x, [0]), expected, atol=1e-4, rtol=1e-4)
    assert slots.num_placements == 2


def test_placing_and_clearing_change_the_kernels_table_once_for_all_modules(model: PreTrainedModel) -> None:
    """One copy per placement, however many modules: a graph that is replayed after it reads the new addresses."""
    targets = {UP: LoRATarget("linear", 64, 96), "model.layers.1.mlp.up_proj": LoRATarget("linear", 64, 96)}
    slots = LoRAModel(model, targets, num_slots=2, max_rank=64, dtype=torch.float32, linears={})
    table, adapter = slots.table.tensor, packed("a", 8)

    slots.place(1, adapter)
    assert table[0, :, 1].tolist() == [adapter.modules[UP].a.data_ptr(), adapter.modules[UP].b.data_ptr(), 8]
    assert not table[1].any()
    slots.place(1, packed("b", 2))
    assert table[0, 2, 1] == 2
    slots.clear(1)
    assert not table.any()
    assert slots.table.tensor is table
    assert slots.table.num_flips == 3


@pytest.mark.slow
def test_a_decode_step_through_tritons_kernels_under_the_interpreter() -> None:
    file = str(Path(__file__).with_name("interpreted_lora_model.py"))
    assert "2 passed" in run("-m", "pytest", "-q", "-p", "no:cacheprovider", file, TRITON_INTERPRET="1")


def test_the_table_alone_has_what_the_modules_would_be_told(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = {"model.layers.0.mlp.gate_proj": LoRATarget("linear", 64, 96), UP: LoRATarget("linear", 64, 96)}
    told = LoRAModel(model, targets, num_slots=3, max_rank=8, dtype=torch.float32, linears={})
    monkeypatch.setattr("loramux.model.lora_model.use_triton", lambda _tensor: True)
    read = LoRAModel(model, targets, num_slots=3, max_rank=8, dtype=torch.float32, linears={})
    adapter = packed("a", 8)

    for slots in (told, read):
        slots.place(0, packed("b", 2))
        slots.place(0, packed("c", 3))
        slots.place(2, adapter)
        slots.clear(0)

    assert torch.equal(read.table.tensor, told.table.tensor)
    a, b, rank = read.table.tensor[1, :, 2].tolist()
    module = adapter.modules[UP]
    assert (a, b, rank) == (module.a.data_ptr(), module.b.data_ptr(), 8)
    assert read.table.num_flips == told.table.num_flips == 4
