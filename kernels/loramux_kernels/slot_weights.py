"""SlotWeights: the low-rank pairs of one wrapped module, one pair per adapter slot.

The memory of the pairs belongs to whoever sets them. It must stay alive and unchanged until the slot is set again or
cleared: what the ops derive from a pair (transposed views, addresses) is dropped by `set` and `clear` alone.
"""

from __future__ import annotations

import numpy as np
import torch

from loramux_kernels.backend import ITEM_TYPES
from loramux_kernels.slot_table import SlotTable

ALIGNMENT = 16  # bytes; the kernels load vectors of as many from the address of a tensor on

_16_BIT = (torch.float16, torch.bfloat16)

Pair = tuple[torch.Tensor, torch.Tensor]


class SlotWeights:
    """A of slot s is [rank_s, in_features], B is [out_features, rank_s]; a slot without a pair leaves rows as they are.

    In memory A lies as it is and B transposed: both as `rank` rows. The delta of a row is `(x @ A.T) @ B.T`: the owner
    has folded the scaling into B. `set` and `clear` may run between steps only, on the thread that runs the ops.

    Pairs are of the rows' dtype. Where rows are float32 on a CPU they may also be float16 or bfloat16, A and B alike.

    max_rank: the highest rank that a slot may ever hold; launches are made for it. table: where the kernels of this and
    of other modules find their pairs, this one's under the index `module`; without one it has a table of its own.
    """

    def __init__(
        self,
        num_slots: int,
        in_features: int,
        out_features: int,
        dtype: torch.dtype,
        device: torch.device | str,
        *,
        max_rank: int,
        table: SlotTable | None = None,
        module: int = 0,
    ) -> None:
        if max_rank * max(in_features, out_features) >= 1 << 31:
            raise ValueError(f"a pair of rank {max_rank} and {in_features} x {out_features} features is too large")
        self.num_slots = num_slots
        self.in_features = in_features
        self.out_features = out_features
        self.dtype = dtype
        self.device = torch.device(device)
        self.max_rank = max_rank
        self.ranks: tuple[int, ...] = (0,) * num_slots
        self.item_types: tuple[int, ...] = (0,) * num_slots  # of ITEM_TYPES, where rows are float32 on a CPU
        self.highest_rank = 0  # of those present
        self._pairs: list[Pair | None] = [None] * num_slots
        self._transposed: list[Pair | None] = [None] * num_slots
        self._table = SlotTable(1, num_slots, self.device) if table is None else table
        self._module = module
        self._host_table = np.zeros((2, num_slots), dtype=np.int64)
        self._host_table_address: int = self._host_table.ctypes.data

    def set(self, slot: int, a: torch.Tensor | None, b: torch.Tensor | None) -> None:
        """Place a pair in a slot; None or rank 0 means that the slot's adapter does not change this module.

        Raises ValueError naming what does not fit: rank, shape, dtype, device, layout, or an address that is no
        multiple of 16.
        """
        if a is None or b is None:
            if a is not b:
                raise ValueError(f"slot {slot}: A and B come together, or neither")
            self._place(slot, None)
            return
        rank = a.shape[0]
        if rank > self.max_rank:
            raise ValueError(f"slot {slot}: rank {rank} is beyond the module's highest, {self.max_rank}")
        self._check(slot, "A", a, (rank, self.in_features))
        self._check(slot, "B", b, (self.out_features, rank))
        if a.dtype != b.dtype:
            raise ValueError(f"slot {slot}: A is {a.dtype}, B {b.dtype}")
        if not a.is_contiguous() or not b.t().is_contiguous():
            strides = f"A has strides {a.stride()}, B {b.stride()}"
            raise ValueError(f"slot {slot}: A must be contiguous, B the transpose of a contiguous tensor; {strides}")
        self._place(slot, (a, b) if rank else None)

    def clear(self, slot: int) -> None:
        """Empty a slot and forget its memory."""
        self._place(slot, None)

    def a(self, slot: int) -> torch.Tensor | None:
        """A [rank, in_features] of a slot, None where it has no pair."""
        pair = self._pairs[slot]
        return None if pair is None else pair[0]

    def b(self, slot: int) -> torch.Tensor | None:
        """B [out_features, rank] of a slot, None where it has no pair."""
        pair = self._pairs[slot]
        return None if pair is None else pair[1]

    @property
    def _may_be_16_bit(self) -> bool:
        return self.dtype is torch.float32 and self.device.type == "cpu"

    def rank(self, slot: int) -> int:
        """Rank of a slot's pair, 0 where it has none."""
        return self.ranks[slot]

    def transposed(self, slot: int) -> Pair:
        """(A.T [in, rank], B.T [rank, out]) of a slot that has a pair, float32, both as rows of rank lie in memory.

        Views, or copies where the pair is 16-bit.
        """
        cached = self._transposed[slot]
        if cached is None:
            pair = self._pairs[slot]
            assert pair is not None, f"slot {slot} has no pair"
            cached = self._transposed[slot] = (pair[0].float().t(), pair[1].float().t())
        return cached

    def table(self) -> torch.Tensor:
        """int64 [3, num_slots] on the device: the addresses of every A, of every B, and the ranks.

        The same memory for the life of the module, brought up to date here (see SlotTable.flip).
        """
        self._table.flip()
        return self._table.tensor[self._module, :, : self.num_slots]

    def host_table(self) -> int:
        """The address of int64 [2, num_slots] on the host: those of every A [rank, in] and B.T [rank, out] on a CPU."""
        return self._host_table_address

    def _place(self, slot: int, pair: Pair | None) -> None:
        if not 0 <= slot < self.num_slots:
            raise ValueError(f"slot {slot} is not one of 0..{self.num_slots - 1}")
        rank = 0 if pair is None else pair[0].shape[0]
        self._pairs[slot] = pair
        self._transposed[slot] = None
        self.ranks = (*self.ranks[:slot], rank, *self.ranks[slot + 1 :])
        self.highest_rank = max(self.ranks)
        a, b = (0, 0) if pair is None else (pair[0].data_ptr(), pair[1].data_ptr())
        self._host_table[:, slot] = a, b
        if self._may_be_16_bit:
            item_type = 0 if pair is None else ITEM_TYPES.index(pair[0].dtype)
            self.item_types = (*self.item_types[:slot], item_type, *self.item_types[slot + 1 :])
        self._table.set(self._module, slot, a=a, b=b, rank=rank)

    def _check(self, slot: int, name: str, tensor: torch.Tensor, shape: tuple[int, int]) -> None:
        if tuple(tensor.shape) != shape:
            raise ValueError(f"slot {slot}: {name} has shape {tuple(tensor.shape)}, expected {shape}")
        if tensor.dtype != self.dtype and not (self._may_be_16_bit and tensor.dtype in _16_BIT):
            raise ValueError(f"slot {slot}: {name} is {tensor.dtype}, the module's rows are {self.dtype}")
        if tensor.device.type != self.device.type:
            raise ValueError(f"slot {slot}: {name} is on {tensor.device}, the module is on {self.device}")
        if tensor.data_ptr() % ALIGNMENT:
            raise ValueError(f"slot {slot}: {name} begins at {tensor.data_ptr():#x}, no multiple of {ALIGNMENT}")
