"""FusedLinear: linear layers of one input as one product, and after it every row's own LoRA deltas."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import nn

from loramux.model.forward_context import current_context
from loramux_kernels import SlotWeights, lora_group

logger = logging.getLogger(__name__)

ROWS_PACKED_FOR = 64  # any number above 1: MKL packs for one row in a form of its own


class FusedLinear:
    """`x @ concat(weights).T + concat(biases)` of the members, whose outputs lie side by side.

    Until `pack`, the members' own weights are used. `pack` moves them into the form that MKL multiplies by, where torch
    was built with MKL and the weights are float32 on a CPU: no product packs them again, and the members keep no
    weights of their own. A row's result is then the same to the bit whatever rows are beside it, but for layers so
    small that MKL multiplies a single row in another order.
    """

    def __init__(self, members: Sequence[nn.Linear], *, is_lm_head: bool = False) -> None:
        self.members = tuple(members)
        self.in_features = members[0].in_features
        widths = [member.out_features for member in members]
        self.offsets = tuple(sum(widths[:index]) for index in range(len(widths)))
        self.out_features = sum(widths)
        self._is_lm_head = is_lm_head
        self._bias = _concatenated_bias(self.members)
        self._packed: torch.Tensor | None = None
        self._shape = torch.empty(1).expand(self.out_features, self.in_features)  # what MKL is told of the weights
        self._lora: tuple[tuple[SlotWeights, int], ...] = ()

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """rows: [num_rows, in_features]; returns [num_rows, out_features]."""
        y = self._multiply(rows)
        context = current_context()
        if self._lora and context is not None:
            # lm_head sees only the rows whose logits are wanted
            segments = context.logit_segments if self._is_lm_head else context.segments
            if segments is not None:
                lora_group(rows, self._lora, segments, y)
        return y

    def attach(self, member: nn.Module, weights: SlotWeights) -> None:
        """Let the columns of `member` get the delta of each row's adapter, read from `weights`."""
        self._lora = (*self._lora, (weights, self.offsets[self.members.index(member)]))

    def pack(self) -> None:
        """Pack the weights and let go of the members' own, but for those that something else shares."""
        if self._packed is not None or not _can_pack(self.members[0].weight):
            return
        weight = torch.cat([member.weight for member in self.members])
        packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, ROWS_PACKED_FOR)  # noqa: SLF001 - has no other name
        if not self._equals(packed, weight):
            logger.warning("weights not packed layer=%s reason='MKL gave other results'", self.members[0])
            return
        self._packed = packed
        for member in self.members:
            member.weight = nn.Parameter(torch.empty_like(member.weight, device="meta"), requires_grad=False)

    def weight_of(self, member: nn.Module) -> torch.Tensor:
        """The weight [out, in] of a member, read back out of the packed form where it is packed: exact, but slow."""
        index = self.members.index(member)
        if self._packed is None:
            weight: torch.Tensor = self.members[index].weight
            return weight
        identity, start = torch.eye(self.in_features), self.offsets[index]
        whole: torch.Tensor = torch.ops.mkl._mkl_linear(identity, self._packed, self._shape, None, self.in_features)  # noqa: SLF001
        return whole[:, start : start + self.members[index].out_features].t().contiguous()

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        if self._packed is not None:
            y: torch.Tensor = torch.ops.mkl._mkl_linear(  # noqa: SLF001
                rows, self._packed, self._shape, self._bias, rows.shape[0]
            )
            return y
        if len(self.members) == 1:
            return F.linear(rows, self.members[0].weight, self._bias)
        return torch.cat([F.linear(rows, member.weight, member.bias) for member in self.members], dim=-1)

    def _equals(self, packed: torch.Tensor, weight: torch.Tensor) -> bool:
        """Compare a few rows, alone and together: MKL does not promise that packing serves any number of rows."""
        x = torch.randn(5, self.in_features, generator=torch.Generator().manual_seed(0))
        expected = F.linear(x, weight)
        return all(
            torch.allclose(
                torch.ops.mkl._mkl_linear(x[:rows], packed, self._shape, None, rows),  # noqa: SLF001
                expected[:rows],
                rtol=1e-4,
                atol=1e-4,
            )
            for rows in range(1, len(x) + 1)
        )


def _concatenated_bias(members: Sequence[nn.Linear]) -> torch.Tensor | None:
    if all(member.bias is None for member in members):
        return None
    return torch.cat([_bias(member) for member in members])


def _bias(member: nn.Linear) -> torch.Tensor:
    return member.weight.new_zeros(member.out_features) if member.bias is None else member.bias


def _can_pack(weight: torch.Tensor) -> bool:
    return weight.dtype is torch.float32 and weight.device.type == "cpu" and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
