"""The whole engine on Triton's kernels, run by Triton's interpreter on CPU: the answers are those of torch's forms.

Not collected by name: test_engine_on_triton.py runs this file in a process of its own, with TRITON_INTERPRET=1 set
before triton is imported. float32, for under the interpreter a bfloat16 tl.dot is silently wrong.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from triton.runtime.interpreter import GridExecutor

from loramux import LLM, LoRARequest, RequestOutput, SamplingParams
from loramux.model import runner
from loramux.model.fused.fuse import FusedModel
from loramux_kernels import Backend
from tiny_models import FAMILIES, VOCAB_SIZE, build_adapter, build_model

NUM_LAYERS = 2
PROMPT_LENGTHS = (21, 3, 9, 2)


def serve(folder: Path, adapters: list[Path], backend: Backend) -> tuple[list[RequestOutput], Counter[str], int]:
    """Answer base requests beside one of each adapter; also each kernel's number of launches, and that of steps."""
    sizes = {"max_num_seqs": 8, "max_num_batched_tokens": 16, "block_size": 4, "kv_cache_memory_bytes": 10**6}
    llm = LLM(str(folder), enable_lora=True, kernels=backend, **sizes)
    owners = [None, *(LoRARequest(path.name, index, str(path)) for index, path in enumerate(adapters, 1)), None]
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(4, VOCAB_SIZE, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logprobs=3)
    launches: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        launch = GridExecutor.__call__

        def count(executor: GridExecutor, *arguments: object, **options: object) -> object:
            launches[executor.fn.__name__] += 1
            return launch(executor, *arguments, **options)

        patch.setattr(GridExecutor, "__call__", count)
        outputs = llm.generate(prompts, params, lora_request=owners, use_tqdm=False)
    num_steps = llm.llm_engine.runner.num_steps
    llm.llm_engine.shutdown()
    return outputs, launches, num_steps


def logprobs(output: RequestOutput) -> torch.Tensor:
    """[num_tokens, 3]: what the best tokens of every step were given."""
    steps = output.outputs[0].logprobs
    assert steps is not None
    return torch.tensor([sorted((one.logprob for one in step.values()), reverse=True)[:3] for step in steps])


@pytest.mark.parametrize(("family", "is_fused"), [("llama", True), ("gemma2", False)], ids=["fused", "plain"])
def test_the_engine_answers_on_triton_as_on_torch(
    family: str, is_fused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mixed adapters, prompts in chunks beside decodes, layers fused and a family's own, with windows and caps."""
    assert os.environ["TRITON_INTERPRET"] == "1"
    if not is_fused:
        monkeypatch.setattr(runner, "fuse", lambda *_arguments: FusedModel())
    folder = build_model(tmp_path / "model", family)
    targets = [target for target in FAMILIES[family][2] if target != "embed_tokens"]
    adapters = [
        build_adapter(folder, tmp_path / f"r{rank}", rank=rank, targets=targets[index:], seed=rank)
        for index, rank in enumerate((4, 17))
    ]
    wanted, none, num_steps = serve(folder, adapters, "torch")
    got, launches, num_steps_again = serve(folder, adapters, "triton")

    assert num_steps_again == num_steps
    assert not none
    for want, have in zip(wanted, got, strict=True):
        assert have.outputs[0].token_ids == want.outputs[0].token_ids
        torch.testing.assert_close(logprobs(have), logprobs(want), atol=1e-4, rtol=1e-4)
    # in a layer and step one launch of each at most, whatever the number of sequences; no context here is split
    prefills, decodes = (launches[f"_paged_{name}_kernel"] for name in ("prefill", "decode"))
    assert prefills % NUM_LAYERS == decodes % NUM_LAYERS == 0
    assert max(prefills, decodes) <= NUM_LAYERS * num_steps < prefills + decodes
    writes = "_rotate_and_store_kernel" if is_fused else "_store_kv_kernel"
    assert launches[writes] == NUM_LAYERS * num_steps
    others = {name for name in launches if not name.startswith(("_paged", "_lora"))} - {writes}
    assert others == ({"_rms_norm_kernel", "_silu_mul_kernel"} if is_fused else set())
    assert any(name.startswith("_lora") for name in launches)
