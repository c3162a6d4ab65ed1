"""The resolver on the seed documentation's LoRA page runs here with the package renamed, and nothing else changed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from textwrap import dedent

import pytest
import s3fs

from loramux.adapters.resolver_chain import ResolverChain
from loramux.errors import AdapterNotFound
from loramux.lora.plugin_manager import ActiveResolver
from loramux.lora.resolver import LoRAResolverRegistry
from s3_cases import Adapters

PAGE = dedent(
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


@pytest.fixture
async def chain(adapters: Adapters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ResolverChain]:
    """Ask the bucket without the proxy, which stands for no listings: this resolver lists."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", adapters.client.meta.endpoint_url)
    monkeypatch.setenv("S3_PATH_TEMPLATE", f"{adapters.bucket}/adapters/{{lora_name}}")
    monkeypatch.setenv("LOCAL_PATH_TEMPLATE", str(tmp_path / "{lora_name}"))
    s3fs.S3FileSystem.clear_instance_cache()
    exec(compile(PAGE.replace("vllm", "loramux"), "page", "exec"), {})
    resolver = LoRAResolverRegistry.get_resolver("s3_resolver")
    chain = ResolverChain([ActiveResolver("s3_resolver", resolver)])
    yield chain
    await chain.close()
    LoRAResolverRegistry.unregister_resolver("s3_resolver")
    file_system = vars(resolver)["s3"]
    file_system.close_session(file_system.loop, file_system.s3)
    s3fs.S3FileSystem.clear_instance_cache()


async def test_it_answers_through_the_chain(chain: ResolverChain, adapters: Adapters, tmp_path: Path) -> None:
    adapters.put_adapter("adapters/sql-lora", config=b"[]", weights=b"here")
    await chain.resolve("base", "sql-lora")
    assert (tmp_path / "sql-lora" / "adapter_config.json").read_bytes() == b"[]"
    assert (tmp_path / "sql-lora" / "adapter_model.safetensors").read_bytes() == b"here"


async def test_a_name_that_is_not_in_the_bucket_is_not_found(chain: ResolverChain) -> None:
    with pytest.raises(AdapterNotFound):
        await chain.resolve("base", "nobody")
