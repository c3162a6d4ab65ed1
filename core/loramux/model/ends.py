"""The two ends of a causal LM: the token embedding and the lm_head, whatever a family calls them."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel


def token_embedding(model: PreTrainedModel) -> nn.Module:
    """Return the module that turns token ids into vectors."""
    embedding: nn.Module = model.get_input_embeddings()
    return embedding


def lm_head(model: PreTrainedModel) -> nn.Module | None:
    """Return the module that turns hidden states into logits."""
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # transformers' own
    return head


def vocab_size(model: PreTrainedModel) -> int:
    """Return how many token ids the embedding knows."""
    weight = token_embedding(model).weight
    assert not isinstance(weight, nn.Module)
    return int(weight.shape[0])
