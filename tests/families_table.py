"""Write docs/families.md: which model families were checked, how, and which are refused and why. `make families`."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: nothing here reaches for a network

import tempfile
import warnings
from pathlib import Path

import peft
import torch
import transformers

from exactness import LOGIT_TOLERANCE, RANKS, TIE_GAP, FamilyReport, check_family
from loramux.errors import ModelUnsupported
from loramux.model.attention import ATTENTION_NAME
from loramux.model.probe import probe
from refused_families import REFUSED
from tiny_models import FAMILIES, SHAPE

TABLE = Path(__file__).parents[1] / "docs" / "families.md"
HEAD = """\
# Model families

Written by `make families`; do not edit. torch {torch}, transformers {transformers}, peft {peft}, CPU, float32.

Any decoder-only text model of transformers is tried: at load, a few tokens are computed both by paged attention and by
transformers itself, and a model whose results differ, or whose layers keep state elsewhere, is refused with the reason.
The families below went further. For each, a random two-layer model served base + {num_adapters} adapters (ranks
{ranks}; rsLoRA, rank and alpha patterns among them) in one batch, on 2 slots, with prompts cut into chunks of
16 tokens, shared prefixes, and so few KV blocks that sequences were preempted. Every logit was compared with each
request alone through transformers + PEFT: within {tolerance:g}, and the same greedy token each time. A tie is a place
where the reference's two best tokens are less than {tie:g} apart.

| family | LoRA on | requests | tokens | largest logit difference | wrong tokens | ties | preemptions |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""
REFUSED_HEAD = """
## Refused, never served wrong

| family | what the server says |
| --- | --- |
"""


def main() -> None:
    """Check every family and write the table."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        rows = [_row(check_family(family, Path(root))) for family in FAMILIES]
    head = HEAD.format(
        torch=torch.__version__.partition("+")[0],
        transformers=transformers.__version__,
        peft=peft.__version__,
        num_adapters=len(RANKS),
        ranks=", ".join(map(str, RANKS)),
        tolerance=LOGIT_TOLERANCE,
        tie=TIE_GAP,
    )
    refused = [f"| {family} | {refusal(family)} |\n" for family in REFUSED]
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(head + "".join(rows) + REFUSED_HEAD + "".join(refused))


def _row(report: FamilyReport) -> str:
    targets = ", ".join(FAMILIES[report.family][2])
    return (
        f"| {report.family} | {targets} | {report.num_requests} | {report.num_tokens} | {report.max_logit_error:.1e} "
        f"| {len(report.wrong)} | {len(report.ties)} | {report.num_preemptions} |\n"
    )


def refusal(family: str) -> str:
    """Return the message with which a tiny model of this family is refused."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **{**SHAPE, **REFUSED[family]})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION_NAME)
            probe(model.eval(), family)
    except ModelUnsupported as error:
        return str(error)
    except KeyError:
        return "its attention does not go through the attention interface"
    raise AssertionError(f"{family} was not refused")


if __name__ == "__main__":
    main()
