"""transformers `generate`: one static batch, its default cache and attention."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM

from peers.protocol import Answer, Job, Settings, serve


class TransformersGenerate:
    """A model in float32; prompts of one job have one length, so that nothing is padded."""

    def __init__(self, settings: Settings) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32)
        self.model.generation_config.eos_token_id = None

    @torch.inference_mode()
    def run(self, job: Job) -> Answer:
        """Generate for all prompts in one batch."""
        token_ids = torch.tensor(job.prompts)
        output = self.model.generate(
            token_ids,
            attention_mask=torch.ones_like(token_ids),
            max_new_tokens=job.num_tokens,
            do_sample=False,
        )
        return Answer([row[token_ids.shape[1] :] for row in output.tolist()])


if __name__ == "__main__":
    serve(TransformersGenerate, ("transformers", "torch"))
