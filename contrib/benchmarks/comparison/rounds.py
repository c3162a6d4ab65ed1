"""Rounds of the comparison: every system in a process of its own, started anew; one job on the machine at a time."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from comparison.cases import WARM_UP_TOKENS, Case
from comparison.ceiling import ModelWork
from comparison.peer_process import Done, PeerFailed, PeerProcess
from comparison.systems import System
from peers.protocol import Job, Settings


@dataclass(frozen=True, slots=True)
class Measured:
    """One job of one system in one round, with its prompts."""

    round: int
    system: str
    case: Case
    prompts: Sequence[Sequence[int]]
    done: Done

    @property
    def num_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(map(len, self.done.token_ids))

    @property
    def tokens_per_second(self) -> float:
        """New tokens over the seconds of the whole load, prompts included."""
        return self.num_tokens / self.done.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run: systems, cases, rounds, the seed of prompts and order, and what the peers are told."""

    systems: Sequence[System]
    cases: Sequence[Case]
    num_rounds: int
    seed: int
    vocab_size: int
    work: ModelWork
    settings: Settings


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that was measured, what failed and why, and the versions of everything that ran."""

    measured: Sequence[Measured]
    failures: Sequence[str]
    versions: Mapping[str, str]


def run_rounds(plan: Plan, say: Callable[[str], None]) -> Outcome:
    """Run all rounds; a system that fails is left out of the rest of its round, and named."""
    measured: list[Measured] = []
    failures: list[str] = []
    versions: dict[str, str] = {}
    for number in range(plan.num_rounds):
        with _loaded(plan, failures) as (peers, found):
            versions.update(found)
            for case, peer in _shuffled(plan, peers, number):
                if peer.system.name not in peers:
                    continue
                try:
                    one = _measure(plan, number, case, peer)
                except PeerFailed as error:
                    failures.append(f"{case.title}: {error}")
                    if not peer.is_running():
                        del peers[peer.system.name]
                    continue
                measured.append(one)
                say(f"round {number + 1}: {peer.system.title}, {case.title}: {_told(one)}")
    return Outcome(measured, failures, versions)


@contextmanager
def _loaded(plan: Plan, failures: list[str]) -> Iterator[tuple[dict[str, PeerProcess], dict[str, str]]]:
    """Load all systems, side by side: none of that is timed. Those that cannot be loaded are named and left out."""
    peers: dict[str, PeerProcess] = {}
    versions: dict[str, str] = {}
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for system in plan.systems:
            if any(case.name in system.cases for case in plan.cases):
                peer = peers[system.name] = PeerProcess(system, plan.settings, logs / system.name)
                stack.callback(peer.close)
        for name, peer in list(peers.items()):
            try:
                versions.update(peer.wait_until_ready())
            except PeerFailed as error:
                failures.append(str(error))
                del peers[name]
        yield peers, versions


def _shuffled(plan: Plan, peers: Mapping[str, PeerProcess], number: int) -> list[tuple[Case, PeerProcess]]:
    """All jobs of a round: groups of cases in random order, and within a group every pair of case and system."""
    order = random.Random(f"{plan.seed} {number}")
    groups = list(dict.fromkeys(case.group for case in plan.cases))
    order.shuffle(groups)
    jobs = []
    for group in groups:
        members = [
            (case, peer)
            for case in plan.cases
            if case.group == group
            for peer in peers.values()
            if case.name in peer.system.cases
        ]
        order.shuffle(members)
        jobs.extend(members)
    return jobs


def _measure(plan: Plan, number: int, case: Case, peer: PeerProcess) -> Measured:
    """Warm up with other prompts and a few tokens, all adapters included; then the job that counts."""
    job = _job(plan, case, f"{plan.seed} {number}")
    if case.kind == "generate":
        warm_up = case.prompts(plan.vocab_size, f"{plan.seed} {number} warm-up")
        peer.do(replace(job, prompts=warm_up, num_tokens=min(WARM_UP_TOKENS, case.num_tokens)))
    return Measured(number, peer.system.name, case, job.prompts, peer.do(job))


def _job(plan: Plan, case: Case, seed: str) -> Job:
    return Job(
        kind=case.kind,
        prompts=case.prompts(plan.vocab_size, seed),
        adapters=case.adapter_names(),
        num_tokens=case.num_tokens,
        precision=case.precision,
        has_adapters=case.has_adapters,
        figures={"shapes": plan.work.shapes} if case.kind == "limits" else {},
    )


def _told(one: Measured) -> str:
    if one.case.kind == "generate":
        return f"{one.tokens_per_second:.1f} tokens/s"
    return ", ".join(f"{name} {value:.3g}" for name, value in one.done.figures.items())
