"""read_adapter: what PEFT saves is served as PEFT means it, or refused with the reason."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loramux.adapters import adapter_files, peft_checkpoint

Save = Callable[..., Any]
Q_PROJ = "model.layers.0.self_attn.q_proj"
A_NAME = f"base_model.model.{Q_PROJ}.lora_A.weight"
B_NAME = f"base_model.model.{Q_PROJ}.lora_B.weight"


def test_a_peft_adapter_is_read_as_it_was_saved(llama_base: Any, adapter: Any) -> None:
    from safetensors.torch import load_file

    weights = llama_base.read(adapter.path)
    saved = load_file(adapter.weights_file)
    assert weights.name == "tidy"
    assert list(weights.modules) == [
        f"model.layers.{layer}.self_attn.{part}" for layer in (0, 1) for part in ("q_proj", "v_proj")
    ]
    assert torch.equal(weights.modules[Q_PROJ].a, saved[A_NAME])
    assert torch.equal(weights.modules[Q_PROJ].b, saved[B_NAME])
    assert weights.modules[Q_PROJ].scaling == 2.0
    assert weights.nbytes == sum(tensor.nbytes for tensor in saved.values())
    assert (weights.max_rank, llama_base.reads) == (4, [])


def test_the_digest_is_over_both_files(llama_base: Any, adapter: Any) -> None:
    digest = llama_base.read(adapter.path).digest
    hasher = hashlib.sha256()
    for file in (adapter.config_file, adapter.weights_file):
        hasher.update(len(file.read_bytes()).to_bytes(8, "little") + file.read_bytes())
    assert digest == hasher.hexdigest()
    assert llama_base.read(adapter.change_config(lora_dropout=0.5)).digest != digest
    (adapter.path / "README.md").write_text("ignored")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tensors_keep_the_files_dtype(llama_base: Any, adapter: Any, dtype: torch.dtype) -> None:
    adapter.change_tensors(lambda tensors: tensors.update({name: value.to(dtype) for name, value in tensors.items()}))
    module = llama_base.read(adapter.path).modules[Q_PROJ]
    assert module.a.dtype == module.b.dtype == dtype
    assert module.a.is_contiguous()
    assert module.b.is_contiguous()


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.(q|up)_proj"},
        {"target_modules": ["q_proj"], "bias": "all"},
        {"target_modules": ["q_proj"], "layers_to_transform": [1]},
        {"target_modules": ["q_proj"], "exclude_modules": [Q_PROJ]},
        {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
        {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"},
        {"target_modules": ["q_proj"], "init_lora_weights": False},
    ],
)
def test_ways_to_train_plain_lora_are_accepted(llama_base: Any, save_adapter: Save, fields: dict[str, Any]) -> None:
    assert llama_base.read(save_adapter(llama_base, **fields).path).modules


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"use_dora": True}, "DoRA (use_dora=true) is not supported; merge or retrain without it."),
        ({"lora_bias": True}, "lora_bias=true is not supported."),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save=['lm_head'] replaces base weights; not supported."),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices is not supported."),
        ({"target_parameters": ["mlp.gate_proj.weight"]}, "target_parameters is not supported."),
        ({"alora_invocation_tokens": [1]}, "activated LoRA (alora_invocation_tokens) is not supported."),
        ({"layer_replication": [(0, 2), (0, 2)]}, "layer_replication changes the base model."),
        ({"task_type": "SEQ_CLS"}, "task_type=SEQ_CLS cannot be served by a causal LM."),
        *(
            (
                {"init_lora_weights": value},
                f"init_lora_weights={value!r}: adapter is relative to a modified base; "
                "re-save with path_initial_model_for_weight_conversion.",
            )
            for value in ("pissa", "olora")
        ),
    ],
)
def test_what_peft_saves_beyond_plain_lora_is_refused(
    llama_base: Any, save_adapter: Save, fields: dict[str, Any], reason: str
) -> None:
    task_type = fields.pop("task_type", None)
    folder = save_adapter(llama_base, **{"target_modules": ["q_proj"]} | fields)
    if task_type:
        folder.change_config(task_type=task_type)
    found = llama_base.refusal(folder.path)
    assert (found.reason, found.code) == (reason, "adapter_invalid")


def test_kasa_is_refused(llama_base: Any, save_adapter: Save) -> None:
    from peft.tuners.lora.config import KasaConfig

    folder = save_adapter(llama_base, target_modules=["q_proj"], kasa_config=KasaConfig())
    assert llama_base.refusal(folder.path).reason == "kasa_config is not supported."


def test_tied_weights_are_refused(llama_base: Any, save_adapter: Save) -> None:
    folder = save_adapter(llama_base, target_modules=["embed_tokens", "lm_head"], ensure_weight_tying=True)
    assert llama_base.refusal(folder.path).reason == "ensure_weight_tying is not supported."


@pytest.mark.parametrize("fields", [{}, {"fan_in_fan_out": True}])
def test_conv1d_modules_are_read(gpt2_base: Any, save_adapter: Save, fields: dict[str, Any]) -> None:
    weights = gpt2_base.read(save_adapter(gpt2_base, target_modules=["c_attn", "c_proj"], **fields).path)
    module = weights.modules["transformer.h.0.attn.c_attn"]
    assert (module.a.shape, module.b.shape) == ((4, 64), (192, 4))


def test_fan_in_fan_out_does_not_fit_a_base_of_linear_layers(llama_base: Any, adapter: Any) -> None:
    adapter.change_config(fan_in_fan_out=True)
    assert llama_base.refusal(adapter.path).reason == (
        "fan_in_fan_out=true does not fit base architecture LlamaForCausalLM."
    )


def test_biases_that_a_base_has_are_not_trained_here(gpt2_base: Any, save_adapter: Save) -> None:
    folder = save_adapter(gpt2_base, target_modules=["c_attn"], bias="lora_only")
    assert gpt2_base.refusal(folder.path).reason == "bias=lora_only trains base biases (2 tensors); not supported."


def test_embedding_and_lm_head_are_read_where_their_saved_weights_are_ours(llama_base: Any, save_adapter: Save) -> None:
    folder = save_adapter(llama_base, target_modules=["embed_tokens", "lm_head", "q_proj"])
    weights = llama_base.read(folder.path)
    embedding, lm_head = weights.modules["model.embed_tokens"], weights.modules["lm_head"]
    assert (embedding.a.shape, embedding.b.shape) == ((4, 96), (64, 4))
    assert (lm_head.a.shape, lm_head.b.shape) == ((4, 64), (96, 4))
    assert sorted(llama_base.reads) == ["lm_head", "model.embed_tokens"]
    # The copies of the base's weights do not stay in memory behind the pairs.
    assert lm_head.a.untyped_storage().nbytes() == lm_head.a.nbytes


def test_a_saved_weight_of_another_base_is_refused(llama_base: Any, save_adapter: Save) -> None:
    folder = save_adapter(llama_base, target_modules=["lm_head"])
    folder.change_tensors(lambda tensors: tensors["base_model.model.lm_head.base_layer.weight"][3, 4].add_(0.1))
    reason = "module lm_head: its saved base weight differs from this base model."
    assert llama_base.refusal(folder.path).reason == reason


def test_a_saved_weight_that_cannot_be_compared_is_refused(llama_base: Any, save_adapter: Save) -> None:
    folder = save_adapter(llama_base, target_modules=["lm_head"])
    assert llama_base.refusal(folder.path, base_weight=None).reason == (
        "module lm_head: its saved base weight cannot be compared with this base model."
    )


def test_an_extended_vocabulary_is_refused(llama_base: Any, train: Save, tmp_path: Path) -> None:
    import copy

    extended = copy.copy(llama_base)
    extended.model = copy.deepcopy(llama_base.model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        extended.model.resize_token_embeddings(100)
        train(extended, target_modules=["embed_tokens", "q_proj"]).save_pretrained(tmp_path)
    assert llama_base.refusal(tmp_path).reason == "adapter extends the vocabulary (100 rows, base has 96)."


def test_names_without_prefix_and_with_the_adapters_name_are_read(llama_base: Any, adapter: Any) -> None:
    expected = llama_base.read(adapter.path).modules[Q_PROJ]

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            short = name.removeprefix("base_model.model.").replace(".weight", ".default.weight")
            tensors[short] = tensors.pop(name)

    assert torch.equal(llama_base.read(adapter.change_tensors(rename)).modules[Q_PROJ].a, expected.a)


def test_a_partial_upload_is_refused(llama_base: Any, adapter: Any) -> None:
    adapter.change_tensors(lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers.1" in name])
    assert llama_base.refusal(adapter.path).reason.startswith(
        "target_modules lists 2 modules that the weights file lacks (a partial upload?): 'model.layers.1.self_attn."
    )


def test_an_adapter_of_another_base_is_refused(llama_base: Any, gpt2_base: Any, adapter: Any) -> None:
    found = gpt2_base.refusal(adapter.path)
    assert found.reason.startswith("was trained for 'acme/tiny-llama'; this server runs 'acme/tiny-gpt2'. ")
    assert found.code == "adapter_base_mismatch"
    found = gpt2_base.refusal(adapter.path, base_match="off")
    assert found.reason.startswith("all of its modules do not exist in this base model (GPT2LMHeadModel): ")
    assert found.code == "adapter_base_mismatch"


def test_exact_base_names_are_compared_whole(llama_base: Any, adapter: Any) -> None:
    assert llama_base.read(adapter.path, base_match="exact").modules
    adapter.change_config(base_model_name_or_path="/elsewhere/tiny-llama")
    assert llama_base.read(adapter.path, base_match="basename").modules
    assert llama_base.refusal(adapter.path, base_match="exact").code == "adapter_base_mismatch"


def test_a_rank_above_the_limit_is_refused(llama_base: Any, adapter: Any) -> None:
    found = llama_base.refusal(adapter.path, max_lora_rank=3)
    assert found.reason == f"rank 4 of module {Q_PROJ} exceeds max_lora_rank 3."
    assert found.code == "adapter_rank_too_high"


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_refused(llama_base: Any, adapter: Any, name: str) -> None:
    (adapter.path / name).unlink()
    assert llama_base.refusal(adapter.path).reason == f"its folder has no {name}."


def test_a_missing_folder_is_refused(llama_base: Any, tmp_path: Path) -> None:
    reason = "its folder cannot be opened: No such file or directory."
    assert llama_base.refusal(tmp_path / "absent").reason == reason


def test_a_pickle_alone_is_refused(llama_base: Any, adapter: Any) -> None:
    adapter.weights_file.rename(adapter.path / "adapter_model.bin")
    assert llama_base.refusal(adapter.path).code == "adapter_format_unsupported"


def test_a_hub_snapshot_of_symlinks_is_read(llama_base: Any, adapter: Any, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    shutil.copytree(adapter.path, blobs)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    assert llama_base.read(snapshot).digest == llama_base.read(adapter.path).digest


def test_a_config_of_absurd_size_is_not_read(llama_base: Any, adapter: Any) -> None:
    adapter.config_file.write_bytes(b"{" + b" " * 256 * 1024)
    assert llama_base.refusal(adapter.path).reason == "adapter_config.json has 262145 bytes; the limit is 262144."


def test_a_file_above_the_limit_is_not_read(llama_base: Any, adapter: Any) -> None:
    nbytes = adapter.weights_file.stat().st_size
    assert llama_base.read(adapter.path, max_adapter_bytes=nbytes).modules
    assert llama_base.refusal(adapter.path, max_adapter_bytes=nbytes - 1).reason == (
        f"adapter_model.safetensors has {nbytes} bytes; the limit is {nbytes - 1}."
    )


def test_a_sparse_file_is_not_read(llama_base: Any, adapter: Any) -> None:
    os.truncate(adapter.weights_file, 32 << 20)
    assert llama_base.refusal(adapter.path).reason == (
        f"adapter_model.safetensors is sparse: the disk holds less than its {32 << 20} bytes."
    )


def test_more_bytes_than_the_rank_needs_are_not_read(llama_base: Any, adapter: Any) -> None:
    with adapter.weights_file.open("ab") as stream:
        stream.write(b"x" * (9 << 20))
    reason = llama_base.refusal(adapter.path).reason
    assert "bytes; rank 4 on every module of this base model needs at most " in reason


def test_bytes_at_the_end_are_refused(llama_base: Any, adapter: Any) -> None:
    with adapter.weights_file.open("ab") as stream:
        stream.write(b"xx")
    assert "truncated or padded" in llama_base.refusal(adapter.path).reason


@pytest.mark.parametrize("nbytes", [0, 7, 100, -1])
def test_a_truncated_file_is_refused(llama_base: Any, adapter: Any, nbytes: int) -> None:
    os.truncate(adapter.weights_file, nbytes if nbytes >= 0 else adapter.weights_file.stat().st_size - 1)
    assert "truncated" in llama_base.refusal(adapter.path).reason


def test_an_empty_file_of_tensors_is_refused(llama_base: Any, adapter: Any) -> None:
    adapter.change_header(lambda header: header.clear(), data=b"")
    assert llama_base.refusal(adapter.path).reason == "is empty: the weights file has no pair of LoRA tensors."


def test_more_tensors_than_the_base_has_places_for_are_refused(llama_base: Any, adapter: Any) -> None:
    many = {
        str(place): {"dtype": "F16", "shape": [1], "data_offsets": [2 * place, 2 * place + 2]} for place in range(999)
    }
    adapter.change_header(lambda header: (header.clear(), header.update(many)), data=b"\0" * 999 * 2)
    assert llama_base.refusal(adapter.path).reason == (
        "the weights file has 999 tensors; this base model allows at most 128."
    )


def test_float64_tensors_are_refused(llama_base: Any, adapter: Any) -> None:
    adapter.change_tensors(lambda tensors: tensors.update({A_NAME: tensors[A_NAME].double()}))
    assert llama_base.refusal(adapter.path).reason == (
        f"tensor '{A_NAME}': dtype 'F64' is not supported; only F32, F16 and BF16 are."
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(llama_base: Any, adapter: Any, value: float) -> None:
    adapter.change_tensors(lambda tensors: tensors[B_NAME][5, 1].fill_(value))
    assert llama_base.refusal(adapter.path).reason == f"tensor '{B_NAME}' has values that are not finite."


def test_values_that_overflow_when_served_are_refused(llama_base: Any, adapter: Any) -> None:
    adapter.change_tensors(lambda tensors: tensors[A_NAME][1, 1].fill_(1e6))
    assert llama_base.read(adapter.path).modules
    assert llama_base.refusal(adapter.path, serving_dtype=torch.float16).reason == (
        f"tensor '{A_NAME}' has values that are not finite in float16, which this server uses."
    )


def test_a_file_that_changes_once_is_read_again(llama_base: Any, adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = peft_checkpoint.parse_header
    other = json.loads(adapter.config_file.read_text()) | {"lora_alpha": 16}

    def parse_while_written(*args: Any, **options: Any) -> Any:
        if json.loads(adapter.config_file.read_text()) != other:
            adapter.change_config(lora_alpha=16)
        return parse(*args, **options)

    monkeypatch.setattr(peft_checkpoint, "parse_header", parse_while_written)
    assert llama_base.read(adapter.path).modules[Q_PROJ].scaling == 4.0


@pytest.mark.parametrize("is_sound", [True, False])
def test_a_file_that_keeps_changing_is_refused(
    llama_base: Any, adapter: Any, monkeypatch: pytest.MonkeyPatch, is_sound: bool
) -> None:
    count = peft_checkpoint.header_nbytes
    times = iter(range(1, 10))

    def count_while_written(prefix: bytes, **options: Any) -> int:
        os.utime(adapter.weights_file, ns=(next(times), next(times)))
        return count(prefix if is_sound else b"torn", **options)

    monkeypatch.setattr(peft_checkpoint, "header_nbytes", count_while_written)
    assert llama_base.refusal(adapter.path).reason == (
        "its files change while they are read; try again when the copy is complete."
    )


def test_an_io_error_is_a_refusal(llama_base: Any, adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, nbytes: int) -> memoryview:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(adapter_files.AdapterFile, "read", fail)
    assert llama_base.refusal(adapter.path).reason == "its files cannot be read: Input/output error."


def test_an_ordinary_adapter_is_checked_in_milliseconds(llama_base: Any, save_adapter: Save) -> None:
    """A bound far above the usual 5 ms: it fails on a step that is not linear, not on a busy machine."""
    folder = save_adapter(llama_base, target_modules="all-linear", r=64, lora_alpha=64)
    llama_base.read(folder.path)
    start = time.perf_counter()
    llama_base.read(folder.path)
    assert time.perf_counter() - start < 0.5
