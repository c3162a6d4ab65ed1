from __future__ import annotations

from collections.abc import Iterator

import pytest

from loramux_kernels import Backend, select_backend


@pytest.fixture(params=["torch", "numba"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each form of the ops that a CPU runs, in turn."""
    select_backend(request.param)
    yield request.param
    select_backend(None)
