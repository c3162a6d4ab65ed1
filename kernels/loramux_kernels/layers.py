"""The small ops between a layer's products: each its contract, a torch reference, and the choice between it and numba.

In all of them rows are tokens, tensors are contiguous and of one dtype and device, and a row depends on no other row.
The loops of numba are float32 on CPU; they differ from the reference by a few units in the last place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses

from loramux_kernels.backend import use_numba

SHORT = 1 << 15  # elements: a loop over fewer is done before a second thread has begun


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return `weight * x / sqrt(mean(x**2) + eps)`; x: [num_rows, hidden], weight: [hidden]. Computed in float32."""
    if not use_numba(x):
        wide = x.float()
        return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)
    from loramux_kernels import layers_numba, machine_numba  # numba is imported where it is used

    out = torch.empty_like(x)
    num_rows, hidden = x.shape
    addresses = (x.data_ptr(), weight.data_ptr(), out.data_ptr())
    layers_numba.rms_norm().run(num_rows, *addresses, hidden, machine_numba.float_bits(eps), alone=x.numel() < SHORT)
    return out


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """Return `silu(gate) * up` [num_rows, width] of gate_up [num_rows, 2 * width], the gates first."""
    width = gate_up.shape[1] // 2
    if not use_numba(gate_up):
        return F.silu(gate_up[:, :width]) * gate_up[:, width:]
    from loramux_kernels import layers_numba

    out = gate_up.new_empty(gate_up.shape[0], width)
    layers_numba.silu_mul().run(gate_up.shape[0], gate_up.data_ptr(), out.data_ptr(), width, alone=out.numel() < SHORT)
    return out


def rotate_and_store(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    kv_slots: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    num_heads: int,
) -> None:
    """Rotate queries and keys by their positions, in place, and write keys and values to the KV cache.

    qkv: [num_rows, (num_heads + 2 * num_kv_heads) * head_dim], queries first, then keys, then values; cos, sin:
    [num_rows, head_dim]; kv_slots: int64 [num_rows], all different; keys, values: [..., num_kv_heads, head_dim],
    where kv_slots count through the leading dimensions.
    Rotary embedding by halves (RoFormer, arXiv:2104.09864, as in Llama): `x * cos + (-x[half:], x[:half]) * sin`.
    """
    num_rows = qkv.shape[0]
    num_kv_heads, dim = keys.shape[-2:]
    if use_numba(qkv):
        from loramux_kernels import layers_numba

        tensors = (qkv, cos, sin, kv_slots, keys, values)
        layers_numba.rotate_and_store().run(
            num_rows, *(t.data_ptr() for t in tensors), num_heads, num_kv_heads, dim, alone=qkv.numel() < SHORT
        )
        return
    heads = qkv.view(num_rows, num_heads + 2 * num_kv_heads, dim)
    rotated, value = heads[:, :-num_kv_heads], heads[:, -num_kv_heads:]
    low, high = rotated.chunk(2, dim=-1)
    rotated.copy_(rotated * cos[:, None] + torch.cat([-high, low], dim=-1) * sin[:, None])
    keys.flatten(0, -3).index_copy_(0, kv_slots, rotated[:, num_heads:])
    values.flatten(0, -3).index_copy_(0, kv_slots, value)
