"""transformers' continuous batching: `generate_batch` with what it chooses by itself, but for its share of memory.

Its manager is kept from the warm-up on: making one takes seconds, and is not what is compared. By itself it would fill
most of the machine's memory, and the systems beside it would wait for the system to find some.
"""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from peers.protocol import Answer, Job, Settings, serve

MEMORY_SHARE = 0.1  # of what is there; a job needs a gigabyte


class TransformersBatching:
    """A model in float32."""

    def __init__(self, settings: Settings) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32)

    @torch.inference_mode()
    def run(self, job: Job) -> Answer:
        """Hand over all prompts at once."""
        config = GenerationConfig(  # type: ignore[no-untyped-call]  # theirs
            max_new_tokens=job.num_tokens, do_sample=False, eos_token_id=-1, pad_token_id=self.model.config.pad_token_id
        )
        outputs = self.model.generate_batch(
            [list(prompt) for prompt in job.prompts],
            generation_config=config,
            continuous_batching_config=ContinuousBatchingConfig(max_memory_percent=MEMORY_SHARE),
            persistent_manager=True,
        )
        by_prompt = {tuple(output.prompt_ids): output.generated_tokens for output in outputs.values()}
        return Answer([by_prompt[tuple(prompt)] for prompt in job.prompts])


if __name__ == "__main__":
    serve(TransformersBatching, ("transformers", "torch"))
