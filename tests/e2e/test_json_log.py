"""`loramux serve --log-format json`: all of standard error is JSON, and says nothing that must not be said."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from served import serving

KEY = "sk-canary5150"
PROMPT = "canary2112"


def test_a_server_from_start_to_end_writes_one_object_per_line(
    tiny_llama: Path, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = make_adapter("json-log/sql")
    arguments = ("--enable-lora", "--lora-modules", f"sql={adapter}", "--log-format", "json", "--dtype", "float32")
    with serving(str(tiny_llama), *arguments, log=tmp_path / "log", LORAMUX_API_KEY=KEY) as served:
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as client:
            answer = client.completions.create(model="sql", prompt=PROMPT, max_tokens=4)
            for model in ("nobody", "../x"):
                with pytest.raises(openai.NotFoundError):
                    client.completions.create(model=model, prompt=PROMPT)
        served.signal(signal.SIGTERM)
        assert served.wait() == 0

    lines = [json.loads(line) for line in served.log.read_text().splitlines()]
    assert {"level", "logger", "message", "timestamp"} <= set.intersection(*map(set, lines))
    access = [line for line in lines if line["logger"] == "loramux.access"]
    assert [(line["status"], line["adapter"]) for line in access] == [(200, "sql"), (404, "-"), (404, "-")]
    assert answer.usage is not None
    assert access[0]["prompt_tokens"] == answer.usage.prompt_tokens
    assert access[0]["principal"].startswith("key-")
    assert PROMPT not in served.log.read_text()
    assert KEY not in served.log.read_text()
    assert "canary" not in served.log.read_text()
    assert lines[-1]["message"] == "stopped"
