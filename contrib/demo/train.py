"""Owns the training of the demo's adapters: `python contrib/demo/train.py --task sql-lora --out DIR`.

Same task, seed, machine and library versions: same adapter. The loss counts completion tokens only, and the head is
computed for those alone: with a vocabulary of 49,152 it would otherwise be a fifth of the work.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from base_model import HUB_NAME, ensure_base_model
from demo_data import TASKS, Example, examples

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one adapter is trained; ranks and targets differ so that a batch of all of them is heterogeneous."""

    rank: int
    targets: tuple[str, ...]
    num_examples: int
    batch_size: int = 6
    learning_rate: float = 1.5e-3


RECIPES = {
    "sql-lora": Recipe(rank=8, targets=ATTENTION, num_examples=3600),
    "json-lora": Recipe(rank=3, targets=ATTENTION + MLP, num_examples=1800),
    "sentiment-lora": Recipe(rank=4, targets=("q_proj", "v_proj"), num_examples=800),
}


@dataclass(frozen=True, slots=True)
class Tokens:
    """One training sequence; the loss counts the tokens from `num_prompt` on."""

    ids: list[int]
    num_prompt: int


def main() -> None:
    """Train one adapter and write it as a PEFT folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=sorted(TASKS), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the adapter")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the matmuls")
    parser.add_argument("--examples", type=int, help="fewer or more than the recipe says")
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.task]
    data = examples(arguments.task, arguments.seed, "train", arguments.examples or recipe.num_examples)
    torch.manual_seed(arguments.seed)
    folder = ensure_base_model()
    model = _wrapped_model(folder, recipe, getattr(torch, arguments.dtype))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sequences = [_tokenize(tokenizer, example) for example in data]
    batches = list(_batches(sequences, recipe.batch_size, random.Random(arguments.seed)))
    train(model, batches, recipe.learning_rate, getattr(torch, arguments.dtype))
    save(model, arguments.out)


def train(model: PeftModel, batches: list[list[Tokens]], learning_rate: float, dtype: torch.dtype) -> None:
    """Run one pass over the batches; the learning rate warms up and then falls to zero."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0)
    num_warmup = max(1, len(batches) // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / num_warmup, (len(batches) - step) / max(1, len(batches) - num_warmup)),
    )
    started, num_tokens, recent = time.monotonic(), 0, 0.0
    for step, batch in enumerate(batches, start=1):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            loss = completion_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        num_tokens += sum(len(tokens.ids) for tokens in batch)
        recent = loss.item() if step == 1 else 0.9 * recent + 0.1 * loss.item()
        if step % 20 == 0 or step == len(batches):
            minutes = (time.monotonic() - started) / 60
            rate = num_tokens / minutes / 60
            print(
                f"step {step}/{len(batches)} loss {recent:.4f} {rate:.0f} tokens/s {minutes:.1f} min",
                flush=True,
            )


def completion_loss(model: PeftModel, batch: list[Tokens]) -> torch.Tensor:
    """Return the mean cross entropy of the completion tokens."""
    longest = max(len(tokens.ids) for tokens in batch)
    input_ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros(len(batch), longest, dtype=torch.long)
    is_predictor = torch.zeros(len(batch), longest, dtype=torch.bool)
    targets: list[int] = []
    for row, tokens in enumerate(batch):
        length = len(tokens.ids)
        input_ids[row, :length] = torch.tensor(tokens.ids)
        mask[row, :length] = 1
        is_predictor[row, tokens.num_prompt - 1 : length - 1] = True  # position i predicts token i + 1
        targets += tokens.ids[tokens.num_prompt :]
    causal = model.get_base_model()
    assert isinstance(causal, LlamaForCausalLM)
    hidden = causal.model(input_ids=input_ids, attention_mask=mask, use_cache=False).last_hidden_state
    logits = causal.lm_head(hidden[is_predictor])  # [num_targets, vocabulary]
    return torch.nn.functional.cross_entropy(logits.float(), torch.tensor(targets))


def save(model: PeftModel, out: Path) -> None:
    """Write the adapter in fp16, with the base's public name in the config and no generated README."""
    model.save_pretrained(str(out))
    (out / "README.md").unlink(missing_ok=True)
    weights = out / "adapter_model.safetensors"
    half = {name: tensor.half().contiguous() for name, tensor in load_file(weights).items()}
    save_file(half, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors makes it private; a server may run as somebody else
    config = json.loads((out / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = HUB_NAME
    config["target_modules"] = sorted(config["target_modules"])  # PEFT keeps a set: its order changes by run
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    print(f"{out}: {weights.stat().st_size:,} bytes")


def _wrapped_model(folder: Path, recipe: Recipe, dtype: torch.dtype) -> PeftModel:
    # For sequences this short, plain attention is far quicker backwards than the fused kernel of the CPU.
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=2 * recipe.rank,
        target_modules=list(recipe.targets),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config)
    assert isinstance(model, PeftModel)
    for name, parameter in model.named_parameters():
        # What autocast would cast in every step is cast once; norms, embedding and adapter stay in float32.
        if not parameter.requires_grad and name.endswith(("_proj.weight", "_proj.base_layer.weight")):
            parameter.data = parameter.data.to(dtype)
    return model


def _tokenize(tokenizer: PreTrainedTokenizerBase, example: Example) -> Tokens:
    prompt: list[int] = tokenizer(example.prompt)["input_ids"]
    completion: list[int] = tokenizer(example.completion)["input_ids"]
    return Tokens(prompt + completion, len(prompt))


def _batches(sequences: list[Tokens], size: int, rng: random.Random) -> Iterator[list[Tokens]]:
    """Yield batches of similar length in random order: padding would be computed like everything else."""
    ordered = sorted(sequences, key=lambda tokens: len(tokens.ids))
    batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    rng.shuffle(batches)
    yield from batches


if __name__ == "__main__":
    main()
