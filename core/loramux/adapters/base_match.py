"""Whether an adapter was trained for the base model that runs, judged by the name in its config."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Literal, TypeAlias

from loramux.adapters.refusal import Refusal, shown

logger = logging.getLogger(__name__)

BaseMatch: TypeAlias = Literal["exact", "basename", "off"]
_HUB_CACHE_FOLDER = re.compile(r"models--(?:[^/]*--)?([^/]+)/snapshots/[^/]+")


def refuse_other_base(
    adapter_name: str, trained_for: str | None, *, base_names: Sequence[str], base_match: BaseMatch
) -> None:
    """Raise Refusal if the config names another base; a config that names none is accepted with a warning."""
    if base_match == "off":
        return
    if trained_for is None:
        logger.warning("adapter config names no base model, accepted unchecked: adapter=%s", adapter_name)
        return
    if trained_for in base_names:
        return
    wanted = _basename(trained_for)
    if base_match == "basename" and wanted and any(_basename(name) == wanted for name in base_names):
        return
    raise Refusal(
        f"was trained for {shown(trained_for)}; this server runs {shown(_public_name(base_names))}. If that is the "
        "same model under another name, the operator can add the name with served_model_name (--served-model-name), or "
        'turn this check off with base_match="off" (--base-match off).',
        code="adapter_base_mismatch",
    )


def _basename(name: str) -> str:
    """Return the last segment of an id or a path; for a folder of the Hub's cache, the model's own name."""
    name = name.rstrip("/")
    cached = _HUB_CACHE_FOLDER.search(name)
    basename = cached[1] if cached else name.rpartition("/")[2]
    return "" if basename in (".", "..") else basename


def _public_name(base_names: Sequence[str]) -> str:
    """Prefer a name that does not tell clients where the server keeps its files."""
    public = [name if not name.startswith(("/", ".", "~")) else _basename(name) for name in base_names]
    return next((name for name in public if name and name in base_names), next(filter(None, public), ""))
