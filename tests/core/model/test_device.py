"""A device that cannot serve is refused with the reason before a weight is read; faults are put into torch itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from loramux import EngineArgs
from loramux.errors import ConfigInvalid
from loramux.model import device as device_module
from loramux.model.device import choose_device
from loramux.model.loader import load_model
from loramux_kernels import backend, select_backend


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    yield
    select_backend(None)


def choose(**options: object) -> torch.device:
    return choose_device(EngineArgs(model="m", **options))  # type: ignore[arg-type]


def refusal(**options: object) -> str:
    with pytest.raises(ConfigInvalid) as caught:
        choose(**options)
    return str(caught.value)


class Gpu:
    """What torch says of a machine with one GPU, which a test spoils piece by piece."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(torch.version, "cuda", "12.8")
        self.says("is_available", True)
        self.says("get_device_capability", (9, 0))
        self.says("get_device_name", "NVIDIA H100")
        monkeypatch.setenv("CC", "gcc")

    def says(self, function: str, answer: object) -> None:
        def answered(*_arguments: object) -> object:
            if isinstance(answer, Exception):
                raise answer
            return answer

        self._monkeypatch.setattr(torch.cuda, function, answered)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)


def test_a_gpu_that_can_serve_is_taken_by_auto_and_by_name(gpu: Gpu) -> None:
    assert choose(device="auto").type == choose(device="cuda").type == "cuda"
    assert choose(device="cpu").type == "cpu"


def test_a_build_of_torch_for_cpus_is_named(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)

    assert f"this torch ({torch.__version__}) is built for CPUs alone" in refusal(device="cuda")


def test_a_missing_driver_is_told_in_torchs_own_words(gpu: Gpu) -> None:
    gpu.says("is_available", False)
    gpu.says("init", RuntimeError("Found no NVIDIA driver on your system. Please check.\nand more"))

    message = refusal(device="cuda")

    assert message.endswith("torch finds no usable GPU: Found no NVIDIA driver on your system. Please check.")


def test_a_driver_without_a_device_is_told(gpu: Gpu) -> None:
    gpu.says("is_available", False)
    gpu.says("init", None)

    assert "torch finds no GPU that this process may use" in refusal(device="cuda")


def test_too_old_a_gpu_is_told_with_what_it_has_and_what_is_needed(gpu: Gpu) -> None:
    gpu.says("get_device_capability", (7, 5))
    gpu.says("get_device_name", "Tesla T4")

    message = refusal(device="cuda")

    assert "Tesla T4 has compute capability 7.5, and the Triton kernels need 8.0 or more" in message
    assert "LORAMUX_KERNELS=torch" in message


def test_missing_triton_is_told(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module.importlib.util, "find_spec", lambda _name: None)

    assert "Triton is not installed" in refusal(device="cuda")


def test_a_missing_compiler_is_told(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC")
    monkeypatch.setattr(device_module.shutil, "which", lambda _name: None)

    assert "Triton builds its launchers with a C compiler, and there is none" in refusal(device="cuda")


def test_only_who_asks_for_torchs_operators_gets_them_instead(gpu: Gpu) -> None:
    gpu.says("get_device_capability", (7, 5))

    assert choose(device="cuda", kernels="torch").type == "cuda"
    assert backend._selected == ["torch"]


def test_torchs_operators_do_not_make_up_for_a_missing_gpu(gpu: Gpu) -> None:
    gpu.says("is_available", False)
    gpu.says("init", RuntimeError("No CUDA GPUs are available"))

    assert "No CUDA GPUs are available" in refusal(device="cuda", kernels="torch")


def test_auto_says_why_it_leaves_a_gpu_alone(gpu: Gpu, caplog: pytest.LogCaptureFixture) -> None:
    gpu.says("get_device_capability", (7, 5))

    with caplog.at_level(logging.WARNING):
        assert choose(device="auto").type == "cpu"

    assert "the GPU is not used" in caplog.text
    assert "compute capability 7.5" in caplog.text


@pytest.mark.parametrize("device", ["cpu", "cuda", "auto"])
def test_the_interpreter_serves_nobody_unasked(gpu: Gpu, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")

    assert "TRITON_INTERPRET=1 is set, and Triton's interpreter is for tests" in refusal(device=device)


def test_the_interpreter_serves_who_names_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")

    assert choose(device="cpu", kernels="triton").type == "cpu"
    assert backend._selected == ["triton"]


def test_triton_on_a_cpu_is_refused() -> None:
    assert "kernels='triton' need a GPU" in refusal(device="cpu", kernels="triton")


def test_the_refusal_comes_before_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder has nothing to be read; the machine is what is in the way."""
    monkeypatch.setattr(torch.version, "cuda", None)

    with pytest.raises(ConfigInvalid, match="device 'cuda' cannot be served: this torch"):
        load_model(EngineArgs(model=str(tmp_path), device="cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_here_can_serve() -> None:
    assert choose(device="cuda").type == "cuda"
