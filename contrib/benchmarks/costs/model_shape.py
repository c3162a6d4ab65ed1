"""ModelShape: the sizes of a Llama-like decoder, and its linear layers as groups that share an input."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Group:
    """Projections of one input, computed as one product; `widths` are the outputs of each, side by side."""

    name: str
    in_features: int
    widths: tuple[int, ...]

    @property
    def out_features(self) -> int:
        return sum(self.widths)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A decoder of `num_layers` alike layers, without biases; lm_head is a weight of its own."""

    name: str
    hidden: int
    intermediate: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int

    @property
    def groups(self) -> tuple[Group, ...]:
        """The products of one layer, in their order."""
        heads, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return (
            Group("qkv", self.hidden, (heads, kv, kv)),
            Group("o", heads, (self.hidden,)),
            Group("gate_up", self.hidden, (self.intermediate, self.intermediate)),
            Group("down", self.intermediate, (self.hidden,)),
        )


LLAMA_3_1_8B = ModelShape(
    name="Llama-3.1-8B",
    hidden=4096,
    intermediate=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=128256,
)
