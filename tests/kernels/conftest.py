from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from loramux_kernels import Backend, select_backend

BACKENDS = ("torch", "numba") if os.environ.get("TRITON_INTERPRET") != "1" else ("triton",)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each form of the ops that a CPU runs, in turn; Triton's where its interpreter runs them."""
    select_backend(request.param)
    yield request.param
    select_backend(None)
