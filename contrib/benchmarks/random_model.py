"""A random Llama with a byte-level tokenizer: what benchmarks run on when the model's answers do not matter.

It is written with its weights, or as its shape alone, whose weights are drawn on the device when an engine loads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from costs.model_shape import ModelShape

END = "<end>"


def build_model(folder: Path, *, hidden: int, layers: int, max_length: int = 512) -> Path:
    """Write the model and its tokenizer."""
    config = LlamaConfig(
        vocab_size=_write_tokenizer(folder),
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=max_length,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_shape(folder: Path, shape: ModelShape, *, max_length: int, dtype: str) -> Path:
    """Write a configuration of this shape, and a tokenizer that knows the first of its tokens; no weights."""
    assert _write_tokenizer(folder) <= shape.vocab_size
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=max_length,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        dtype=dtype,
    )
    config.save_pretrained(folder)
    return folder


@contextmanager
def weights_drawn_on(device: str) -> Iterator[None]:
    """Let engines that load a shape draw its weights on a device: the same ones each time, without a file of them."""

    def draw(location: str, *, dtype: torch.dtype, attn_implementation: str, output_loading_info: bool) -> object:
        assert output_loading_info
        torch.manual_seed(0)
        with torch.device(device):
            config = AutoConfig.from_pretrained(location)
            model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]  # theirs
                config, dtype=dtype, attn_implementation=attn_implementation
            )
        return model, {"missing_keys": ()}

    with patch.object(AutoModelForCausalLM, "from_pretrained", draw):
        yield


def _write_tokenizer(folder: Path) -> int:
    """Return how many tokens it has."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate([END, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)  # type: ignore[no-untyped-call]  # theirs
    fast.save_pretrained(folder)
    return len(vocabulary)
