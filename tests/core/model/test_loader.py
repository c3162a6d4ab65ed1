"""A model that cannot be loaded whole, or would be served wrong, is refused by name and reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, PretrainedConfig, T5Config, T5ForConditionalGeneration

from loramux import EngineArgs
from loramux.errors import ConfigInvalid, ModelUnsupported
from loramux.model.attention import ATTENTION_NAME
from loramux.model.loader import ModelSource, _choose_dtype, check_rope, load_model, locate, multiplies_bfloat16


def test_a_folder_a_gguf_file_and_a_hub_id_are_told_apart(tiny_llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.touch()

    assert locate(str(tiny_llama)) == ModelSource(str(tiny_llama))
    assert locate(str(file)) == ModelSource(str(tmp_path), "model.gguf")
    assert locate("org/name") == ModelSource("org/name")


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
def test_auto_is_bfloat16_where_the_checkpoint_is_and_the_cpu_multiplies_it(
    tiny_llama: Path, tmp_path: Path, stored: str
) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / stored)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": stored}))

    is_native = stored == "bfloat16" and multiplies_bfloat16(torch.cpu.get_capabilities())

    expected = torch.bfloat16 if is_native else torch.float32
    assert load_model(EngineArgs(model=str(folder))).dtype is expected


def test_only_instructions_for_bfloat16_products_count() -> None:
    assert multiplies_bfloat16({"avx512_bf16": True, "amx_bf16": False})
    assert multiplies_bfloat16({"amx_bf16": True})
    assert not multiplies_bfloat16({"avx512_f": True, "amx_tile": True, "avx512_bf16": False})
    assert not multiplies_bfloat16({})


@pytest.mark.parametrize("model", ["/no/such/folder", "./no/such", "../no/such", "~/no/such"])
def test_a_path_without_a_folder_is_no_hub_id(model: str) -> None:
    with pytest.raises(ConfigInvalid, match=f"model '{model}': there is no such folder"):
        locate(model)


def test_a_missing_gguf_file_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match=r"model 'no/such.gguf': there is no such GGUF file"):
        locate("no/such.gguf")


def test_a_broken_gguf_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 60)

    with pytest.raises(ConfigInvalid, match=r"broken.gguf' cannot be read"):
        load_model(EngineArgs(model=str(tmp_path / "broken.gguf")))


def test_a_loaded_model_says_what_serving_needs(tiny_llama: Path) -> None:
    loaded = load_model(EngineArgs(model=str(tiny_llama), device="cpu"))

    assert (loaded.device.type, loaded.dtype, loaded.vocab_size) == ("cpu", torch.float32, 320)
    assert (loaded.max_positions, loaded.eos_token_ids) == (512, frozenset({0}))
    assert loaded.model.config._attn_implementation == ATTENTION_NAME
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_end_of_sequence_ids_come_from_both_configs(tiny_llama: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_llama, tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))

    assert load_model(EngineArgs(model=str(folder))).eos_token_ids == {0, 7, 9}


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_the_dtype_asked_for_is_served(tiny_llama: Path, name: str) -> None:
    loaded = load_model(EngineArgs(model=str(tiny_llama), dtype=name))  # type: ignore[arg-type]

    assert loaded.dtype == next(loaded.model.parameters()).dtype == getattr(torch, name)


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
def test_auto_on_a_gpu_is_the_models_own_dtype(stored: str) -> None:
    config = AutoConfig.for_model("llama", dtype=stored)

    assert _choose_dtype(EngineArgs(model="m"), config, torch.device("cuda")) is getattr(torch, stored)


def copy_of(folder: Path, root: Path) -> Path:
    return shutil.copytree(folder, root / "copy")


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        load_model(EngineArgs(model=str(tmp_path)))


def test_a_folder_without_weights_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_llama, tmp_path)
    (folder / "model.safetensors").unlink()

    with pytest.raises(ModelUnsupported, match="cannot be loaded"):
        load_model(EngineArgs(model=str(folder)))


def test_a_truncated_weights_file_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    file = copy_of(tiny_llama, tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])

    with pytest.raises(ModelUnsupported, match="cannot be loaded"):
        load_model(EngineArgs(model=str(file.parent)))


def test_weights_that_are_missing_are_never_made_up(tiny_llama: Path, tmp_path: Path) -> None:
    file = copy_of(tiny_llama, tmp_path) / "model.safetensors"
    tensors = load_file(file)
    for name in [name for name in tensors if "layers.1.mlp" in name] + ["model.norm.weight"]:
        del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})

    with pytest.raises(ModelUnsupported, match=r"lack the weights model.layers.1.mlp.down_proj.weight, .* and 1 more"):
        load_model(EngineArgs(model=str(file.parent)))


def test_weights_of_another_shape_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    file = copy_of(tiny_llama, tmp_path) / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = torch.ones(65)
    save_file(tensors, file, metadata={"format": "pt"})

    with pytest.raises(ModelUnsupported, match="cannot be loaded"):
        load_model(EngineArgs(model=str(file.parent)))


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    config = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)

    with pytest.raises(ModelUnsupported, match="is an encoder-decoder; only decoder-only text models are served"):
        load_model(EngineArgs(model=str(tmp_path)))


# --- rotary scaling

LONG_ROPE = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "rope_theta": 10_000.0}


def rope_config(**rope: object) -> PretrainedConfig:
    return AutoConfig.for_model("llama", head_dim=16, max_position_embeddings=512, rope_parameters=rope)


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({**LONG_ROPE, "original_max_position_embeddings": 128}, 128),
        ({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}, 512),
    ],
)
def test_rope_that_depends_on_the_batch_is_refused_beyond_its_limit(rope: dict[str, object], limit: int) -> None:
    config = rope_config(**rope)
    check_rope(config, "m", limit)

    with pytest.raises(ModelUnsupported, match=rf"{rope['rope_type']}.*set max_model_len to at most {limit} \(it is"):
        check_rope(config, "m", limit + 1)


@pytest.mark.parametrize("rope", [{"rope_type": "default"}, {"rope_type": "linear", "factor": 4.0}])
def test_rope_that_depends_on_nothing_else_has_no_limit(rope: dict[str, object]) -> None:
    check_rope(rope_config(rope_theta=10_000.0, **rope), "m", 100_000)


def test_rope_of_one_kind_of_layer_counts_too() -> None:
    config = AutoConfig.for_model("llama", max_position_embeddings=512)
    config.rope_parameters = {"full_attention": {"rope_type": "dynamic"}, "sliding_attention": {"rope_type": "default"}}

    with pytest.raises(ModelUnsupported):
        check_rope(config, "m", 513)
