"""The device that an engine computes on, and the kernels it uses there: checked before a weight is read.

What cannot be done is refused with the reason. Nothing slower is taken in its place unless the arguments say so.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil

import torch

from loramux.config import EngineArgs
from loramux.errors import ConfigInvalid
from loramux_kernels import select_backend

logger = logging.getLogger(__name__)

MIN_CAPABILITY = (8, 0)
"""The oldest NVIDIA GPUs that Triton compiles for and that multiply bfloat16: Ampere."""

_TORCH_INSTEAD = "kernels='torch' (LORAMUX_KERNELS=torch) serves with torch's own operators instead, slowly"


def choose_device(args: EngineArgs) -> torch.device:
    """Return the device asked for and select the kernels for it; raises ConfigInvalid with what is in the way.

    "auto" is the GPU where there is one that can serve, and the CPU otherwise, with a warning if there is one that
    cannot. The kernels are selected for the whole process.
    """
    device = torch.device(args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    reason = _why_not(device, args)
    if reason is not None and args.device == "auto" and device.type == "cuda":
        logger.warning("the GPU is not used reason=%r", reason)
        device = torch.device("cpu")
        reason = _why_not(device, args)
    if reason is not None:
        raise ConfigInvalid(f"device {args.device!r} cannot be served: {reason}")
    if args.kernels != "auto":
        select_backend(args.kernels)
    return device


def _why_not(device: torch.device, args: EngineArgs) -> str | None:
    """What keeps these kernels from running on this device; None when nothing does."""
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if is_interpreted and args.kernels == "auto":
        return (
            "TRITON_INTERPRET=1 is set, and Triton's interpreter is for tests: unset it, or choose the kernels by name "
            "(LORAMUX_KERNELS=triton or torch)"
        )
    if device.type == "cpu":
        if args.kernels == "triton" and not is_interpreted:
            return (
                "kernels='triton' need a GPU; on a CPU only the interpreter runs them (TRITON_INTERPRET=1), for tests"
            )
        return None
    reason = _why_no_gpu()
    if reason is None and args.kernels != "torch":
        reason = _why_no_triton()
        return None if reason is None else f"{reason}; {_TORCH_INSTEAD}"
    return reason


def _why_no_gpu() -> str | None:
    """Why torch cannot compute on a GPU: its build, the driver, or no GPU that this process may see."""
    if torch.version.cuda is None and torch.version.hip is None:
        return (
            f"this torch ({torch.__version__}) is built for CPUs alone; install a build for CUDA, as docs/gpu.md says"
        )
    if torch.cuda.is_available():
        return None
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # which says what is missing
    except (RuntimeError, AssertionError) as exc:
        return f"torch finds no usable GPU: {str(exc).strip().splitlines()[0]}"
    return "torch finds no GPU that this process may use"


def _why_no_triton() -> str | None:
    """Why Triton cannot compile for the current GPU: not installed, no compiler for its launchers, or too old a GPU."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install 'loramux[gpu]')"
    if torch.version.hip is None and (capability := torch.cuda.get_device_capability()) < MIN_CAPABILITY:
        has, needs = (".".join(map(str, version)) for version in (capability, MIN_CAPABILITY))
        return (
            f"{torch.cuda.get_device_name()} has compute capability {has}, and the Triton kernels need {needs} or more"
        )
    if "CC" not in os.environ and not any(map(shutil.which, ("gcc", "clang"))):
        return "Triton builds its launchers with a C compiler, and there is none (gcc, clang, or CC in the environment)"
    return None
