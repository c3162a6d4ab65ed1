"""A `.gguf` file is a model like any other: the same answers as the safetensors folder that it was made from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from loramux import LLM, LoRARequest, SamplingParams
from loramux.errors import ConfigInvalid

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
ENDS = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}  # fmt: skip # noqa: E501


def write_gguf(folder: Path, path: Path, name: str = "") -> None:
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(0)
    for name, tensor in load_file(folder / "model.safetensors").items():
        writer.add_tensor(gguf_name(name), gguf_layout(name, tensor, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    if name in ENDS:
        return ENDS[name]
    _model, _layers, index, module = name.removesuffix(".weight").split(".", 3)
    return f"blk.{index}.{NAMES[module]}.weight"


def gguf_layout(name: str, tensor: np.ndarray, config: dict[str, int]) -> np.ndarray:
    """llama.cpp keeps the rotary halves of queries and keys interleaved."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    for module, count in heads.items():
        if module in name:
            parts = tensor.reshape(config[count], 2, -1, tensor.shape[-1])
            return np.ascontiguousarray(parts.swapaxes(1, 2).reshape(tensor.shape))
    return tensor


def test_a_gguf_file_answers_like_its_safetensors_folder(
    tiny_llama: Path, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    write_gguf(tiny_llama, tmp_path / "tiny-llama.F32.gguf")
    adapter = LoRARequest("adapter", 1, str(make_adapter("gguf", rank=4)))
    prompts = ["The quick brown fox", "SELECT name FROM"]
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)

    def answers(model: Path) -> list[list[int]]:
        llm = LLM(str(model), enable_lora=True, kv_cache_memory_bytes=10**6)
        outputs = llm.generate(prompts * 2, params, lora_request=[None, None, adapter, adapter], use_tqdm=False)
        llm.llm_engine.shutdown()
        return [output.outputs[0].token_ids for output in outputs]

    assert answers(tmp_path / "tiny-llama.F32.gguf") == answers(tiny_llama)


def test_an_adapter_fits_the_model_that_a_renamed_gguf_file_says_it_is(
    tiny_llama: Path, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    write_gguf(tiny_llama, tmp_path / "model.gguf", name="tiny llama")
    llm = LLM(str(tmp_path / "model.gguf"), enable_lora=True, kv_cache_memory_bytes=10**6)
    assert llm.llm_engine.add_lora(LoRARequest("adapter", 1, str(make_adapter("gguf", rank=4))))
    llm.llm_engine.shutdown()


def test_an_adapter_fits_the_model_in_the_current_folder(
    tiny_llama: Path, make_adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_llama)
    llm = LLM(".", enable_lora=True, kv_cache_memory_bytes=10**6)
    assert llm.llm_engine.add_lora(LoRARequest("adapter", 1, str(make_adapter("gguf", rank=4))))
    llm.llm_engine.shutdown()


def test_a_gguf_file_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(ConfigInvalid, match=r"'nowhere/model\.gguf': there is no such GGUF file"):
        LLM("nowhere/model.gguf")
