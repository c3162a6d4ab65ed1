"""Code written for the seed documentation's LoRA page runs here with the top-level package renamed, and nothing else.

Downloads are stubbed: the model and the adapters lie where the page's names lead. The page's last snippet (a default
adapter for audio input) is left out: loramux serves text models.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import types
from pathlib import Path
from textwrap import dedent

import huggingface_hub
import pytest

from loramux import EngineArgs, LLMEngine, LoRARequest, RequestOutput, SamplingParams
from loramux.lora.resolver import LoRAResolverRegistry
from tiny_models import build_adapter, build_model

OFFLINE = dedent(
    """
    from huggingface_hub import snapshot_download

    sql_lora_path = snapshot_download(repo_id="yard1/llama-2-7b-sql-lora-test")

    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    llm = LLM(model="meta-llama/Llama-2-7b-hf", enable_lora=True)

    sampling_params = SamplingParams(
        temperature=0,
        max_tokens=256,
        stop=["[/assistant]"]
    )

    prompts = [
         "[user] Write a SQL query to answer the question based on the table schema.\\n\\n context: CREATE TABLE table_name_74 (icao VARCHAR, airport VARCHAR)\\n\\n question: Name the ICAO for lilongwe international airport [/user] [assistant]",
         "[user] Write a SQL query to answer the question based on the table schema.\\n\\n context: CREATE TABLE table_name_11 (nationality VARCHAR, elector VARCHAR)\\n\\n question: When Anchero Pantaleone was the elector what is under nationality? [/user] [assistant]",
    ]

    outputs = llm.generate(
        prompts,
        sampling_params,
        lora_request=LoRARequest("sql_adapter", 1, sql_lora_path)
    )
    """  # noqa: E501 - the page's own lines
)
RESOLVER = dedent(
    """
    import os
    import s3fs
    from vllm.lora.request import LoRARequest
    from vllm.lora.resolver import LoRAResolver

    class S3LoRAResolver(LoRAResolver):
        def __init__(self):
            self.s3 = s3fs.S3FileSystem()
            self.s3_path_format = os.getenv("S3_PATH_TEMPLATE")
            self.local_path_format = os.getenv("LOCAL_PATH_TEMPLATE")

        async def resolve_lora(self, base_model_name, lora_name):
            s3_path = self.s3_path_format.format(base_model_name=base_model_name, lora_name=lora_name)
            local_path = self.local_path_format.format(base_model_name=base_model_name, lora_name=lora_name)

            # Download the LoRA from S3 to the local path
            await self.s3._get(
                s3_path, local_path, recursive=True, maxdepth=1
            )

            lora_request = LoRARequest(
                lora_name=lora_name,
                lora_path=local_path,
                lora_int_id=abs(hash(lora_name))
            )
            return lora_request

    from vllm.lora.resolver import LoRAResolverRegistry

    s3_resolver = S3LoRAResolver()
    LoRAResolverRegistry.register_resolver("s3_resolver", s3_resolver)
    """
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the page's model id is a folder, with an adapter for it beside."""
    root = tmp_path_factory.mktemp("world")
    model = build_model(root / "meta-llama" / "Llama-2-7b-hf", max_position_embeddings=1024)
    build_adapter(model, root / "bucket" / "sql-lora", rank=8)
    return root


def run_renamed(snippet: str) -> dict[str, object]:
    namespace: dict[str, object] = {}
    exec(compile(snippet.replace("vllm", "loramux"), "page", "exec"), namespace)
    return namespace


def test_the_offline_snippets_run(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo_id: str(world / "bucket" / "sql-lora"))

    outputs = run_renamed(OFFLINE)["outputs"]

    assert isinstance(outputs, list)
    assert [output.lora_request.lora_name for output in outputs] == ["sql_adapter", "sql_adapter"]
    assert all(output.outputs[0].token_ids and output.finished for output in outputs)


class StubS3FileSystem:
    """Copies out of a folder, where s3fs would copy out of a bucket."""

    async def _get(self, source: str, target: str, recursive: bool, maxdepth: int) -> None:
        await asyncio.to_thread(shutil.copytree, source, target)


async def test_the_resolver_snippets_run(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = types.ModuleType("s3fs")
    stub.S3FileSystem = StubS3FileSystem  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "s3fs", stub)
    monkeypatch.setenv("S3_PATH_TEMPLATE", str(world / "bucket" / "{lora_name}"))
    monkeypatch.setenv("LOCAL_PATH_TEMPLATE", str(tmp_path / "{lora_name}"))

    try:
        run_renamed(RESOLVER)
        resolver = LoRAResolverRegistry.get_resolver("s3_resolver")
        found = await resolver.resolve_lora("meta-llama/Llama-2-7b-hf", "sql-lora")
    finally:
        LoRAResolverRegistry._resolvers.pop("s3_resolver", None)

    assert found is not None
    assert found.lora_name == "sql-lora"
    assert (tmp_path / "sql-lora" / "adapter_config.json").is_file()


def test_the_engine_loop_of_the_linked_example_runs(world: Path) -> None:
    """The page links an example that feeds an LLMEngine request by request, with more adapters than slots."""
    model = str(world / "meta-llama" / "Llama-2-7b-hf")
    path = str(world / "bucket" / "sql-lora")
    engine = LLMEngine.from_engine_args(
        EngineArgs(model=model, enable_lora=True, max_loras=1, max_lora_rank=8, max_cpu_loras=2, max_num_seqs=256,
                   max_num_batched_tokens=512)
    )  # fmt: skip
    greedy = SamplingParams(temperature=0.0, logprobs=1, prompt_logprobs=1, max_tokens=8)
    sampled = SamplingParams(temperature=0.8, top_k=5, presence_penalty=0.2, max_tokens=8)
    several = SamplingParams(n=3, temperature=0.8, top_p=0.95, max_tokens=8)
    stopped = SamplingParams(temperature=0.0, max_tokens=8, stop_token_ids=[3])
    waiting = [
        ("A robot may not injure a human being", greedy, None),
        ("To be or not to be,", sampled, None),
        ("[user] a question [/user]", several, LoRARequest("sql-lora", 1, path)),
        ("[user] another [/user]", stopped, LoRARequest("sql-lora2", 2, path)),
    ]
    finished: list[RequestOutput] = []

    request_id = 0
    while waiting or engine.has_unfinished_requests():
        if waiting:
            prompt, sampling_params, lora_request = waiting.pop(0)
            engine.add_request(str(request_id), prompt, sampling_params, lora_request=lora_request)
            request_id += 1
        finished += [output for output in engine.step() if output.finished]

    assert sorted(output.request_id for output in finished) == ["0", "1", "2", "3"]
    assert {output.request_id: len(output.outputs) for output in finished}["2"] == 3
    engine.shutdown()
