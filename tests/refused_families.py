"""Families that are refused at load, in a tiny form: their attention keeps state of its own, or means another thing."""

from __future__ import annotations

from collections.abc import Mapping

REFUSED: Mapping[str, Mapping[str, object]] = {
    "bloom": {"n_layer": 2, "n_head": 4},
    "falcon": {},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "xglm": {"d_model": 64, "num_layers": 2, "attention_heads": 4, "ffn_dim": 96},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1, "state_size": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "llama4_text": {
        "head_dim": 16,
        "num_local_experts": 2,
        "intermediate_size_mlp": 96,
        "attention_chunk_size": 128,
    },
    "diffllama": {},
    "recurrent_gemma": {
        "lru_width": 64,
        "attention_window_size": 8,
        "block_types": ["recurrent", "attention"],
    },
    "minimax": {"head_dim": 16, "num_local_experts": 2, "layer_types": ["linear_attention", "full_attention"]},
}
