"""base_names: every name that the base model goes by, for adapters to be matched against."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

# model.Q4_K_M, model-q8_0, model-UD-IQ2_XXS, model.i1-Q4_K_S, model-bf16
_QUANTISATION = re.compile(r"([.-](UD|i1|imat))?[.-](I?Q\d\w*|TQ\d\w*|MXFP4\w*|FP?16|BF16|F32)$", re.IGNORECASE)


def base_names(served_names: Sequence[str], model: str, *, gguf_name: str | None = None) -> tuple[str, ...]:
    """Return the served names, the model as given, and what its place on the disk and its GGUF file call it.

    `gguf_name` is the file's own `general.name`. A folder's `config.json` is not asked: its `_name_or_path` is, as
    often as not, the model that this one was tuned from. Nor is `general.basename`, which all sizes of a family share.
    """
    names = [*served_names, model]
    path = Path(model).expanduser()
    if path.exists():
        names.append(str(path.resolve()))
        for file in (path, path.resolve()):
            if file.suffix == ".gguf":
                names += [file.stem, _QUANTISATION.sub("", file.stem)]
    if gguf_name:
        names += [gguf_name, gguf_name.replace(" ", "-")]
    return tuple(dict.fromkeys(names))
