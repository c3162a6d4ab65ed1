"""What Hopper compiles wrongly, refused where a kernel's sizes are chosen.

ptxas before CUDA 13.3 miscompiles a pipelined wgmma whose left operand sits in registers: numbers are wrong, silently
(triton-lang/triton#9433, #11781). Triton takes wgmma from 64 rows on; below, it takes mma, which is right.
"""

from __future__ import annotations

from typing import Final

WGMMA_ROWS: Final = 64


def check_dot(name: str, *, block_m: int, num_stages: int, left_in_registers: bool = True) -> None:
    """Raise ValueError where Hopper could miscompile the dots of a loop.

    block_m: rows of the dot. num_stages: of the loop it stands in. left_in_registers: its left operand is a result, not
    what a load brought.
    """
    if left_in_registers and block_m >= WGMMA_ROWS and num_stages > 1:
        raise ValueError(
            f"{name}: a dot of {block_m} rows with its left operand in registers, in a loop of {num_stages} stages, is "
            f"miscompiled on Hopper: take fewer than {WGMMA_ROWS} rows, or one stage"
        )
