"""SlotWeights: the low-rank pairs of one wrapped module, one pair per adapter slot.

The memory of the pairs belongs to whoever sets them. It must stay alive and unchanged until the slot is set again or
cleared: what the ops derive from a pair (transposed views, stacks, addresses) is dropped by `set` and `clear` alone.
"""

from __future__ import annotations

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
        self._pairs: list[Pair | None] = [None] * num_slots
        self._transposed: list[Pair | None] = [None] * num_slots

    def set(self, slot: int, a: torch.Tensor | None, b: torch.Tensor | None) -> None:
        """Place a pair in a slot; None or rank 0 means that the slot's adapter does not change this module.

        Raises ValueError naming what does not fit: shape, dtype, device, or a view that is not contiguous.
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

    def transposed(self, slot: int) -> Pair | None:
        """(A.T [in, rank], B.T [rank, out]) in float32, made once: views of a float32 pair, copies of a 16-bit one."""
        cached = self._transposed[slot]
        if cached is None and (pair := self._pairs[slot]) is not None:
            cached = self._transposed[slot] = (pair[0].float().t(), pair[1].float().t())
        return cached

    def _place(self, slot: int, pair: Pair | None, rank: int) -> None:
        if not 0 <= slot < self.num_slots:
            raise ValueError(f"slot {slot} is not one of 0..{self.num_slots - 1}")
        self._pairs[slot] = pair
        self._transposed[slot] = None
        self.ranks = (*self.ranks[:slot], rank, *self.ranks[slot + 1 :])
        self.max_rank = max(self.ranks)

    def _check(self, slot: int, name: str, tensor: torch.Tensor, shape: tuple[int, int]) -> None:
        if tuple(tensor.shape) != shape:
            raise ValueError(f"slot {slot}: {name} has shape {tuple(tensor.shape)}, expected {shape}")
        if tensor.dtype != self.dtype:
            raise ValueError(f"slot {slot}: {name} is {tensor.dtype}, the module's rows are {self.dtype}")
        if tensor.device.type != self.device.type:
            raise ValueError(f"slot {slot}: {name} is on {tensor.device}, the module is on {self.device}")
        if not tensor.is_contiguous():
            raise ValueError(f"slot {slot}: {name} is not contiguous, strides {tensor.stride()}")
