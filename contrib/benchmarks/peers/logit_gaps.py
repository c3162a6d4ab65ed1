"""Says how far two tokens are below the best one after a prefix, by transformers and PEFT in float32."""

from __future__ import annotations

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from peers.protocol import Answer, Job, Settings, serve


class LogitGaps:
    """The judge of greedy tokens that differ between systems."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @torch.inference_mode()
    def run(self, job: Job) -> Answer:
        """Return, under the number of each prompt, the larger distance of its two `choices` from the largest logit."""
        choices = job.figures["choices"]
        assert isinstance(choices, list)
        gaps = {}
        for number, (prompt, adapter, pair) in enumerate(zip(job.prompts, job.adapters, choices, strict=True)):
            logits = self._model(adapter)(torch.tensor([prompt])).logits[0, -1]
            gaps[str(number)] = float(logits.max() - logits[list(pair)].min())
        return Answer(figures=gaps)

    def _model(self, adapter: str | None) -> torch.nn.Module:
        base = AutoModelForCausalLM.from_pretrained(self.settings.model, dtype=torch.float32)
        model: torch.nn.Module = base
        if adapter is not None:
            model = PeftModel.from_pretrained(base, self.settings.adapters[adapter])
        return model.eval()


if __name__ == "__main__":
    serve(LogitGaps, ("peft", "transformers"))
