"""The small ops between a layer's products: each its contract, a torch reference, and the choice of its form.

In all of them rows are tokens, tensors are contiguous and of one device and, but for a KV cache of 16 bits beside
float32, of one dtype, and a row depends on no other row.
The loops of numba are float32 on CPU; they and Triton's kernels differ from the reference in the last bits: of 16-bit
results the reference rounds what lies between, too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses

from loramux_kernels.attention import as_kept
from loramux_kernels.backend import ITEM_TYPES, use_numba, use_triton
from loramux_kernels.recording import new_rows

SHORT = 1 << 15  # elements: a loop over fewer is done before a second thread has begun


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return `weight * x / sqrt(mean(x**2) + eps)`; x: [num_rows, hidden], weight: [hidden]. Computed in float32."""
    if use_triton(x):
        from loramux_kernels import layers_triton  # triton is imported where it is used

        return layers_triton.rms_norm(x, weight, eps)
    if not use_numba(x):
        wide = x.float()
        return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)
    from loramux_kernels import layers_numba, machine_numba  # numba is imported where it is used

    num_rows, hidden = x.shape
    out = new_rows(x, num_rows, hidden)
    addresses = (x.data_ptr(), weight.data_ptr(), out.data_ptr())
    layers_numba.rms_norm().run(num_rows, *addresses, hidden, machine_numba.float_bits(eps), alone=x.numel() < SHORT)
    return out


def add_rows(y: torch.Tensor, x: torch.Tensor) -> None:
    """Add x, [num_rows, width] or, for every row, [width], to y [num_rows, width] in place; x may have any strides."""
    if not use_numba(y):
        y.add_(x)
        return
    from loramux_kernels import layers_numba

    num_rows, width = y.shape
    if x.shape not in ((num_rows, width), (width,)):
        raise ValueError(f"cannot add rows of shape {list(x.shape)} to {list(y.shape)}")
    x = x.contiguous()
    stride = 4 * width if x.dim() == 2 else 0
    layers_numba.add_rows().run(num_rows, x.data_ptr(), stride, y.data_ptr(), width, alone=y.numel() < SHORT)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """Return `silu(gate) * up` [num_rows, width] of gate_up [num_rows, 2 * width], the gates first."""
    if use_triton(gate_up):
        from loramux_kernels import layers_triton

        return layers_triton.silu_mul(gate_up)
    width = gate_up.shape[1] // 2
    if not use_numba(gate_up):
        return F.silu(gate_up[:, :width]) * gate_up[:, width:]
    from loramux_kernels import layers_numba

    out = new_rows(gate_up, gate_up.shape[0], width)
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
    """Rotate queries and keys by their positions, in place, and write keys and values to the KV cache (`as_kept`).

    qkv: [num_rows, (num_heads + 2 * num_kv_heads) * head_dim], queries first, then keys, then values; cos, sin:
    [num_rows, head_dim]; kv_slots: int64 [num_rows], all different; keys, values: [..., num_kv_heads, head_dim],
    where kv_slots count through the leading dimensions.
    Rotary embedding by halves (RoFormer, arXiv:2104.09864, as in Llama): `x * cos + (-x[half:], x[:half]) * sin`.
    """
    if use_triton(qkv):
        from loramux_kernels import layers_triton

        layers_triton.rotate_and_store(qkv, cos, sin, kv_slots, keys, values, num_heads)
        return
    num_rows = qkv.shape[0]
    num_kv_heads, dim = keys.shape[-2:]
    if use_numba(qkv):
        from loramux_kernels import layers_numba

        tensors = (qkv, cos, sin, kv_slots, keys, values)
        layers_numba.rotate_and_store(ITEM_TYPES.index(keys.dtype)).run(
            num_rows, *(t.data_ptr() for t in tensors), num_heads, num_kv_heads, dim, alone=qkv.numel() < SHORT
        )
        return
    heads = qkv.view(num_rows, num_heads + 2 * num_kv_heads, dim)
    rotated, value = heads[:, :-num_kv_heads], heads[:, -num_kv_heads:]
    low, high = rotated.chunk(2, dim=-1)
    rotated.copy_(rotated * cos[:, None] + torch.cat([-high, low], dim=-1) * sin[:, None])
    keys.flatten(0, -3).index_copy_(0, kv_slots, as_kept(rotated[:, num_heads:], keys.dtype))
    values.flatten(0, -3).index_copy_(0, kv_slots, as_kept(value, values.dtype))
