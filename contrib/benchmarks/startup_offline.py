"""The process that `startup.py` times: an `LLM` and its first token; prints when each part was done."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar
from unittest.mock import patch

from loramux import LLM, SamplingParams
from loramux.text.tokenizer import Tokenizer

P = ParamSpec("P")
R = TypeVar("R")

done = {"imports": time.time()}


def noting(part: str, function: Callable[P, R]) -> Callable[P, R]:
    """Note when a function was done."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        result = function(*args, **kwargs)
        done[part] = time.time()
        return result

    return call


def patched(home: str, name: str, part: str) -> Any:
    """Note when a function that a module has imported was done."""
    return patch.object(sys.modules[home], name, noting(part, getattr(sys.modules[home], name)))


def main(model: str) -> None:
    """Make the model answer."""
    with (
        patched("loramux.engine.llm_engine", "load_model", "weights"),
        patched("loramux.model.runner", "probe", "probe"),
        patch.object(Tokenizer, "load", noting("tokenizer", Tokenizer.load)),
    ):
        llm = LLM(model, enable_lora=True)
    done["engine"] = time.time()
    llm.generate("The capital of France is", SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
    done["first token"] = time.time()
    sys.stdout.write(json.dumps(done))


if __name__ == "__main__":
    main(sys.argv[1])
