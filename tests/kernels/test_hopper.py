"""No configuration takes the shape that Hopper compiles wrongly; what is compiled is looked at in test_compiled.py."""

from __future__ import annotations

import pytest

from loramux_kernels import lora_tiles
from loramux_kernels.hopper import WGMMA_ROWS, check_dot


@pytest.mark.parametrize(
    ("block_m", "num_stages", "left_in_registers"), [(63, 4, True), (64, 1, True), (128, 4, False)]
)
def test_what_hopper_compiles_rightly_passes(block_m: int, num_stages: int, left_in_registers: bool) -> None:
    check_dot("here", block_m=block_m, num_stages=num_stages, left_in_registers=left_in_registers)


@pytest.mark.parametrize(("block_m", "num_stages"), [(64, 2), (128, 3)])
def test_a_pipelined_dot_of_registers_is_refused(block_m: int, num_stages: int) -> None:
    with pytest.raises(ValueError, match=f"here: a dot of {block_m} rows .* in a loop of {num_stages} stages"):
        check_dot("here", block_m=block_m, num_stages=num_stages)


def test_the_tiles_of_lora_are_checked_when_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = [tile for table in lora_tiles.TILES.values() for tile in table]
    assert lora_tiles.PIECE_ROWS < WGMMA_ROWS
    monkeypatch.setattr(lora_tiles, "PIECE_ROWS", WGMMA_ROWS)
    monkeypatch.setitem(lora_tiles.LAUNCH, "num_stages", 2)
    for tile in tiles:
        with pytest.raises(ValueError, match="miscompiled on Hopper"):
            lora_tiles.Tiles(tile.rank, tile.block_k, tile.stages, tile.block_n)
