"""Every request gets what transformers + PEFT gives it alone, and however it ends, nothing of it stays behind."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loramux import LLMEngine, LoRARequest, RequestOutput, SamplingParams
from loramux.batch import ScheduledBatch
from loramux.errors import (
    AdapterInvalid,
    ConfigInvalid,
    ContextLengthExceeded,
    EngineDead,
    EngineOverloaded,
    RequestFailed,
    RequestInvalid,
)
from loramux.model.runner import ModelRunner
from loramux.model.sampler import SamplingRow
from loramux.model.step_results import SequenceResult
from tiny_engines import Reference, answer, assert_idle, engine_args, greedy, kv_bytes, run

MakeEngine = Callable[..., LLMEngine]
MakeAdapter = Callable[..., Path]

PROMPT = [17, 200, 45, 8, 99, 310, 61, 7, 150, 33, 42]
OTHER_PROMPT = [5, 6, 250, 251, 9, 77]


def lora(folder: Path, number: int = 1, name: str | None = None) -> LoRARequest:
    return LoRARequest(name or folder.name, number, str(folder))


def tokens_of(output: RequestOutput) -> list[int]:
    return output.outputs[0].token_ids


class FaultyRunner:
    """A runner whose next steps raise, or give a request numbers that cannot be used."""

    def __init__(self, engine: LLMEngine) -> None:
        self.inner: ModelRunner = engine.runner
        self.fault: BaseException | None = None
        self.executed: list[ScheduledBatch] = []
        engine.runner = self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def execute(self, batch: ScheduledBatch, rows: dict[str, SamplingRow]) -> dict[str, SequenceResult]:
        self.executed.append(batch)
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        return self.inner.execute(batch, rows)


# --- answers


def test_an_output_says_everything(shared_engine: LLMEngine, reference: Reference) -> None:
    tokenizer = shared_engine.tokenizer
    prompt = "The quick brown"

    output = answer(shared_engine, prompt, greedy(5))

    prompt_ids = tokenizer.encode(prompt)
    expected = reference.greedy(prompt_ids, 5)
    assert (output.request_id, output.prompt, output.prompt_token_ids) == ("the one", prompt, prompt_ids)
    assert (output.finished, output.error, output.lora_request, output.prompt_logprobs) == (True, None, None, None)
    (completion,) = output.outputs
    assert (completion.index, completion.token_ids) == (0, expected)
    assert completion.text == tokenizer.decode(expected)
    assert (completion.finish_reason, completion.stop_reason) == ("length", None)
    assert (completion.logprobs, completion.cumulative_logprob, completion.lora_request) == (None, None, None)


def test_greedy_answers_equal_transformers_and_peft(
    make_engine: MakeEngine, make_adapter: MakeAdapter, reference: Reference
) -> None:
    engine = make_engine()
    adapters = [None, make_adapter("r8", rank=8, seed=1), make_adapter("r3", rank=3, seed=2, targets=["o_proj"])]
    for index, adapter in enumerate(adapters):
        engine.add_request(str(index), PROMPT, greedy(), None if adapter is None else lora(adapter, index))

    outputs = run(engine)

    expected = [reference.greedy(PROMPT, 6, adapter) for adapter in adapters]
    assert [tokens_of(outputs[str(index)]) for index in range(3)] == expected
    assert len({tuple(tokens) for tokens in expected}) == 3, "the adapters were meant to change the answer"
    assert outputs["1"].lora_request == outputs["1"].outputs[0].lora_request == lora(make_adapter("r8"), 1)
    assert_idle(engine)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_serving_runs(make_engine: MakeEngine, make_adapter: MakeAdapter, dtype: str) -> None:
    engine = make_engine(dtype=dtype)

    output = answer(engine, PROMPT, greedy(), lora(make_adapter("r8", rank=8, seed=1)))

    assert len(tokens_of(output)) == 6
    assert engine.summary().dtype == dtype


@pytest.mark.parametrize(
    "prompt",
    [PROMPT, tuple(PROMPT), {"prompt_token_ids": PROMPT}, {"prompt_token_ids": PROMPT, "prompt": "both"}],
    ids=["list", "tuple", "mapping", "both"],
)
def test_token_ids_are_taken_in_every_form(shared_engine: LLMEngine, prompt: object) -> None:
    output = answer(shared_engine, prompt, greedy(1))

    assert output.prompt_token_ids == PROMPT
    assert output.prompt is None


def test_a_mapping_may_hold_text(shared_engine: LLMEngine) -> None:
    assert answer(shared_engine, {"prompt": "SELECT"}, greedy(1)).prompt == "SELECT"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "at least one token"),
        ([], "at least one token"),
        ([1, 320], "integers from 0 to 319, got 320"),
        ([1, -1], "got -1"),
        ([1, True], "got True"),
        ([1, 2.0], "got 2.0"),
        ({"text": "x"}, r"got the keys \['text'\]"),
        (7, "got int"),
    ],
)
def test_a_prompt_that_is_none_is_refused(shared_engine: LLMEngine, prompt: object, message: str) -> None:
    with pytest.raises(RequestInvalid, match=message) as caught:
        shared_engine.add_request("x", prompt, greedy())  # type: ignore[arg-type]
    assert caught.value.param == "prompt"


def test_a_request_id_in_use_is_refused_and_the_first_one_unharmed(shared_engine: LLMEngine) -> None:
    shared_engine.add_request("twice", PROMPT, greedy(2))

    with pytest.raises(RequestInvalid, match="'twice' is already in use"):
        shared_engine.add_request("twice", PROMPT, greedy(2))

    assert len(tokens_of(run(shared_engine)["twice"])) == 2


def test_ids_that_look_like_another_requests_parts_are_no_trouble(shared_engine: LLMEngine) -> None:
    several = SamplingParams(n=2, seed=1, max_tokens=3, ignore_eos=True)
    for request_id in ("a", "a#1", "1#a", "0#a"):
        shared_engine.add_request(request_id, PROMPT, several)

    outputs = run(shared_engine)

    answers = [[completion.token_ids for completion in output.outputs] for output in outputs.values()]
    assert len(answers) == 4
    assert all(found == answers[0] for found in answers)


def test_outputs_grow_and_each_says_all_so_far(shared_engine: LLMEngine) -> None:
    shared_engine.add_request("x", "The quick brown", greedy(5))
    seen = []
    while shared_engine.has_unfinished_requests():
        seen += shared_engine.step()

    assert [len(tokens_of(output)) for output in seen] == [1, 2, 3, 4, 5]
    assert all(tokens_of(later)[: len(tokens_of(now))] == tokens_of(now) for now, later in pairwise(seen))
    assert all(later.outputs[0].text.startswith(now.outputs[0].text) for now, later in pairwise(seen))
    assert [output.finished for output in seen] == [False] * 4 + [True]


# --- where an answer ends


def test_max_tokens_none_runs_to_the_end_of_the_context(make_engine: MakeEngine) -> None:
    engine = make_engine(max_model_len=30)

    output = answer(engine, PROMPT, greedy(max_tokens=None))

    assert len(PROMPT) + len(tokens_of(output)) == 30
    assert output.outputs[0].finish_reason == "length"
    assert_idle(engine)


def test_max_tokens_beyond_the_context_ends_with_it(make_engine: MakeEngine, reference: Reference) -> None:
    engine = make_engine(max_model_len=12)

    assert tokens_of(answer(engine, PROMPT, greedy(100))) == reference.greedy(PROMPT, 1)


@pytest.mark.parametrize("length", [12, 13, 500])
def test_a_prompt_that_can_never_fit_is_refused_at_once_with_numbers(make_engine: MakeEngine, length: int) -> None:
    engine = make_engine(max_model_len=12)

    with pytest.raises(ContextLengthExceeded) as caught:
        engine.add_request("x", [5] * length, greedy(7))

    message = str(caught.value)
    assert "maximum context length is 12 tokens" in message
    assert f"you requested {length + 7} tokens ({length} in the prompt, 7 in the completion)" in message
    assert caught.value.code == "context_length_exceeded"
    assert_idle(engine)


def test_eos_ends_an_answer_without_a_stop_reason_and_is_not_shown(make_engine: MakeEngine) -> None:
    engine = make_engine()
    tokens = tokens_of(answer(engine, PROMPT, greedy(6)))
    engine.eos_token_ids = frozenset({tokens[3]})
    first = tokens.index(tokens[3])

    output = answer(engine, PROMPT, greedy(6, ignore_eos=False))

    (completion,) = output.outputs
    assert completion.token_ids == tokens[: first + 1]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", None)
    assert completion.text == engine.tokenizer.decode(tokens[:first])


def test_ignore_eos_goes_on(make_engine: MakeEngine) -> None:
    engine = make_engine()
    tokens = tokens_of(answer(engine, PROMPT, greedy(6)))
    engine.eos_token_ids = frozenset(tokens)

    assert tokens_of(answer(engine, PROMPT, greedy(6))) == tokens


def test_a_stop_token_ends_an_answer_and_is_its_reason(shared_engine: LLMEngine, reference: Reference) -> None:
    tokens = reference.greedy(PROMPT, 6)
    first = tokens.index(tokens[2])

    (completion,) = answer(shared_engine, PROMPT, greedy(6, stop_token_ids=[tokens[2]])).outputs

    assert completion.token_ids == tokens[: first + 1]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", tokens[2])
    assert completion.text == shared_engine.tokenizer.decode(tokens[:first])


def test_a_stop_token_is_shown_when_asked_for(shared_engine: LLMEngine, reference: Reference) -> None:
    tokens = reference.greedy(PROMPT, 6)
    first = tokens.index(tokens[2])
    params = greedy(6, stop_token_ids=[tokens[2]], include_stop_str_in_output=True)

    (completion,) = answer(shared_engine, PROMPT, params).outputs

    assert completion.text == shared_engine.tokenizer.decode(tokens[: first + 1])


def test_min_tokens_holds_eos_back(make_engine: MakeEngine) -> None:
    engine = make_engine()
    tokens = tokens_of(answer(engine, PROMPT, greedy(1)))
    engine.eos_token_ids = frozenset(tokens)

    (completion,) = answer(engine, PROMPT, greedy(6, ignore_eos=False, min_tokens=4)).outputs

    assert len(completion.token_ids) >= 4
    assert tokens[0] not in completion.token_ids[:4]


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_may_span_tokens(make_engine: MakeEngine, include: bool) -> None:
    engine = make_engine()
    bias = {engine.tokenizer.encode(letter)[0]: 100.0 for letter in "abc"}  # of these three, the likeliest
    text = answer(engine, PROMPT, greedy(12, logit_bias=bias)).outputs[0].text
    assert len(text) == 12
    stop = text[4:7]
    at = text.index(stop)

    (completion,) = answer(
        engine, PROMPT, greedy(12, logit_bias=bias, stop=["zzz", stop], include_stop_str_in_output=include)
    ).outputs

    assert completion.text == text[: at + 3 * include]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)
    assert len(completion.token_ids) == at + 3


def test_detokenize_false_gives_no_text(shared_engine: LLMEngine) -> None:
    output = answer(shared_engine, PROMPT, greedy(3, detokenize=False))

    assert output.outputs[0].text == ""
    assert len(tokens_of(output)) == 3


# --- n answers


def test_n_answers_are_different_and_repeatable(shared_engine: LLMEngine) -> None:
    params = SamplingParams(n=4, seed=11, max_tokens=6, ignore_eos=True)

    first, second = (answer(shared_engine, PROMPT, params) for _ in range(2))

    answers = [completion.token_ids for completion in first.outputs]
    assert [completion.index for completion in first.outputs] == [0, 1, 2, 3]
    assert len({tuple(tokens) for tokens in answers}) == 4
    assert [completion.token_ids for completion in second.outputs] == answers


def test_n_answers_to_a_negative_seed_are_different(shared_engine: LLMEngine) -> None:
    params = SamplingParams(n=3, seed=-1, max_tokens=6, ignore_eos=True)

    answers = {tuple(completion.token_ids) for completion in answer(shared_engine, PROMPT, params).outputs}

    assert len(answers) == 3


def test_a_seeded_answer_does_not_depend_on_its_neighbours(shared_engine: LLMEngine) -> None:
    params = SamplingParams(seed=3, max_tokens=6, ignore_eos=True)
    alone = tokens_of(answer(shared_engine, PROMPT, params))
    for index in range(4):
        shared_engine.add_request(f"other{index}", OTHER_PROMPT[index:], SamplingParams(max_tokens=9, ignore_eos=True))
    shared_engine.add_request("same", PROMPT, params)

    assert tokens_of(run(shared_engine)["same"]) == alone


def test_without_a_seed_the_engines_own_decides(make_engine: MakeEngine) -> None:
    params = SamplingParams(max_tokens=8, ignore_eos=True)

    one, same, other = (tokens_of(answer(make_engine(seed=seed), PROMPT, params)) for seed in (1, 1, 2))

    assert one == same
    assert one != other


def test_one_answer_may_stop_while_the_others_go_on(make_engine: MakeEngine) -> None:
    engine = make_engine()
    free = SamplingParams(n=3, seed=5, max_tokens=8, ignore_eos=True)
    answers = [completion.token_ids for completion in answer(engine, PROMPT, free).outputs]
    stop = next(token for token in answers[1] if token not in answers[0] and token not in answers[2])
    params = SamplingParams(n=3, seed=5, max_tokens=8, ignore_eos=True, stop_token_ids=[stop])

    output = answer(engine, PROMPT, params)

    assert [completion.finish_reason for completion in output.outputs] == ["length", "stop", "length"]
    assert output.outputs[1].token_ids == answers[1][: answers[1].index(stop) + 1]
    assert [output.outputs[index].token_ids for index in (0, 2)] == [answers[0], answers[2]]
    assert_idle(engine)


def test_aborting_keeps_the_answers_that_had_ended(make_engine: MakeEngine, make_adapter: MakeAdapter) -> None:
    engine = make_engine()
    free = SamplingParams(n=2, seed=5, max_tokens=8, ignore_eos=True)
    adapter = lora(make_adapter("r8", rank=8, seed=1))
    answers = [completion.token_ids for completion in answer(engine, PROMPT, free, adapter).outputs]
    stop = next(token for token in answers[0] if token not in answers[1])
    params = SamplingParams(n=2, seed=5, max_tokens=8, ignore_eos=True, stop_token_ids=[stop])
    engine.add_request("x", PROMPT, params, adapter)
    while not any(output.outputs[0].finished for output in engine.step()):
        pass
    assert engine.counters()["leases"] == 1

    output = engine.abort_request("x")

    assert output is not None
    assert [completion.finish_reason for completion in output.outputs] == ["stop", "abort"]
    assert_idle(engine)


# --- log-probabilities


def assert_logprobs_equal(output: RequestOutput, expected: torch.Tensor) -> None:
    """expected: [num_tokens, vocab] of prompt and answer; row i is about token i + 1."""
    num_prompt = len(output.prompt_token_ids)
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == num_prompt
    assert output.prompt_logprobs[0] is None
    (completion,) = output.outputs
    assert completion.logprobs is not None
    tables = [*output.prompt_logprobs[1:], *completion.logprobs]
    tokens = [*output.prompt_token_ids[1:], *completion.token_ids]
    for row, (table, token) in enumerate(zip(tables, tokens, strict=True)):
        assert table is not None
        assert next(iter(table)) == token
        assert set(table) == {token, *expected[row].topk(3).indices.tolist()}
        for token_id, entry in table.items():
            assert entry.logprob == pytest.approx(float(expected[row, token_id]), abs=1e-4)
            assert entry.rank == 1 + int((expected[row] > expected[row, token_id]).sum())
    chosen = [table[token].logprob for table, token in zip(completion.logprobs, completion.token_ids, strict=True)]
    assert completion.cumulative_logprob == pytest.approx(sum(chosen))


@pytest.mark.parametrize("budget", [64, 8], ids=["at once", "in chunks"])
def test_logprobs_equal_transformers(
    make_engine: MakeEngine, make_adapter: MakeAdapter, reference: Reference, budget: int
) -> None:
    engine = make_engine(max_num_batched_tokens=budget)
    adapter = make_adapter("r8", rank=8, seed=1)
    prompt = [*PROMPT, *OTHER_PROMPT, *PROMPT]
    for index, folder in enumerate([None, adapter]):
        engine.add_request(str(index), prompt, greedy(4, logprobs=3, prompt_logprobs=3), folder and lora(folder))

    outputs = run(engine)

    for index, folder in enumerate([None, adapter]):
        whole = [*prompt, *tokens_of(outputs[str(index)])]
        assert_logprobs_equal(outputs[str(index)], reference.logprobs(whole, folder))


def test_logprobs_survive_a_preemption_within_the_prompt(make_engine: MakeEngine, reference: Reference) -> None:
    engine = make_engine(kv_cache_memory_bytes=kv_bytes(9), max_num_batched_tokens=8)
    prompt = [*PROMPT, *OTHER_PROMPT, *PROMPT, 1, 2]
    engine.add_request("older", [3, 4, 5, 6], greedy(26))
    engine.add_request("asked", prompt, greedy(2, logprobs=3, prompt_logprobs=3))

    output = run(engine)["asked"]

    assert engine.scheduler.num_preemptions > 0
    assert_logprobs_equal(output, reference.logprobs([*prompt, *tokens_of(output)]))


def test_logprobs_of_a_prompt_that_is_cached_are_computed_all_the_same(
    shared_engine: LLMEngine, reference: Reference
) -> None:
    answer(shared_engine, PROMPT, greedy(1))

    output = answer(shared_engine, PROMPT, greedy(2, logprobs=3, prompt_logprobs=3))

    assert output.num_cached_tokens == 0
    assert_logprobs_equal(output, reference.logprobs([*PROMPT, *tokens_of(output)]))


def test_a_prompt_of_one_token_has_no_logprobs_but_none(shared_engine: LLMEngine) -> None:
    assert answer(shared_engine, [5], greedy(1, prompt_logprobs=1)).prompt_logprobs == [None]


# --- the prefix cache


def test_a_prompt_seen_before_is_taken_from_the_cache(make_engine: MakeEngine) -> None:
    engine = make_engine()

    first, second = (answer(engine, PROMPT, greedy()) for _ in range(2))

    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 8)
    assert tokens_of(first) == tokens_of(second)


@pytest.mark.parametrize("budget", [64, 8], ids=["at once", "in chunks"])
def test_requests_of_one_step_share_a_prefix_and_stay_right(
    make_engine: MakeEngine, make_adapter: MakeAdapter, reference: Reference, budget: int
) -> None:
    engine = make_engine(max_num_batched_tokens=budget)
    adapter = make_adapter("r8", rank=8, seed=1)
    prompts = [[*PROMPT, *OTHER_PROMPT[:count]] for count in range(6)]
    for index, prompt in enumerate(prompts):
        engine.add_request(f"base{index}", prompt, greedy())
        engine.add_request(f"lora{index}", prompt, greedy(), lora(adapter))

    outputs = run(engine)

    assert sum(output.num_cached_tokens for output in outputs.values()) > 0
    for index, prompt in enumerate(prompts):
        assert tokens_of(outputs[f"base{index}"]) == reference.greedy(prompt, 6)
        assert tokens_of(outputs[f"lora{index}"]) == reference.greedy(prompt, 6, adapter)


def test_no_prefix_is_shared_between_adapters(
    make_engine: MakeEngine, make_adapter: MakeAdapter, reference: Reference
) -> None:
    engine = make_engine()
    owners = [None, make_adapter("r8", rank=8, seed=1), make_adapter("r3", rank=3, seed=2, targets=["o_proj"])]

    for index, owner in enumerate(owners):
        output = answer(engine, PROMPT, greedy(), owner and lora(owner, index))
        assert output.num_cached_tokens == 0
        assert tokens_of(output) == reference.greedy(PROMPT, 6, owner)


def test_prefix_caching_can_be_switched_off(make_engine: MakeEngine) -> None:
    engine = make_engine(enable_prefix_caching=False)

    first, second = (answer(engine, PROMPT, greedy()) for _ in range(2))

    assert second.num_cached_tokens == 0
    assert tokens_of(first) == tokens_of(second)


# --- pressure


def test_preemption_changes_no_answer(make_engine: MakeEngine, make_adapter: MakeAdapter, reference: Reference) -> None:
    engine = make_engine(kv_cache_memory_bytes=kv_bytes(8), max_num_batched_tokens=16)
    adapter = make_adapter("r8", rank=8, seed=1)
    prompts = [[*PROMPT[index:], index + 1] for index in range(5)]
    for index, prompt in enumerate(prompts):
        engine.add_request(str(index), prompt, greedy(10), lora(adapter) if index % 2 else None)

    outputs = run(engine)

    assert engine.scheduler.num_preemptions > 0
    for index, prompt in enumerate(prompts):
        assert tokens_of(outputs[str(index)]) == reference.greedy(prompt, 10, adapter if index % 2 else None)
    assert_idle(engine)


# --- aborts


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 6])
def test_an_abort_frees_everything_in_every_state(
    make_engine: MakeEngine, make_adapter: MakeAdapter, num_steps: int
) -> None:
    """After 0 steps it awaits its adapter, after 1 it is prefilling, then decoding."""
    engine = make_engine(max_num_batched_tokens=8)
    adapter = lora(make_adapter("r8", rank=8, seed=1))
    if num_steps:
        engine.add_lora(adapter)
    engine.add_request("x", [*PROMPT, *PROMPT], SamplingParams(n=2, max_tokens=50, ignore_eos=True), adapter)
    for _ in range(num_steps):
        engine.advance()

    output = engine.abort_request("x")

    assert output is not None
    assert output.finished
    assert [completion.finish_reason for completion in output.outputs] == ["abort", "abort"]
    engine.adapters.host_cache.close()  # a load that was under way has ended
    assert_idle(engine)
    assert engine.abort_request("x") is None


def test_an_abort_of_a_waiting_request_leaves_the_running_ones_alone(
    make_engine: MakeEngine, reference: Reference
) -> None:
    engine = make_engine(max_num_seqs=1)
    engine.add_request("running", PROMPT, greedy())
    engine.step()
    engine.add_request("waiting", PROMPT, greedy())
    engine.abort_request("waiting")

    assert tokens_of(run(engine)["running"]) == reference.greedy(PROMPT, 6)
    assert_idle(engine)


def test_an_abort_at_the_door_of_host_memory_leaves_nothing(make_engine: MakeEngine, make_adapter: MakeAdapter) -> None:
    engine = make_engine(max_loras=1, max_cpu_loras=1)
    one, two = lora(make_adapter("r8", rank=8, seed=1), 1), lora(make_adapter("r3", rank=3, seed=2), 2)
    engine.add_lora(one)
    engine.add_request("one", PROMPT, greedy(), one)
    engine.step()
    engine.add_request("two", PROMPT, greedy(), two)
    assert engine.counters()["waiting"] == 1

    engine.abort_request("two")
    run(engine)

    assert engine.list_loras() == {1}
    assert_idle(engine)


def test_shutdown_ends_everything(make_engine: MakeEngine, make_adapter: MakeAdapter) -> None:
    engine = make_engine()
    engine.add_request("a", PROMPT, greedy(50))
    engine.add_request("b", PROMPT, greedy(50), lora(make_adapter("r8", rank=8, seed=1)))
    engine.step()

    engine.shutdown()

    assert_idle(engine)


# --- failures


def test_a_step_that_raises_ends_only_the_requests_in_it(make_engine: MakeEngine, reference: Reference) -> None:
    engine = make_engine(max_num_seqs=2)
    faulty = FaultyRunner(engine)
    for name in "abc":
        engine.add_request(name, PROMPT, greedy())
    faulty.fault = RuntimeError("out of memory")

    failed = engine.step()

    assert {output.request_id for output in failed} == {"a", "b"}
    for output in failed:
        assert output.finished
        assert isinstance(output.error, RequestFailed)
        assert output.outputs[0].finish_reason == "abort"
    (after,) = run(engine).values()
    assert tokens_of(after) == reference.greedy(PROMPT, 6)
    assert after.num_cached_tokens == 0, "what the broken step was to compute must not be reused"
    assert_idle(engine)


def test_tokens_that_cannot_become_text_end_only_their_request(
    make_engine: MakeEngine, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    engine.add_request("broken", PROMPT, greedy())
    engine.add_request("fine", PROMPT, greedy())
    engine.step()
    (broken,) = [answer for group, answer in engine._sequences.values() if group.request_id == "broken"]

    def fail(*_: object) -> None:
        raise RuntimeError("no text")

    monkeypatch.setattr(broken.detokenizer, "append", fail)
    monkeypatch.setattr(broken.detokenizer, "finish", fail)
    outputs = run(engine)

    assert isinstance(outputs["broken"].error, RequestFailed)
    assert outputs["broken"].outputs[0].finish_reason == "abort"
    assert tokens_of(outputs["fine"]) == reference.greedy(PROMPT, 6)
    assert_idle(engine)


def test_an_adapter_of_a_broken_step_is_placed_again(
    make_engine: MakeEngine, make_adapter: MakeAdapter, reference: Reference
) -> None:
    engine = make_engine()
    faulty = FaultyRunner(engine)
    folder = make_adapter("r8", rank=8, seed=1)
    faulty.fault = RuntimeError("half a copy")
    assert answer(engine, PROMPT, greedy(), lora(folder)).error is not None

    assert tokens_of(answer(engine, PROMPT, greedy(), lora(folder))) == reference.greedy(PROMPT, 6, folder)
    assert [len(batch.slot_loads) for batch in faulty.executed[:2]] == [1, 1]


def test_a_pinned_adapter_stays_pinned_through_a_broken_step(
    make_engine: MakeEngine, make_adapter: MakeAdapter
) -> None:
    engine = make_engine()
    faulty = FaultyRunner(engine)
    adapter = lora(make_adapter("r8", rank=8, seed=1))
    engine.add_lora(adapter)
    engine.pin_lora(1)
    faulty.fault = RuntimeError("oops")
    answer(engine, PROMPT, greedy(), adapter)

    assert len(engine.slots.digests()) == 1


def test_an_interrupt_leaves_no_block_or_slot_that_was_never_filled(
    make_engine: MakeEngine, make_adapter: MakeAdapter, reference: Reference
) -> None:
    """As with Ctrl-C in a notebook, whose next cell goes on with the same engine."""
    engine = make_engine()
    faulty = FaultyRunner(engine)
    folder = make_adapter("r8", rank=8, seed=1)
    engine.add_lora(lora(folder))
    engine.add_request("x", PROMPT, greedy(), lora(folder))
    faulty.fault = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    engine.abort_request("x")

    output = answer(engine, PROMPT, greedy(), lora(folder))

    assert output.num_cached_tokens == 0
    assert tokens_of(output) == reference.greedy(PROMPT, 6, folder)


def test_several_broken_steps_in_a_row_are_the_engines_own_fault(make_engine: MakeEngine) -> None:
    engine = make_engine()
    faulty = FaultyRunner(engine)
    for _ in range(2):
        faulty.fault = RuntimeError("oops")
        assert answer(engine, PROMPT, greedy()).error is not None
    faulty.fault = RuntimeError("oops")

    with pytest.raises(EngineDead, match="3 steps failed in a row"):
        answer(engine, PROMPT, greedy())
    assert_idle(engine)


def overflowing(folder: Path, source: Path) -> Path:
    """An adapter of finite values whose product is not."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name: value * 1e30 for name, value in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("budget", [64, 8], ids=["at once", "in chunks"])
def test_an_adapter_that_overflows_fails_alone(
    make_engine: MakeEngine, make_adapter: MakeAdapter, reference: Reference, tmp_path: Path, budget: int
) -> None:
    """Its NaN must reach nobody: not through the batch, not through blocks that others get after it."""
    source = make_adapter("everywhere", rank=4, seed=4, targets=["q_proj", "k_proj", "v_proj", "o_proj"])
    bad = lora(overflowing(tmp_path / "bad", source), 9)
    engine = make_engine(kv_cache_memory_bytes=kv_bytes(24), max_num_batched_tokens=budget)
    prompts = [[*PROMPT[index:], index + 1] for index in range(7)]
    for round_name in "xyz":
        engine.add_request("bad" + round_name, [*OTHER_PROMPT, *PROMPT], greedy(), bad)
        for index, prompt in enumerate(prompts):
            engine.add_request(f"{round_name}{index}", prompt, greedy())

        outputs = run(engine)

        error = outputs.pop("bad" + round_name).error
        assert isinstance(error, RequestFailed)
        assert "no usable numbers" in str(error)
        for index, prompt in enumerate(prompts):
            assert outputs[f"{round_name}{index}"].error is None
            assert tokens_of(outputs[f"{round_name}{index}"]) == reference.greedy(prompt, 6)
        assert_idle(engine)


def test_useless_numbers_are_never_found_in_the_prefix_cache(
    make_engine: MakeEngine, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    bad = lora(overflowing(tmp_path / "bad", make_adapter("r8", rank=8, seed=1)), 9)
    engine = make_engine()
    for _ in range(2):
        engine.add_request("x", PROMPT, greedy(), bad)
        run(engine)
    engine.add_request("x", PROMPT, greedy(), bad)
    while not engine.counters()["running"]:
        engine._admit_loaded()
        engine.scheduler.schedule()

    (request,) = engine.scheduler.running
    assert request.num_cached_tokens == 0
    engine.abort_request("x")


# --- adapters


def test_an_invalid_adapter_fails_its_requests_only(
    make_engine: MakeEngine, tmp_path: Path, reference: Reference
) -> None:
    engine = make_engine()
    engine.add_request("bad", PROMPT, greedy(), lora(tmp_path / "nowhere"))
    engine.add_request("good", PROMPT, greedy())

    outputs = run(engine)

    error = outputs["bad"].error
    assert isinstance(error, AdapterInvalid)
    assert error.name == "nowhere"
    assert outputs["bad"].outputs[0].finish_reason == "abort"
    assert tokens_of(outputs["good"]) == reference.greedy(PROMPT, 6)
    assert_idle(engine)


def test_an_adapter_without_enable_lora_is_refused_by_name(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine(enable_lora=False)

    with pytest.raises(ConfigInvalid, match=r"adapter 'x' was asked for, but the engine runs without enable_lora=True"):
        engine.add_request("r", PROMPT, greedy(), LoRARequest("x", 1, str(tmp_path)))
    with pytest.raises(ConfigInvalid, match="enable_lora=True"):
        engine.add_lora(LoRARequest("x", 1, str(tmp_path)))
    assert_idle(engine)


def test_add_lora_says_whether_it_is_new(make_engine: MakeEngine, make_adapter: MakeAdapter) -> None:
    engine = make_engine()
    adapter = lora(make_adapter("r8", rank=8, seed=1), 5)

    assert engine.add_lora(adapter)
    assert not engine.add_lora(adapter)
    assert engine.list_loras() == {5}


def test_add_lora_refuses_when_every_place_is_in_use(make_engine: MakeEngine, make_adapter: MakeAdapter) -> None:
    engine = make_engine(max_loras=1, max_cpu_loras=1)
    engine.add_lora(lora(make_adapter("r8", rank=8, seed=1), 1))
    engine.add_request("x", PROMPT, greedy(50), lora(make_adapter("r8"), 1))
    engine.step()

    with pytest.raises(EngineOverloaded, match=r"adapter 'r3' cannot be loaded now: all 1 adapters"):
        engine.add_lora(lora(make_adapter("r3", rank=3, seed=2), 2))
    engine.abort_request("x")
    assert engine.add_lora(lora(make_adapter("r3"), 2))


def test_one_id_for_two_adapters_is_refused(make_engine: MakeEngine, make_adapter: MakeAdapter) -> None:
    engine = make_engine()
    engine.add_lora(lora(make_adapter("r8", rank=8, seed=1), 1))

    with pytest.raises(RequestInvalid, match="lora_int_id 1 already belongs"):
        engine.add_request("x", PROMPT, greedy(), lora(make_adapter("r3", rank=3, seed=2), 1))
    assert_idle(engine)


def test_more_adapters_than_places_anywhere_take_turns(
    make_engine: MakeEngine, make_adapter: MakeAdapter, reference: Reference
) -> None:
    engine = make_engine(max_loras=1, max_cpu_loras=2, slot_wait_limit=2)
    folders = [make_adapter(f"turn{index}", rank=2, seed=10 + index) for index in range(4)]
    for index in range(12):
        engine.add_request(str(index), PROMPT, greedy(4), lora(folders[index % 4], 1 + index % 4))

    outputs = run(engine)

    for index in range(12):
        assert tokens_of(outputs[str(index)]) == reference.greedy(PROMPT, 4, folders[index % 4])
    assert_idle(engine)


def test_pinning_keeps_an_adapter_everywhere(make_engine: MakeEngine, make_adapter: MakeAdapter) -> None:
    engine = make_engine(max_loras=2, max_cpu_loras=2)
    pinned = lora(make_adapter("r8", rank=8, seed=1), 1)
    engine.add_lora(pinned)
    assert engine.pin_lora(1)
    answer(engine, PROMPT, greedy(1), pinned)
    (digest,) = engine.slots.digests()

    for index in range(3):
        answer(engine, PROMPT, greedy(1), lora(make_adapter(f"turn{index}", rank=2, seed=10 + index), 2 + index))

    assert engine.slots.is_resident(digest)
    assert 1 in engine.list_loras()


def test_pinning_what_is_not_loaded_is_false(make_engine: MakeEngine) -> None:
    assert not make_engine().pin_lora(3)


def test_the_last_slot_cannot_be_pinned(make_engine: MakeEngine, make_adapter: MakeAdapter) -> None:
    engine = make_engine(max_loras=1, max_cpu_loras=1)
    engine.add_lora(lora(make_adapter("r8", rank=8, seed=1), 1))

    with pytest.raises(RequestInvalid, match="adapter id 1 cannot be pinned: one of 1 slots must stay unpinned"):
        engine.pin_lora(1)

    engine.add_lora(lora(make_adapter("r3", rank=3, seed=2), 2))  # … and host memory kept no pin either


def slab_of(engine: LLMEngine, adapter_id: int) -> weakref.ref[torch.Tensor]:
    adapter = engine.adapters.host_cache.adapter(adapter_id)
    assert adapter is not None
    return weakref.ref(adapter.slab)


def is_dead(reference: weakref.ref[torch.Tensor]) -> bool:
    gc.collect()
    return reference() is None


def test_removing_an_idle_adapter_frees_slot_and_memory_now(make_engine: MakeEngine, make_adapter: MakeAdapter) -> None:
    engine = make_engine()
    adapter = lora(make_adapter("r8", rank=8, seed=1))
    answer(engine, PROMPT, greedy(), adapter)
    slab = slab_of(engine, 1)

    assert engine.remove_lora(1)

    assert engine.list_loras() == set()
    assert engine.slots.digests() == set()
    assert is_dead(slab)
    assert not engine.remove_lora(1)


@pytest.mark.parametrize("state", ["running", "waiting", "preempted", "awaiting"])
def test_removing_a_used_adapter_lets_its_requests_finish_and_then_frees_it(
    make_engine: MakeEngine, make_adapter: MakeAdapter, reference: Reference, state: str
) -> None:
    engine = make_engine(max_num_seqs=1)
    folder = make_adapter("r8", rank=8, seed=1)
    engine.add_lora(lora(folder))
    if state in ("waiting", "preempted"):
        engine.add_request("before", OTHER_PROMPT, greedy(3))
        engine.step()
    engine.add_request("x", PROMPT, greedy(), lora(folder))
    if state != "awaiting":
        engine._admit_loaded()
    if state in ("running", "preempted"):
        while not engine.slots.num_in_use:
            engine.step()
    if state == "preempted":
        engine.scheduler._preempt(engine.scheduler.running[0])
    slab = slab_of(engine, 1)

    assert engine.remove_lora(1)
    output = run(engine)["x"]

    assert tokens_of(output) == reference.greedy(PROMPT, 6, folder)
    assert engine.slots.digests() == set()
    assert is_dead(slab)
    assert_idle(engine)


def test_removing_an_adapter_that_left_host_memory_frees_its_slot(
    make_engine: MakeEngine, make_adapter: MakeAdapter
) -> None:
    engine = make_engine(max_loras=1, max_cpu_loras=1)
    answer(engine, PROMPT, greedy(), lora(make_adapter("r8", rank=8, seed=1), 1))
    slab = slab_of(engine, 1)
    engine.add_lora(lora(make_adapter("r3", rank=3, seed=2), 2))

    assert engine.remove_lora(1)

    assert is_dead(slab)


@pytest.fixture
def twins(make_adapter: MakeAdapter, tmp_path: Path) -> tuple[LoRARequest, LoRARequest]:
    """Two adapters of different ids, names and paths, with the same content."""
    folder = make_adapter("r8", rank=8, seed=1)
    shutil.copytree(folder, tmp_path / "copy")
    return lora(folder, 1), lora(tmp_path / "copy", 2)


def test_removing_one_of_two_equal_adapters_leaves_the_other_alone(
    make_engine: MakeEngine, reference: Reference, twins: tuple[LoRARequest, LoRARequest]
) -> None:
    engine = make_engine()
    one, two = twins
    answer(engine, PROMPT, greedy(1), one)
    answer(engine, PROMPT, greedy(1), two)
    engine.add_request("x", PROMPT, greedy(), two)
    engine.step()

    engine.remove_lora(1)

    expected = reference.greedy(PROMPT, 6, Path(two.lora_path))
    assert tokens_of(run(engine)["x"]) == expected
    assert len(engine.slots.digests()) == 1, "the slot is still good for the other one"
    assert tokens_of(answer(engine, PROMPT, greedy(), two)) == expected
    engine.remove_lora(2)
    assert engine.slots.digests() == set()


@pytest.mark.parametrize(("pinned", "removed"), [(2, 1), (1, 1)])
def test_a_pin_belongs_to_the_adapter_that_was_pinned(
    make_engine: MakeEngine, twins: tuple[LoRARequest, LoRARequest], pinned: int, removed: int
) -> None:
    engine = make_engine()
    for twin in twins:
        answer(engine, PROMPT, greedy(1), twin)
    engine.pin_lora(pinned)
    (digest,) = engine.slots.digests()

    engine.remove_lora(removed)

    assert engine.slots.is_pinned(digest) == (pinned != removed)


def test_changed_files_under_the_same_name_give_new_answers_after_a_removal(
    make_engine: MakeEngine, make_adapter: MakeAdapter, reference: Reference, tmp_path: Path
) -> None:
    engine = make_engine()
    old, new = make_adapter("r8", rank=8, seed=1), make_adapter("r3", rank=3, seed=2)
    folder = tmp_path / "adapter"
    shutil.copytree(old, folder)
    request = LoRARequest("name", 1, str(folder))
    assert tokens_of(answer(engine, PROMPT, greedy(), request)) == reference.greedy(PROMPT, 6, old)
    shutil.rmtree(folder)
    shutil.copytree(new, folder)
    assert tokens_of(answer(engine, PROMPT, greedy(), request)) == reference.greedy(PROMPT, 6, old), "not yet"

    engine.remove_lora(1)
    output = answer(engine, PROMPT, greedy(), request)

    assert tokens_of(output) == reference.greedy(PROMPT, 6, new)
    assert output.num_cached_tokens == 0


def test_the_owner_hears_of_adapters(tiny_llama: Path, make_adapter: MakeAdapter) -> None:
    events: list[tuple[str, str]] = []
    engine = LLMEngine(
        engine_args(tiny_llama), on_adapter_event=lambda kind, request: events.append((kind, request.lora_name))
    )
    engine.add_lora(lora(make_adapter("r8", rank=8, seed=1)))
    engine.remove_lora(1)
    engine.shutdown()

    assert events == [("loaded", "r8"), ("unloaded", "r8")]


# --- what fits


def test_kv_memory_is_what_the_flag_says(make_engine: MakeEngine) -> None:
    engine = make_engine(kv_cache_memory_bytes=kv_bytes(64) + 100)

    summary = engine.summary()
    assert (engine.block_pool.num_blocks, summary.kv_tokens, summary.kv_bytes) == (64, 256, kv_bytes(64))
    assert summary.max_model_len == 256, "the model allows 512, the memory does not"
    assert (summary.device, summary.dtype, summary.max_loras, summary.max_cpu_loras) == ("cpu", "float32", 2, 4)


def test_kv_memory_can_be_a_share_of_what_is_free(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loramux.model.kv_sizing._free_bytes", lambda _device: kv_bytes(100))

    engine = make_engine(kv_cache_memory_bytes=None, memory_utilization=0.25)

    assert engine.block_pool.num_blocks == 25


def test_no_more_kv_memory_is_taken_than_all_sequences_can_use(make_engine: MakeEngine) -> None:
    engine = make_engine(kv_cache_memory_bytes=kv_bytes(10_000), max_model_len=32, max_num_seqs=3)

    assert engine.block_pool.num_blocks == 3 * 8


def test_memory_for_less_than_a_block_is_refused_with_numbers(make_engine: MakeEngine) -> None:
    with pytest.raises(ConfigInvalid, match=rf"set kv_cache_memory_bytes to at least {kv_bytes(1)}"):
        make_engine(kv_cache_memory_bytes=kv_bytes(1) - 1)


def test_a_longer_context_than_the_models_is_refused(make_engine: MakeEngine) -> None:
    with pytest.raises(ConfigInvalid, match=r"max_model_len \(513\) is beyond the model's own limit of 512 tokens"):
        make_engine(max_model_len=513)


def test_a_longest_sequence_fits_alone(make_engine: MakeEngine) -> None:
    engine = make_engine(kv_cache_memory_bytes=kv_bytes(4))

    output = answer(engine, PROMPT, greedy(max_tokens=None))

    assert len(PROMPT) + len(tokens_of(output)) == engine.max_model_len == 16


def test_a_tenants_crowd_delays_anothers_request_by_what_runs_and_one_more(make_engine: MakeEngine) -> None:
    engine = make_engine(max_num_seqs=1)
    for number in range(50):
        engine.add_request(f"crowd-{number}", "x", greedy(2), tenant="crowd")
    engine.step()
    engine.add_request("single", "x", greedy(2), tenant="other")

    ended: list[str] = []
    while "single" not in ended:
        ended += [output.request_id for output in engine.step() if output.finished]

    assert len(ended) <= 3
