"""Token bits: a set of token ids as one bit each, as llguidance gives it, and what the sampler does with it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch

from loramux.text.grammar import TokenBits


def pack(token_ids: Collection[int]) -> TokenBits:
    """Turn token ids into bits."""
    flags = np.zeros(max(token_ids, default=-1) + 1, dtype=np.uint8)
    flags[list(token_ids)] = 1
    return np.packbits(flags, bitorder="little")


def intersection(one: TokenBits, other: TokenBits) -> TokenBits:
    """Return the tokens that are in both."""
    nbytes = min(len(one), len(other))
    return one[:nbytes] & other[:nbytes]


def difference(bits: TokenBits, token_ids: Collection[int]) -> TokenBits:
    """Return the tokens without a few of them."""
    left = bits.copy()
    for token_id in token_ids:
        if token_id < 8 * len(left):
            left[token_id // 8] &= ~np.uint8(1 << token_id % 8)
    return left


def unpack(rows: Sequence[TokenBits], vocab_size: int, device: torch.device) -> torch.Tensor:
    """Return which tokens are in each row's set: bool [num_rows, vocab_size]. The bits are spread on the device."""
    packed = np.zeros((len(rows), -(-vocab_size // 8)), dtype=np.uint8)
    for index, bits in enumerate(rows):
        nbytes = min(len(bits), packed.shape[1])
        packed[index, :nbytes] = bits[:nbytes]
    places = torch.arange(8, dtype=torch.uint8, device=device)
    spread = (torch.from_numpy(packed).to(device).unsqueeze(-1) >> places) & 1  # [num_rows, nbytes, 8]
    return spread.flatten(1)[:, :vocab_size].bool()
