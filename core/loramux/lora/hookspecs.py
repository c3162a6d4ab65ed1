"""Every hook a plugin may implement, with what it is given and what its answer means.

Hooks are plain functions, called one plugin after the other; a fault in one is logged under the plugin's name and
never reaches another plugin or the server. They run on the server's event loop: answer at once, do slow work elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pluggy

if TYPE_CHECKING:
    from loramux.lora.resolver import LoRAResolver

hookspec = pluggy.HookspecMarker("loramux")
hookimpl = pluggy.HookimplMarker("loramux")


FoundIn = Literal["slot", "host", "disk", "source"]
"""Where an adapter was when it was asked for: on the device, in host memory, on the disk, or at a remote source."""


@dataclass(frozen=True, slots=True)
class AdapterEvent:
    """One step in the life of an adapter; what is not known yet is None.

    `reason` is set for "failed", the id once the server has given one, the digest once the files were read, `seconds`
    for "loaded": how long it took to find, fetch and read it.
    """

    kind: Literal["resolved", "loaded", "failed", "evicted", "unloaded"]
    adapter_name: str
    lora_int_id: int | None = None
    lora_path: str | None = None
    reason: str | None = None
    digest: str | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request for a completion, told after its end; None is what it never came to.

    Times are in Unix nanoseconds. `adapter_name` is None for the base model, and when the request failed before its
    adapter was found; `tier` is where the adapter was found. `finish_reason` is "stop", "length" and the like, "error"
    (with `error_code`) or "disconnected". `traceparent` is the header of that name, as it came: hostile.
    """

    request_id: str
    route: str
    status: int
    adapter_name: str | None
    lora_int_id: int | None
    digest: str | None
    tier: FoundIn | None
    principal: str | None
    started_ns: int
    first_token_ns: int | None
    ended_ns: int
    num_prompt_tokens: int
    num_completion_tokens: int
    finish_reason: str
    error_code: str | None
    traceparent: str | None


@hookspec
def create_resolver(options: Mapping[str, str]) -> LoRAResolver | None:
    """Build this plugin's resolver from its own options; None means "installed, but not configured".

    Called once at start. A LoRAResolver subclass has this hook already: it calls `from_config`.
    """


@hookspec
def authorize(principal: str | None, adapter_name: str) -> bool | None:
    """Say whether `principal` may use the adapter: False refuses, True allows, None leaves it to the other plugins.

    Called for every request that names an adapter, before anything is looked up. One False is enough to refuse; a
    fault, or an answer that is no bool, refuses too. Whoever is refused sees "does not exist".
    """


@hookspec
def adapter_event(event: AdapterEvent) -> None:
    """Take note of what happened to an adapter. Called after the fact; what is returned is ignored."""


@hookspec
def request_finished(record: RequestRecord) -> None:
    """Take note of a request for a completion that has ended, well or not. What is returned is ignored."""
