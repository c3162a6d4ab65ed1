"""What a peer says and hears: one JSON object a line, jobs on its standard input, answers on its standard output.

The first line in is the settings; the peer loads its model and answers `{"ready": …}` with its versions. Every
further line is a job, answered with the seconds it took and the token ids of each request, or with what went wrong.
End of input ends the peer. Peers run in environments of their own: this file needs the standard library alone.

What a library prints must not mix with the answers, so standard output is moved to standard error before one is loaded.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Settings:
    """What all peers are told at the start.

    model: a safetensors folder; gguf: the same model as a `.gguf` file, None where there is none. adapters: name → a
    PEFT folder. max_slots, max_rank: what a system with room for adapters has to make room for.
    """

    model: str
    gguf: str | None
    threads: int
    adapters: Mapping[str, str]
    max_slots: int
    max_rank: int


@dataclass(frozen=True, slots=True)
class Job:
    """One load: all requests at once, greedy, `num_tokens` tokens each whatever they are.

    kind: what to do; a system takes the kinds that compare.py knows it for. adapters: one name per prompt, None for the
    base model. precision: "float32", "int8" for weights of eight bits, or "float16-kv" for keys and values of sixteen.
    has_adapters: whether the system is to be one that could serve adapters, whether or not this load names some.
    figures: further numbers that some kinds need.
    """

    kind: str
    prompts: Sequence[Sequence[int]]
    adapters: Sequence[str | None]
    num_tokens: int
    precision: str
    has_adapters: bool
    figures: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a job came to: each request's new token ids, or figures for the kinds that are asked for these."""

    token_ids: Sequence[Sequence[int]] = ()
    figures: Mapping[str, float] = field(default_factory=dict)


class Peer(Protocol):
    """A system with its model loaded."""

    def run(self, job: Job) -> Answer:
        """Do all of a job; this call is what is timed."""


def serve(load: Callable[[Settings], Peer], packages: Sequence[str]) -> None:
    """Load a peer and let it do jobs until its input ends; `packages` are those whose versions are told."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(content: Mapping[str, object]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        peer = load(Settings(**json.loads(sys.stdin.readline())))
    except Exception as error:
        traceback.print_exc()
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    answer({"ready": {name: version(name) for name in packages}})
    for line in sys.stdin:
        job = Job(**json.loads(line))
        began = time.perf_counter()
        try:
            done = peer.run(job)
        except Exception as error:
            traceback.print_exc()
            answer({"error": f"{type(error).__name__}: {error}"})
            continue
        seconds = time.perf_counter() - began
        answer({"seconds": seconds, "token_ids": done.token_ids, "figures": done.figures})
