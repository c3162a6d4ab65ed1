"""The systems that are compared: their programs under `peers/`, where they are installed, and what each can do."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PEERS = Path(__file__).resolve().parent.parent / "peers"
ENVIRONMENTS = PEERS / ".environments"
OWN_CASES = frozenset(
    {
        "base",
        "one-adapter",
        "eight-adapters",
        "many-adapters",
        "many-adapters-shared",
        "base-with-room",
        "one-request",
        "one-request-int8",
        "attention",
        "attention-16-bit",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One peer. has_environment: whether `peers/environments.py` makes an environment for it.

    is_exact: whether it computes with the model's own float32 weights, so that greedy tokens must be those of the
    others. is_default: whether it takes part unless it is left out.
    """

    name: str
    title: str
    program: str
    cases: frozenset[str]
    is_exact: bool = True
    has_environment: bool = False
    is_default: bool = True

    @property
    def home(self) -> Path:
        """Where its environment is."""
        return ENVIRONMENTS / self.name

    @property
    def command(self) -> list[str]:
        """The command that runs the peer, in the folder above `peers/`."""
        if self.program.endswith(".mjs"):
            return ["node", str(PEERS / self.program)]
        python = str(self.home / "bin" / "python") if self.has_environment else sys.executable
        return [python, "-m", f"{PEERS.name}.{self.program.removesuffix('.py')}"]

    def is_installed(self) -> bool:
        """Whether its environment was made, where it needs one."""
        return not self.has_environment or (self.home / "installed").is_file()


MACHINE = System(
    name="machine", title="the machine", program="machine_limits.py", cases=frozenset({"limits"}), is_exact=False
)
SYSTEMS: Mapping[str, System] = {
    system.name: system
    for system in (
        System(name="loramux", title="loramux", program="loramux_offline.py", cases=OWN_CASES),
        System(
            name="transformers",
            title="transformers generate",
            program="transformers_generate.py",
            cases=frozenset({"base", "one-request"}),
        ),
        System(
            name="batching",
            title="transformers continuous batching",
            program="transformers_batching.py",
            cases=frozenset({"base"}),
        ),
        System(
            name="peft",
            title="transformers + PEFT",
            program="peft_mixed.py",
            cases=frozenset({"one-adapter", "eight-adapters"}),
        ),
        System(
            name="llama_cpp",
            title="llama.cpp Q4_1",
            program="llama_cpp.mjs",
            cases=frozenset({"base", "one-request-int8"}),
            is_exact=False,
            has_environment=True,
        ),
        System(
            name="openvino",
            title="OpenVINO GenAI",
            program="openvino_batching.py",
            cases=frozenset({"base", "one-request"}),
            is_exact=False,
            has_environment=True,
            is_default=False,
        ),
        System(
            name="vllm",
            title="vLLM CPU",
            program="vllm_offline.py",
            cases=frozenset({"base", "one-adapter", "eight-adapters", "one-request"}),
            is_exact=False,
            has_environment=True,
            is_default=False,
        ),
    )
}
