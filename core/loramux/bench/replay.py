"""Replay: requests as a log says they came, one JSON object per line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loramux.bench.adapter_choice import BASE
from loramux.bench.workload import BenchRequest, random_prompt
from loramux.errors import ConfigInvalid

WARM_UP_PROMPT_TOKENS = 16

TokenId = Annotated[int, Field(ge=0)]


class ReplayLine(BaseModel):
    """One request of a log; fields that are not named here are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)

    arrival_seconds: Annotated[float, Field(ge=0)] | None = None
    model: str | None = None
    prompt: Annotated[str, Field(min_length=1)] | Annotated[list[TokenId], Field(min_length=1)] | None = None
    prompt_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _check_prompt(self) -> Self:
        if (self.prompt is None) == (self.prompt_tokens is None):
            raise ValueError("give either prompt or prompt_tokens")
        return self

    @property
    def adapter(self) -> str | None:
        return None if self.model == BASE else self.model


@dataclass(frozen=True, slots=True)
class Replay:
    """A log that was read; its order is that of the arrivals, where it has them."""

    lines: Sequence[ReplayLine]
    seed: int = 0

    @property
    def has_arrivals(self) -> bool:
        """Whether the log says when its requests came."""
        return all(line.arrival_seconds is not None for line in self.lines)

    @property
    def adapters(self) -> tuple[str | None, ...]:
        """The adapters that it asks for, each once."""
        return tuple(dict.fromkeys(line.adapter for line in self.lines))

    @property
    def num_requests(self) -> int:
        return len(self.lines)

    def requests(self, vocab_size: int) -> list[BenchRequest]:
        """Make the requests; where only a prompt's length is known, its token ids are drawn."""
        return [
            BenchRequest(
                number,
                line.adapter,
                self._prompt(number, line, vocab_size),
                line.max_tokens,
                line.arrival_seconds or 0.0,
            )
            for number, line in enumerate(self.lines)
        ]

    def warm_up(self, num: int, vocab_size: int) -> list[BenchRequest]:
        """Ask for the log's first models with prompts of our own."""
        return [
            BenchRequest(
                number,
                line.adapter,
                random_prompt(WARM_UP_PROMPT_TOKENS, vocab_size, f"{self.seed}/warm-up/{number}"),
                line.max_tokens,
            )
            for number, line in enumerate(self.lines[:num])
        ]

    def _prompt(self, number: int, line: ReplayLine, vocab_size: int) -> str | tuple[int, ...]:
        if isinstance(line.prompt, str):
            return line.prompt
        if line.prompt is not None:
            return tuple(line.prompt)
        assert line.prompt_tokens is not None
        return random_prompt(line.prompt_tokens, vocab_size, f"{self.seed}/replay/{number}")


def read_replay(path: Path, *, seed: int) -> Replay:
    """Read a log; raises ConfigInvalid, which names the line."""
    try:
        texts = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigInvalid(f"--replay {path}: cannot be read: {exc}") from exc
    lines = [_line(path, number, text) for number, text in enumerate(texts, start=1) if text.strip()]
    if not lines:
        raise ConfigInvalid(f"--replay {path}: holds no request")
    replay = Replay(lines, seed)
    if not replay.has_arrivals:
        return replay
    return Replay(sorted(lines, key=lambda line: line.arrival_seconds or 0.0), seed)


def _line(path: Path, number: int, text: str) -> ReplayLine:
    try:
        return ReplayLine.model_validate_json(text)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ConfigInvalid(f"--replay {path}, line {number}: {f'{field}: ' if field else ''}{first['msg']}") from exc
