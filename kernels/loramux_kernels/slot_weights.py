"""SlotWeights: the low-rank pairs of one wrapped module, one pair per adapter slot.

The memory of the pairs belongs to whoever sets them. It must stay alive and unchanged until the slot is set again or
cleared: what the ops derive from a pair (transposed views, addresses) is dropped by `set` and `clear` alone.
"""

from __future__ import annotations

import numpy as np
import torch

Pair = tuple[torch.Tensor, torch.Tensor]


class SlotWeights:
    """A of slot s is [rank_s, in_features], B is [out_features, rank_s]; a slot without a pair leaves rows as they are.

    The delta of a row is `(x @ A.T) @ B.T`: the owner has folded the scaling into B. `set` and `clear` may run between
    steps only, on the thread that runs the ops.
    """

    def __init__(
        self, num_slots: int, in_features: int, out_features: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.num_slots = num_slots
        self.in_features = in_features
        self.out_features = out_features
        self.dtype = dtype
        self.device = torch.device(device)
        self.ranks: tuple[int, ...] = (0,) * num_slots
        self.max_rank = 0
        self.has_aligned_pairs = True  # every address a multiple of 16 bytes: the kernels may load vectors
        self.has_even_ranks = True  # every rank a multiple of 8: so is every row of B
        self._pairs: list[Pair | None] = [None] * num_slots
        self._transposed: list[Pair | None] = [None] * num_slots
        self._table = torch.zeros(3, num_slots, dtype=torch.int64, device=self.device)
        self._table_is_stale = False
        self._float_table = np.zeros((2, num_slots), dtype=np.int64)
        self._float_table_address: int = self._float_table.ctypes.data
        self._float_table_is_stale = False

    def set(self, slot: int, a: torch.Tensor | None, b: torch.Tensor | None) -> None:
        """Place a pair in a slot; None or rank 0 means that the slot's adapter does not change this module.

        B may be the transpose of a contiguous tensor, which is what a CPU reads. Raises ValueError naming what does not
        fit: shape, dtype, device, or another view.
        """
        if a is None or b is None:
            if a is not b:
                raise ValueError(f"slot {slot}: A and B come together, or neither")
            self._place(slot, None, 0)
            return
        rank = a.shape[0]
        self._check(slot, "A", a, (rank, self.in_features))
        self._check(slot, "B", b, (self.out_features, rank))
        self._place(slot, (a, b) if rank else None, rank)

    def clear(self, slot: int) -> None:
        """Empty a slot and forget its memory."""
        self._place(slot, None, 0)

    def a(self, slot: int) -> torch.Tensor | None:
        """A [rank, in_features] of a slot, None where it has no pair."""
        pair = self._pairs[slot]
        return None if pair is None else pair[0]

    def b(self, slot: int) -> torch.Tensor | None:
        """B [out_features, rank] of a slot, None where it has no pair."""
        pair = self._pairs[slot]
        return None if pair is None else pair[1]

    def rank(self, slot: int) -> int:
        """Rank of a slot's pair, 0 where it has none."""
        return self.ranks[slot]

    def transposed(self, slot: int) -> Pair:
        """(A.T [in, rank], B.T [rank, out]) of a slot that has a pair, float32, both as rows of rank lie in memory.

        Views, or copies where the pair is 16-bit or B was not placed as the transpose of a contiguous tensor.
        """
        cached = self._transposed[slot]
        if cached is None:
            pair = self._pairs[slot]
            assert pair is not None, f"slot {slot} has no pair"
            cached = self._transposed[slot] = (pair[0].float().t(), pair[1].float().t().contiguous())
        return cached

    def table(self) -> torch.Tensor:
        """int64 [3, num_slots] on the device: the addresses of every A, of every B, and the ranks.

        One tensor for the life of the module, so that a captured graph sees every later change. It is brought up to
        date here, on the current stream.
        """
        if self._table_is_stale:
            assert all(pair is None or pair[1].is_contiguous() for pair in self._pairs)
            a, b = ([pair[i].data_ptr() if pair else 0 for pair in self._pairs] for i in (0, 1))
            self._table.copy_(torch.tensor([a, b, self.ranks], dtype=torch.int64))
            self._table_is_stale = False
        return self._table

    def float_table(self) -> int:
        """The address of int64 [2, num_slots] on the host: those of every A [rank, in] and B.T [rank, out], float32."""
        if self._float_table_is_stale:
            pairs = [self.transposed(slot) if rank else None for slot, rank in enumerate(self.ranks)]
            self._float_table[:] = [[pair[i].data_ptr() if pair else 0 for pair in pairs] for i in (0, 1)]
            self._float_table_is_stale = False
        return self._float_table_address

    def _place(self, slot: int, pair: Pair | None, rank: int) -> None:
        if not 0 <= slot < self.num_slots:
            raise ValueError(f"slot {slot} is not one of 0..{self.num_slots - 1}")
        self._pairs[slot] = pair
        self._transposed[slot] = None
        self.ranks = (*self.ranks[:slot], rank, *self.ranks[slot + 1 :])
        self.max_rank = max(self.ranks)
        self._table_is_stale = self._float_table_is_stale = True
        self.has_aligned_pairs = all(tensor.data_ptr() % 16 == 0 for p in self._pairs if p for tensor in p)
        self.has_even_ranks = all(r % 8 == 0 for r in self.ranks)

    def _check(self, slot: int, name: str, tensor: torch.Tensor, shape: tuple[int, int]) -> None:
        if tuple(tensor.shape) != shape:
            raise ValueError(f"slot {slot}: {name} has shape {tuple(tensor.shape)}, expected {shape}")
        if tensor.dtype != self.dtype:
            raise ValueError(f"slot {slot}: {name} is {tensor.dtype}, the module's rows are {self.dtype}")
        if tensor.device.type != self.device.type:
            raise ValueError(f"slot {slot}: {name} is on {tensor.device}, the module is on {self.device}")
        if not tensor.is_contiguous() and not (name == "B" and tensor.t().is_contiguous()):
            raise ValueError(f"slot {slot}: {name} is not contiguous, strides {tensor.stride()}")
