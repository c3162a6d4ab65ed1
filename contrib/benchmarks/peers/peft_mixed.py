"""transformers `generate` with PEFT's adapters: `adapter_names` for a mixed batch, an active adapter for one alone."""

from __future__ import annotations

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from peers.protocol import Answer, Job, Settings, serve


class PeftMixed:
    """A model in float32, and the adapters that jobs have named so far."""

    def __init__(self, settings: Settings) -> None:
        self.adapters = settings.adapters
        self.base = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32)
        self.base.generation_config.eos_token_id = None
        self.model: PeftModel | None = None

    @torch.inference_mode()
    def run(self, job: Job) -> Answer:
        """Generate for all prompts in one batch, the way that PEFT does best for the adapters they name."""
        names = list(job.adapters)
        model = self._with_adapters([name for name in dict.fromkeys(names) if name is not None])
        token_ids = torch.tensor(job.prompts)
        mixed = {"adapter_names": [name or "__base__" for name in names]} if len(set(names)) > 1 else {}
        if not mixed:
            model.set_adapter(str(names[0]))
        output = model.generate(  # type: ignore[no-untyped-call]  # theirs
            input_ids=token_ids,
            attention_mask=torch.ones_like(token_ids),
            max_new_tokens=job.num_tokens,
            do_sample=False,
            **mixed,
        )
        return Answer([row[token_ids.shape[1] :] for row in output.tolist()])

    def _with_adapters(self, names: list[str]) -> PeftModel:
        if self.model is None:
            self.model = PeftModel.from_pretrained(self.base, self.adapters[names[0]], adapter_name=names[0])
            self.model.eval()
        for name in names:
            if name not in self.model.peft_config:
                self.model.load_adapter(self.adapters[name], name)
        return self.model


if __name__ == "__main__":
    serve(PeftMixed, ("peft", "transformers", "torch"))
