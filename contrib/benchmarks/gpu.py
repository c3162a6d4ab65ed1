"""The goals on a GPU: `python contrib/benchmarks/gpu.py` measures each one, and ends with 1 where one is missed.

numerics: the ops against float64, over many shapes. decode: whole engines, on the shape of Llama-3.1-8B with random
weights. ops: the LoRA op beside its bytes, and beside the peers' scheme. loads: streams while adapters are loaded.
Without a GPU it says so and ends with 2. `--tiny --device cpu`, with TRITON_INTERPRET=1, goes the same ways in seconds:
then the counts mean something, and the speeds nothing.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import triton

from costs.lora_scheme import lora_step
from goal_table import Goal, show_goals
from load_windows import NUM_STREAMS
from loramux import EngineArgs, LoRARequest
from made_adapters import ALL_LINEAR, AdapterKind, ensure_adapters
from on_device.attention_numerics import check_attention
from on_device.decoding import DecodeLoad, time_decoding
from on_device.loading import time_loading
from on_device.numerics import check_ops
from on_device.op_speed import memory_bandwidth, our_seconds, peer_seconds
from on_device.scale import MAX_LENGTH, Scale, full, tiny
from random_model import weights_drawn_on, write_shape

NO_DEVICE = 2
LOAD_SLOTS = 8


@dataclass(frozen=True, slots=True)
class Measured:
    """What a section found: its goals, and figures to print beside them."""

    goals: Sequence[Goal]
    figures: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where to measure: the device, the folder of the model's shape, and where its adapters are kept."""

    device: torch.device
    model: Path
    adapter_cache: Path | None
    rank: int

    def adapters(self, number: int) -> list[LoRARequest]:
        """Adapters on all linear layers; made when they are first needed."""
        folders = ensure_adapters(self.model, number, AdapterKind((self.rank,), ALL_LINEAR), cache=self.adapter_cache)
        return [LoRARequest(name, index, str(folder)) for index, (name, folder) in enumerate(folders.items(), 1)]

    def engine_args(self, scale: Scale, *, max_loras: int) -> EngineArgs:
        """What both sections with engines have in common."""
        return EngineArgs(
            model=str(self.model),
            device="cuda" if self.device.type == "cuda" else "cpu",
            enable_lora=True,
            max_loras=max_loras,
            max_lora_rank=self.rank,
            max_num_seqs=max(scale.max_batch_size, 2 * NUM_STREAMS),
            max_num_batched_tokens=max(512, scale.max_batch_size),
            kv_cache_memory_bytes=scale.kv_bytes,
            enable_prefix_caching=False,
        )


def main() -> int:
    """Measure, print the table, and say by the exit status whether all goals are reached."""
    arguments = _parse(sys.argv[1:])
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.stderr.write("gpu.py: there is no CUDA device here, so nothing was measured\n")
        return NO_DEVICE
    scale = tiny() if arguments.tiny else full(arguments.layers)
    with tempfile.TemporaryDirectory() as scratch:
        name = f"{scale.model.name}-{scale.model.num_layers}-layers"
        dtype = str(scale.dtype).removeprefix("torch.")
        model = write_shape(Path(scratch) / name, scale.model, max_length=MAX_LENGTH, dtype=dtype)
        cache = Path(scratch) / "adapters" if arguments.tiny else None
        place = Place(torch.device(arguments.device), model, cache, arguments.rank)
        found = [SECTIONS[section](scale, place) for section in arguments.sections]
    goals = [goal for measured in found for goal in measured.goals]
    setting = "; ".join([_device_name(place.device), name, *(one.figures for one in found)])
    return show_goals(goals, setting=setting)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--layers", type=int, default=32, help="of the model; fewer for a small device (32)")
    parser.add_argument("--rank", type=int, default=8, help="of the adapters that engines serve (8)")
    parser.add_argument("--tiny", action="store_true", help="small shapes and a tiny model: counts, not speeds")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments = parser.parse_args(words)
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if arguments.layers < 1 or arguments.rank < 1:
        parser.error("--layers and --rank must be at least 1")
    if arguments.device == "cpu" and not (arguments.tiny and is_interpreted):
        parser.error("--device cpu goes with --tiny, and with TRITON_INTERPRET=1 in the environment")
    if arguments.device == "cuda" and is_interpreted:
        parser.error("TRITON_INTERPRET=1 is set: unset it, or measure with --tiny --device cpu")
    return arguments


def numerics(scale: Scale, place: Place) -> Measured:
    """Every op and dtype within its tolerance, and no row that depends on its batch."""
    checked = [*check_ops(scale.shapes, place.device), *check_attention(scale.attention, place.device)]
    goals = []
    for one in checked:
        dtype = str(one.dtype).removeprefix("torch.")
        title = f"{one.op} in {dtype}, {one.num_cases} cases: largest error / tolerance"
        goals.append(Goal(title, one.worst, 1, is_least=False))
    num_variant = sum(one.num_variant for one in checked)
    goals.append(Goal("rows whose bits depend on their batch", num_variant, 0, is_least=False))
    return Measured(goals, f"{sum(one.num_cases for one in checked)} cases of numerics")


def decode(scale: Scale, place: Place) -> Measured:
    """Mixed adapters beside the base model, and the base model on an engine with LoRA beside one without."""
    args = place.engine_args(scale, max_loras=scale.max_adapters)
    with weights_drawn_on(place.device.type):
        times = time_decoding(
            args,
            place.adapters(scale.max_adapters),
            scale.decode_loads,
            num_steps=scale.num_steps,
            prompt_tokens=scale.prompt_tokens,
        )
    _free(place.device)
    goals = []
    for load in scale.decode_loads:
        title = f"decode, batch {load.batch_size}: {load.num_adapters} adapters of rank {place.rank} / base"
        bound = 0.93 if load.num_adapters <= 8 else 0.90
        goals.append(Goal(title, times.without[load.batch_size] / times.enabled[load], bound))
    for size, seconds in times.without.items():
        title = f"decode, batch {size}: base with LoRA enabled / disabled"
        goals.append(Goal(title, seconds / times.enabled[DecodeLoad(size)], 0.99))
    steps = ", ".join(f"{1000 * seconds:.2f} ms at batch {size}" for size, seconds in times.without.items())
    return Measured(goals, f"a step of the base model takes {steps}")


def ops(scale: Scale, place: Place) -> Measured:
    """The op of a decode step beside its bytes, and both forms of it beside the peers'."""
    like = torch.empty(0, dtype=scale.dtype, device=place.device)
    bandwidth = memory_bandwidth(place.device)
    goals = []
    for load in scale.roofline_loads:
        step = lora_step(scale.op_model, load.batch(), max_rank=load.max_rank, nbytes=like.element_size())
        title = f"LoRA op at decode, {load.num_adapters} adapters of rank {load.max_rank}: its bytes' time / its own"
        goals.append(Goal(title, step.nbytes / bandwidth / our_seconds(scale.op_model, load, like), 0.6))
    for load, bound in ((scale.peers_decode, 2.0), (scale.peers_prefill, 1.2)):
        title = f"LoRA ops at {load.name}, {load.num_rows} rows of {load.num_adapters} adapters: peers' time / ours"
        ratio = peer_seconds(scale.op_model, load, like) / our_seconds(scale.op_model, load, like)
        goals.append(Goal(title, ratio, bound))
    _free(place.device)
    return Measured(goals, f"a copy moves {bandwidth / 1e9:.0f} GB/s")


def loads(scale: Scale, place: Place) -> Measured:
    """The streams' slowest tokens while an adapter is loaded, beside their usual ones."""
    args = place.engine_args(scale, max_loras=LOAD_SLOTS)
    adapters = place.adapters(scale.num_streamed + scale.num_cold)
    with weights_drawn_on(place.device.type):
        loading = time_loading(args, adapters, num_streamed=scale.num_streamed)
    _free(place.device)
    windows = loading.windows
    slowed = windows.p99_during / windows.median_outside
    goal = Goal("p99 between tokens of other streams during a load / median", slowed, 1.1, is_least=False)
    return Measured(
        [goal],
        f"{loading.num_reads} adapters read, {loading.num_slot_loads} put into slots, between tokens "
        f"{1000 * windows.median_outside:.2f} ms median and {1000 * windows.p99_outside:.2f} ms p99 without a load",
    )


SECTIONS: Mapping[str, Callable[[Scale, Place], Measured]] = {
    "numerics": numerics,
    "decode": decode,
    "ops": ops,
    "loads": loads,
}


def _free(device: torch.device) -> None:
    """Give back the memory of engines and weights that are gone."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _device_name(device: torch.device) -> str:
    if device.type != "cuda":
        return f"Triton {triton.__version__} interpreted"
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()} (sm_{major}{minor}), CUDA {torch.version.cuda}, Triton {triton.__version__}"


if __name__ == "__main__":
    sys.exit(main())
