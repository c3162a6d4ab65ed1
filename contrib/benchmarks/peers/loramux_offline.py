"""loramux: `LLM` in this process, one engine for each way of building it that jobs ask for."""

from __future__ import annotations

from typing import Any

from loramux import LLM, LoRARequest, SamplingParams
from peers.loramux_attention import attention_figures
from peers.protocol import Answer, Job, Settings, serve

KV_BYTES = 2 * 2**30
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "int8": {"quantization": "int8"},
    "float16-kv": {"kv_cache_dtype": "float16"},
}


class LoramuxOffline:
    """Engines of each precision, with and without room for adapters; made when first asked for."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engines: dict[tuple[str, bool], LLM] = {}
        self.adapters = {
            name: LoRARequest(name, number, path) for number, (name, path) in enumerate(settings.adapters.items(), 1)
        }

    def run(self, job: Job) -> Answer:
        """Hand over all prompts at once."""
        engine = self._engine(job)
        if job.kind == "attention":
            lengths = {len(prompt) for prompt in job.prompts}
            figures = attention_figures(engine.llm_engine, len(job.prompts), max(lengths))
            name = "attention" if job.precision == "float32" else "attention_16_bit"
            return Answer(figures={f"{name}_{key}": value for key, value in figures.items()})
        outputs = engine.generate(
            [list(prompt) for prompt in job.prompts],
            SamplingParams(temperature=0, max_tokens=job.num_tokens, ignore_eos=True),
            use_tqdm=False,
            lora_request=[None if name is None else self.adapters[name] for name in job.adapters],
        )
        return Answer([output.outputs[0].token_ids for output in outputs])

    def _engine(self, job: Job) -> LLM:
        key = (job.precision, job.has_adapters)
        if key not in self.engines:
            engine = self.engines[key] = LLM(
                self.settings.model,
                dtype="float32",
                kv_cache_memory_bytes=KV_BYTES,
                enable_lora=job.has_adapters,
                max_loras=self.settings.max_slots,
                max_lora_rank=self.settings.max_rank,
                **PRECISIONS[job.precision],
            )
            _touch(engine)
        return self.engines[key]


def _touch(engine: LLM) -> None:
    """Write all KV memory once, as an engine that has served for a while has.

    In a virtual machine whose host takes unused memory back, the first write to 2 MiB takes 6 ms, and a job that comes
    after others would look faster than the first one.
    """
    cache = engine.llm_engine.runner.kv_cache
    for tensor in (*cache.keys, *cache.values):
        tensor.zero_()


if __name__ == "__main__":
    serve(LoramuxOffline, ("loramux", "torch"))
