"""How the Triton kernels of LoRA cut their work: tiles, splits of the inputs, spans of the outputs, and precision.

All of it follows from shapes and dtypes. Reasons are in kernels/README.md; nothing has been measured on a device yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch

from loramux_kernels.hopper import check_dot
from loramux_kernels.segments import PIECE_ROWS

LAUNCH: Final = {"num_warps": 4, "num_stages": 1}  # stages of loops that do not say their own
COLUMNS: Final = 128  # a program has a multiple of as many outputs
NUM_PROGRAMS: Final = 256  # that either half of a launch aims at
SPLIT_INPUTS: Final = 256  # a split of in_features has a multiple of as many
MAX_SPLITS: Final = 32


@dataclass(frozen=True, slots=True)
class Tiles:
    """What a program takes at a time of pairs of rank up to `rank`; of higher ones, that much of the rank at a time.

    `block_k` of in_features, in a pipeline of `stages`, or `block_n` of out_features.
    """

    rank: int
    block_k: int
    stages: int
    block_n: int

    def __post_init__(self) -> None:
        check_dot(f"x by A in {self}", block_m=PIECE_ROWS, num_stages=self.stages, left_in_registers=False)
        check_dot(f"the intermediate by B in {self}", block_m=PIECE_ROWS, num_stages=LAUNCH["num_stages"])
        if SPLIT_INPUTS % self.block_k or COLUMNS % self.block_n:
            raise ValueError(f"{self}: block_k must divide {SPLIT_INPUTS}, block_n {COLUMNS}: the units of a program")

    def constants(self) -> tuple[int, int, int, int]:
        """As the kernels take them."""
        return (self.rank, self.block_k, self.stages, self.block_n)


# By bytes of an element.
TILES: Final = {
    2: (Tiles(rank=16, block_k=128, stages=6, block_n=64), Tiles(rank=64, block_k=64, stages=6, block_n=32)),
    4: (Tiles(rank=16, block_k=64, stages=4, block_n=64), Tiles(rank=32, block_k=64, stages=4, block_n=32)),
}


def splits(in_features: int, num_products: int) -> tuple[int, int]:
    """(in_features of a split, of a program) of a shrink of so many products of a piece, a member and a rank's block.

    A split has a sum of its own: it depends on in_features alone, and so does every bit. A program takes one, or all of
    them where the products are work for half of NUM_PROGRAMS.
    """
    split = SPLIT_INPUTS * -(-in_features // (SPLIT_INPUTS * MAX_SPLITS))
    return split, split if num_products < NUM_PROGRAMS // 2 else max(split, in_features)


def spans(widths: Sequence[int], num_pieces: int) -> tuple[int, int]:
    """(columns of a program, programs per piece) of a launch: about NUM_PROGRAMS in all, if there is as much work."""
    num_tiles = sum(-(-width // COLUMNS) for width in widths)
    columns = COLUMNS * max(1, min(num_tiles * num_pieces // NUM_PROGRAMS, -(-max(widths) // COLUMNS)))
    return columns, sum(-(-width // columns) for width in widths)


def tiles_up_to(element_size: int, max_rank: int) -> tuple[tuple[int, int, int, int], ...]:
    """The tiles that slots of rank up to `max_rank` take, in the order of their ranks; the last one may repeat."""
    tiles = TILES[element_size]
    num_tiles = 1 + sum(tile.rank < max_rank for tile in tiles[:-1])
    return tuple(tile.constants() for tile in tiles[:num_tiles])


def precision(left: Literal["x", "shrunk", "token"], dtype: torch.dtype, *, is_amd: bool) -> str:
    """How a product by B keeps 24 bits of its float32 rows.

    16-bit values are exact in tf32: one product suffices for columns of A, and three keep the bits of a shrunk row.
    AMD multiplies float32 natively.
    """
    if is_amd or dtype == torch.float32:
        return "ieee"
    return "tf32" if left == "token" else "tf32x3"
