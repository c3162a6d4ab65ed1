"""EngineTarget: answers from an engine in this process, and counts what the engine did for them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count

import torch

from loramux.bench.driver import Answered
from loramux.bench.workload import BenchRequest
from loramux.config import EngineArgs
from loramux.engine.async_llm_engine import AsyncLLMEngine
from loramux.errors import RequestInvalid
from loramux.lora.request import LoRARequest
from loramux.metrics.state import EngineState, Transition
from loramux.sampling_params import SamplingParams


class EngineTarget:
    """Owns an engine from `start` to `close`. The adapters that requests name are looked up in `adapters`."""

    def __init__(self, engine: AsyncLLMEngine, adapters: Mapping[str, LoRARequest], loads: LoadCounter) -> None:
        self.engine = engine
        self._adapters = adapters
        self._loads = loads
        self._numbers = count()

    @classmethod
    def start(cls, args: EngineArgs, adapters: Mapping[str, LoRARequest]) -> EngineTarget:
        """Load the model; raises ConfigInvalid or ModelUnsupported."""
        loads = LoadCounter()
        engine = AsyncLLMEngine.from_engine_args(
            args, on_adapter_event=loads.note_event, on_adapter_load=loads.note_load
        )
        return cls(engine, adapters, loads)

    def close(self) -> None:
        """Stop the engine."""
        self.engine.shutdown()

    def describe(self) -> dict[str, object]:
        """Say what was measured."""
        return {**asdict(self.engine.summary), "num_threads": torch.get_num_threads()}

    @property
    def vocab_size(self) -> int:
        return self.engine.vocab_size

    async def answer(self, request: BenchRequest, on_piece: Callable[[], None]) -> Answered:
        prompt = request.prompt if isinstance(request.prompt, str) else list(request.prompt)
        params = SamplingParams(temperature=0, max_tokens=request.max_tokens, ignore_eos=True)
        num_prompt: int | None = None
        token_ids: Sequence[int] = ()
        request_id = f"bench-{next(self._numbers)}"
        async for output in self.engine.generate(prompt, params, request_id, self._adapter(request)):
            on_piece()
            num_prompt, token_ids = len(output.prompt_token_ids), output.outputs[0].token_ids
        return Answered(num_prompt, len(token_ids), token_ids)

    def counting(self) -> Callable[[], Mapping[str, object]]:
        """Count steps, tokens and loads from now on."""
        then = self._counts()
        return lambda: self._counts().since(then)

    def _counts(self) -> EngineCounts:
        return EngineCounts(self.engine.state(), *self._loads.look())

    def _adapter(self, request: BenchRequest) -> LoRARequest | None:
        if request.adapter is None:
            return None
        if request.adapter not in self._adapters:
            raise RequestInvalid(f"--adapters has no folder for {request.adapter!r}", param="model")
        return self._adapters[request.adapter]


class LoadCounter:
    """Hears of loads from whatever thread does them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loads: Counter[str] = Counter()
        self._num_slot_loads = 0

    def note_event(self, event: str, request: LoRARequest) -> None:
        if event == "loaded":
            with self._lock:
                self._loads[request.lora_name] += 1

    def note_load(self, transition: Transition, _seconds: float) -> None:
        if transition == "host_to_slot":
            with self._lock:
                self._num_slot_loads += 1

    def look(self) -> tuple[Counter[str], int]:
        """Return how often each adapter was read, and how often any was put into a slot."""
        with self._lock:
            return self._loads.copy(), self._num_slot_loads


@dataclass(frozen=True, slots=True)
class EngineCounts:
    """An engine's counters at one moment."""

    state: EngineState
    loads: Counter[str]
    num_slot_loads: int

    def since(self, earlier: EngineCounts) -> dict[str, object]:
        """Say what was done between two moments."""
        now, then = self.state, earlier.state
        return {
            "num_steps": now.num_steps - then.num_steps,
            "num_computed_tokens": now.num_computed_tokens - then.num_computed_tokens,
            "num_prefix_hit_tokens": now.num_prefix_hit_tokens - then.num_prefix_hit_tokens,
            "num_preemptions": now.num_preemptions - then.num_preemptions,
            "num_slot_loads": self.num_slot_loads - earlier.num_slot_loads,
            "adapter_loads": dict((self.loads - earlier.loads).most_common()),
        }
