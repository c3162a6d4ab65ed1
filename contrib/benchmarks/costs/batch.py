"""Batch: the rows of one step, and which adapter they belong to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AdapterRows:
    """The rows of one adapter, which lie side by side, and its rank."""

    num_rows: int
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """`num_sequences` sequences whose caches hold `context` tokens each and get `num_rows` more in all.

    One row per sequence is a decode step, more is a prefill. Rows of no adapter are the base model's.
    """

    num_rows: int
    num_sequences: int
    context: int
    adapters: tuple[AdapterRows, ...] = ()

    @property
    def is_decode(self) -> bool:
        return self.num_rows == self.num_sequences

    @classmethod
    def decode(cls, num_rows: int, *, context: int, num_adapters: int = 0, rank: int = 0) -> Batch:
        """One row per sequence, the adapters with as many as each other as far as that goes."""
        adapters = _shares(num_rows, num_adapters, rank)
        return cls(num_rows=num_rows, num_sequences=num_rows, context=context, adapters=adapters)

    @classmethod
    def prefill(cls, num_rows: int, num_sequences: int, *, num_adapters: int = 0, rank: int = 0) -> Batch:
        """Prompts of like length with nothing in the cache before."""
        adapters = _shares(num_rows, num_adapters, rank)
        return cls(num_rows=num_rows, num_sequences=num_sequences, context=0, adapters=adapters)


def _shares(num_rows: int, num_adapters: int, rank: int) -> tuple[AdapterRows, ...]:
    if num_adapters > num_rows:
        raise ValueError(f"{num_rows} rows cannot have {num_adapters} adapters")
    return tuple(
        AdapterRows(num_rows // num_adapters + (index < num_rows % num_adapters), rank) for index in range(num_adapters)
    )
