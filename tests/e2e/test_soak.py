"""300 requests over 40 adapters on 4 slots, some of them given up half-way: every answer equals its solo run."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from loramux import EngineArgs, LLMEngine, LoRARequest, SamplingParams
from tiny_models import FAMILIES, TRAINING_TEXT, build_adapter

NUM_ADAPTERS = 40
NUM_REQUESTS = 300
LLAMA_TARGETS = FAMILIES["llama"][2]


@pytest.fixture(scope="module")
def adapters(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[LoRARequest]:
    root = tmp_path_factory.mktemp("soak")
    chooser = random.Random(0)
    requests = []
    for index in range(1, NUM_ADAPTERS + 1):
        targets = chooser.sample(LLAMA_TARGETS, chooser.randint(1, len(LLAMA_TARGETS)))
        rank = chooser.choice((1, 2, 4, 8, 17))
        path = build_adapter(tiny_llama, root / str(index), rank=rank, targets=targets, seed=index)
        requests.append(LoRARequest(f"adapter-{index}", index, str(path)))
    return requests


def engine_for(model: Path, **changes: object) -> LLMEngine:
    options = {"max_loras": 4, "max_cpu_loras": 12, "max_num_seqs": 16, "max_num_batched_tokens": 64, "block_size": 8}
    return LLMEngine(EngineArgs(model=str(model), enable_lora=True, **{**options, **changes}))


def test_every_answer_of_a_crowd_equals_its_solo_run(tiny_llama: Path, adapters: list[LoRARequest]) -> None:
    chooser = random.Random(1)
    work = []
    for index in range(NUM_REQUESTS):
        adapter = chooser.choice([None, *adapters])
        prompt = chooser.choice(TRAINING_TEXT)[: chooser.randint(1, 40)]
        is_greedy = chooser.random() < 0.7
        params = SamplingParams(
            temperature=0 if is_greedy else 0.8, seed=index, max_tokens=chooser.randint(1, 24), ignore_eos=True
        )
        work.append((str(index), prompt, params, adapter))
    given_up = set(chooser.sample([name for name, *_ in work], NUM_REQUESTS // 10))
    crowd = engine_for(tiny_llama, kv_cache_memory_bytes=512 * 8 * 24)
    answers: dict[str, list[int]] = {}

    arriving = list(work)
    while arriving or crowd.has_unfinished_requests():
        for name, prompt, params, adapter in arriving[:3]:
            crowd.add_request(name, prompt, params, adapter)
        del arriving[:3]
        for output in crowd.step():
            if output.request_id in given_up and not output.finished:
                crowd.abort_request(output.request_id)
            elif output.finished:
                assert output.error is None
                answers[output.request_id] = output.outputs[0].token_ids
        crowd.block_pool.check_integrity()
        crowd.slots.check_integrity()

    assert_nothing_is_held(crowd)
    assert crowd.scheduler.num_preemptions > 0
    assert crowd.runner.lora is not None
    assert crowd.runner.lora.num_placements > NUM_ADAPTERS / 2
    solo = engine_for(tiny_llama, max_num_seqs=1, enable_prefix_caching=False)
    expected = {}
    for name, prompt, params, adapter in work:
        if name in answers:
            expected[name] = run_alone(solo, name, prompt, params, adapter)
    assert answers == expected
    assert len(answers) >= NUM_REQUESTS - len(given_up)
    crowd.shutdown()
    solo.shutdown()


def run_alone(
    engine: LLMEngine, name: str, prompt: str, params: SamplingParams, adapter: LoRARequest | None
) -> list[int]:
    engine.add_request(name, prompt, params, adapter)
    outputs = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
    return outputs[-1].outputs[0].token_ids


def assert_nothing_is_held(engine: LLMEngine) -> None:
    counters = engine.counters()
    assert counters.pop("free_blocks") == engine.block_pool.num_blocks
    assert not any(counters.values()), counters
