"""FusedLinear: linear layers of one input as one product, and after it every row's own LoRA deltas."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import nn

from loramux.config import Quantization
from loramux.model.forward_context import current_context
from loramux.model.fused.weight_forms import WeightForm, form_of
from loramux.model.host_memory import HugePages
from loramux_kernels import SlotWeights, lora_group


class FusedLinear:
    """`x @ concat(weights).T + concat(biases)` of the members, whose outputs lie side by side.

    Until `pack`, the members' own weights are used. `pack` moves them into another form (`weight_forms`) where there
    is one, and the members keep no weights of their own. On a CPU in float32 a row's result is then the same to the bit
    whatever rows are beside it.
    """

    def __init__(self, members: Sequence[nn.Linear], *, is_lm_head: bool = False) -> None:
        self.members = tuple(members)
        self.in_features = members[0].in_features
        widths = [member.out_features for member in members]
        self.offsets = tuple(sum(widths[:index]) for index in range(len(widths)))
        self.out_features = sum(widths)
        self._is_lm_head = is_lm_head
        self._bias = _concatenated_bias(self.members)
        self._form: WeightForm | None = None
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

    def pack(self, quantization: Quantization | None = None, pages: HugePages | None = None) -> None:
        """Give the weights the form asked for and let go of the members' own, but for those that something else shares.

        Without quantization products stay what they were. `pages` is where a CPU's weights go.
        """
        self._form = form_of([member.weight for member in self.members], quantization, pages or HugePages())
        if self._form is None:
            return
        for member in self.members:
            member.weight = nn.Parameter(torch.empty_like(member.weight, device="meta"), requires_grad=False)

    @property
    def num_weights(self) -> int:
        return self.in_features * self.out_features

    def weight_of(self, member: nn.Module) -> torch.Tensor:
        """The weight [out, in] of a member that products use: read back, slowly; rounded where it is quantized."""
        index = self.members.index(member)
        if self._form is None:
            weight: torch.Tensor = self.members[index].weight
            return weight
        start = self.offsets[index]
        return self._form.read()[start : start + self.members[index].out_features].contiguous()

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        if self._form is not None:
            return self._form.multiply(rows, self._bias)
        if len(self.members) == 1:
            return F.linear(rows, self.members[0].weight, self._bias)
        return torch.cat([F.linear(rows, member.weight, member.bias) for member in self.members], dim=-1)


def _concatenated_bias(members: Sequence[nn.Linear]) -> torch.Tensor | None:
    if all(member.bias is None for member in members):
        return None
    return torch.cat([_bias(member) for member in members])


def _bias(member: nn.Linear) -> torch.Tensor:
    return member.weight.new_zeros(member.out_features) if member.bias is None else member.bias
