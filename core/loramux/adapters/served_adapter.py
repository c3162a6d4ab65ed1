"""ServedAdapter: one generation of a name: which content answers to it, from where, since when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from loramux.lora.request import LoRARequest

Origin = Literal["static", "api", "resolver"]


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """What the engine says of an adapter that it has read, checked and packed into host memory."""

    digest: str
    nbytes: int
    max_rank: int


@dataclass(frozen=True, slots=True)
class ServedAdapter:
    """An adapter that requests may use; its id is given once and never again, so it names the generation.

    `created` is the load time in Unix seconds, `root` the place as it was given or as its source shows it, `revision`
    what the source calls this version. `lora_request.digest` pins the content: files that change later are another
    generation. `load_seconds` is how long it took to be found, fetched and read. `defaults` has the texts that it
    brings besides its weights, by file name; None where they lie in its folder.
    """

    lora_request: LoRARequest
    parent: str
    root: str
    created: int
    origin: Origin
    loaded: LoadedAdapter
    revision: str = ""
    resolver: str = ""
    load_seconds: float = 0.0
    defaults: Mapping[str, str] | None = field(default=None, hash=False)

    @property
    def name(self) -> str:
        return self.lora_request.lora_name

    @property
    def id(self) -> int:
        return self.lora_request.lora_int_id

    @property
    def digest(self) -> str:
        return self.loaded.digest
