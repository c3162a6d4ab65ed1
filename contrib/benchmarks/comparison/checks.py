"""Whether the systems did the same work: as many tokens as asked for, and, with the same weights, the same greedy ones.

Two float32 implementations may choose differently where the best two tokens are all but equal. Where answers part, the
judge computes the logits once more: less than `TIE` below the best one, for both tokens, is a tie, and is reported as
such; what follows it in the answer is another text, and is not compared.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from comparison.peer_process import PeerProcess
from comparison.rounds import Measured
from comparison.systems import SYSTEMS, System
from peers.protocol import Job, Settings

TIE = 1e-4
JUDGE = System(name="judge", title="the judge of ties", program="logit_gaps.py", cases=frozenset())


@dataclass(frozen=True, slots=True)
class Parting:
    """Where one request's answers of two systems part: after `prefix` they chose `tokens`."""

    case: str
    systems: tuple[str, str]
    adapter: str | None
    prefix: tuple[int, ...]
    tokens: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Checked:
    """num_compared: answers of two systems set side by side. ties: those that part at a tie. wrong: what is wrong."""

    num_compared: int
    ties: int
    wrong: Sequence[str]


def check(measured: Sequence[Measured], settings: Settings) -> Checked:
    """Count every answer's tokens, and compare the greedy tokens of the exact systems of each case and round."""
    generated = [one for one in measured if one.case.kind == "generate"]
    wrong = [text for one in generated for text in _miscounted(one)]
    partings: list[Parting] = []
    num_compared = 0
    for same_load in _exact_by_load(generated).values():
        reference, *others = sorted(same_load, key=lambda one: one.system == "loramux")
        for other in others:
            num_compared += len(other.done.token_ids)
            partings.extend(_partings(reference, other))
    gaps = _gaps(partings, settings) if partings else []
    for parting, gap in zip(partings, gaps, strict=True):
        if gap >= TIE:
            wrong.append(
                f"{parting.case}, adapter {parting.adapter}: {' and '.join(parting.systems)} chose tokens "
                f"{parting.tokens} after {len(parting.prefix)}, {gap:.2g} apart"
            )
    return Checked(num_compared, sum(gap < TIE for gap in gaps), wrong)


def _miscounted(one: Measured) -> list[str]:
    counts = [len(token_ids) for token_ids in one.done.token_ids]
    expected = [one.case.num_tokens] * one.case.num_requests
    return [] if counts == expected else [f"{one.case.title}: {one.system} gave {sorted(set(counts))} tokens a request"]


def _exact_by_load(generated: Sequence[Measured]) -> Mapping[tuple[int, str], list[Measured]]:
    by_load: dict[tuple[int, str], list[Measured]] = defaultdict(list)
    for one in generated:
        if SYSTEMS[one.system].is_exact and one.case.precision == "float32":
            by_load[one.round, one.case.name].append(one)
    return by_load


def _partings(reference: Measured, other: Measured) -> list[Parting]:
    answers = zip(
        reference.prompts,
        reference.case.adapter_names(),
        reference.done.token_ids,
        other.done.token_ids,
        strict=True,
    )
    partings = []
    for prompt, adapter, expected, got in answers:
        position = next((index for index, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), None)
        if position is not None:
            prefix = (*prompt, *expected[:position])
            tokens = (expected[position], got[position])
            partings.append(Parting(other.case.title, (reference.system, other.system), adapter, prefix, tokens))
    return partings


def _gaps(partings: Sequence[Parting], settings: Settings) -> list[float]:
    job = Job(
        kind="gaps",
        prompts=[parting.prefix for parting in partings],
        adapters=[parting.adapter for parting in partings],
        num_tokens=0,
        precision="float32",
        has_adapters=True,
        figures={"choices": [parting.tokens for parting in partings]},
    )
    with tempfile.TemporaryDirectory() as folder:
        judge = PeerProcess(JUDGE, settings, Path(folder) / "judge")
        try:
            judge.wait_until_ready()
            figures = judge.do(job).figures
        finally:
            judge.close()
    return [figures[str(number)] for number in range(len(partings))]
