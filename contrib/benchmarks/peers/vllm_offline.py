"""vLLM built for CPUs: `LLM` in this process, one engine at a time, with or without room for adapters."""

from __future__ import annotations

import os
from typing import Any

from peers.protocol import Answer, Job, Settings, serve

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine in this process, as loramux has it
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

MAX_LENGTH = 2048


class VllmOffline:
    """Engines in float32, with and without room for adapters; made when first asked for."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engines: dict[bool, Any] = {}
        self.adapters = {
            name: LoRARequest(name, number, path) for number, (name, path) in enumerate(settings.adapters.items(), 1)
        }

    def run(self, job: Job) -> Answer:
        """Hand over all prompts at once."""
        outputs = self._engine(has_adapters=job.has_adapters).generate(
            [{"prompt_token_ids": list(prompt)} for prompt in job.prompts],
            SamplingParams(temperature=0, max_tokens=job.num_tokens, ignore_eos=True),
            use_tqdm=False,
            lora_request=[None if name is None else self.adapters[name] for name in job.adapters],
        )
        return Answer([list(output.outputs[0].token_ids) for output in outputs])

    def _engine(self, *, has_adapters: bool) -> Any:
        if has_adapters not in self.engines:
            room = {"enable_lora": True, "max_loras": self.settings.max_slots, "max_lora_rank": self.settings.max_rank}
            self.engines[has_adapters] = LLM(
                self.settings.model,
                dtype="float32",
                max_model_len=MAX_LENGTH,
                **(room if has_adapters else {}),
            )
        return self.engines[has_adapters]


if __name__ == "__main__":
    serve(VllmOffline, ("vllm-cpu",))
