"""Tiny random models of real families, a byte-level tokenizer for them, and PEFT adapters on top: what tests serve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

VOCAB_SIZE = 320
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TOOLS_TEMPLATE = "{% for tool in tools or [] %}<|system|>{{ tool.function.name }}{% endfor %}" + CHAT_TEMPLATE.replace(
    "message.content", "message.content or ''"
)
"""For a `chat_template.jinja`: names the tools; what calls one has no content."""
SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
# family → model_type, what differs from SHAPE, and the modules that its adapters target
FAMILIES: Mapping[str, tuple[str, Mapping[str, object], Sequence[str]]] = {
    "llama": ("llama", {}, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")),
    "mistral": ("mistral", {"sliding_window": 8}, ("q_proj", "v_proj", "o_proj", "down_proj")),
    "qwen2": (
        "qwen2",
        {"use_sliding_window": False},
        ("q_proj", "k_proj", "v_proj", "gate_proj", "embed_tokens", "lm_head"),
    ),
    "qwen3": ("qwen3", {"head_dim": 16}, ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj")),
    "gemma2": (
        "gemma2",
        {
            "head_dim": 16,
            "sliding_window": 8,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 10.0,
            "query_pre_attn_scalar": 16,
        },
        ("q_proj", "v_proj", "down_proj", "embed_tokens"),
    ),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 16,
            "sliding_window": 8,
            "query_pre_attn_scalar": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        ("q_proj", "o_proj", "embed_tokens"),
    ),
    "phi3": (
        "phi3",
        {"sliding_window": 8, "original_max_position_embeddings": 512},
        ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    ),
    "gpt2": (
        "gpt2",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512},
        ("c_attn", "c_proj", "c_fc"),
    ),
    "gpt_neox": ("gpt_neox", {"rotary_pct": 0.25}, ("query_key_value", "dense", "dense_h_to_4h", "embed_out")),
    "olmo2": ("olmo2", {}, ("q_proj", "k_proj", "v_proj", "o_proj")),
    "starcoder2": ("starcoder2", {"sliding_window": 8}, ("q_proj", "v_proj", "c_fc", "c_proj")),
    "granite": (
        "granite",
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2, "logits_scaling": 2.0},
        ("q_proj", "v_proj", "o_proj", "up_proj"),
    ),
    "cohere": ("cohere", {"logit_scale": 0.25, "use_qk_norm": False}, ("q_proj", "k_proj", "down_proj")),
    "qwen3_moe": (
        "qwen3_moe",
        {
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "decoder_sparse_step": 1,
        },
        ("q_proj", "k_proj", "v_proj", "o_proj"),
    ),
}
TRAINING_TEXT = [
    "The quick brown fox jumps over the lazy dog.",
    "SELECT name FROM people WHERE age > 30",
    "naïve café, 東京, 😀 emoji and more text to merge",
]


def build_tokenizer(folder: Path) -> None:
    """Write a byte-level BPE tokenizer with a chat template; id 0 is the end-of-sequence token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def without_white_space(folder: Path) -> dict[str, int]:
    """A `logit_bias` for JSON of a given shape: the shape allows white space, of which a tiny model writes no end."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    white = [token_id for token_id in range(len(tokenizer)) if tokenizer.decode([token_id]).isspace()]
    return dict.fromkeys(map(str, white), -100)


def build_model(folder: Path, family: str = "llama", *, seed: int = 0, **changes: object) -> Path:
    """Write a random model of a family, with the tokenizer, as a safetensors folder."""
    model_type, specific, _targets = FAMILIES[family]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **{**SHAPE, **specific, **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    build_tokenizer(folder)
    return folder


def build_adapter(
    model_folder: Path,
    folder: Path,
    *,
    rank: int = 8,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    seed: int = 0,
    **options: object,
) -> Path:
    """Write a PEFT adapter whose B is random too, so that it changes every answer."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    config = LoraConfig(
        r=rank,
        target_modules=list(targets),
        task_type="CAUSAL_LM",
        **{"lora_alpha": 2 * rank, **options},
    )
    peft_model = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.4 / rank**0.5 if "lora_B" in name or "embedding_B" in name else 0.1)
    peft_model.save_pretrained(folder)
    return folder
