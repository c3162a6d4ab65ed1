"""LLM: lists of prompts in, lists of outputs out, each prompt with parameters and an adapter of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from loramux import LLM, LoRARequest, SamplingParams
from loramux.errors import AdapterInvalid, RequestInvalid
from tiny_engines import Reference, assert_idle, greedy, kv_bytes

MakeAdapter = Callable[..., Path]
PROMPT = [17, 200, 45, 8, 99, 310]


@pytest.fixture(scope="module")
def llm(tiny_llama: Path) -> Iterator[LLM]:
    llm = LLM(
        str(tiny_llama),
        enable_lora=True,
        max_loras=2,
        max_cpu_loras=2,
        block_size=4,
        kv_cache_memory_bytes=kv_bytes(64),
    )
    yield llm
    llm.llm_engine.shutdown()


@pytest.fixture(autouse=True)
def leaves_the_engine_idle(llm: LLM) -> Iterator[None]:
    yield
    assert_idle(llm.llm_engine)


@pytest.fixture(scope="module")
def reference(tiny_llama: Path) -> Reference:
    return Reference(tiny_llama)


@pytest.fixture
def adapter(make_adapter: MakeAdapter) -> LoRARequest:
    return LoRARequest("r8", 1, str(make_adapter("r8", rank=8, seed=1)))


def test_prompts_of_every_form_are_answered_in_order(llm: LLM) -> None:
    prompts = ["The quick", PROMPT, {"prompt": "SELECT"}, {"prompt_token_ids": PROMPT}]

    outputs = llm.generate(prompts, greedy(2), use_tqdm=False)  # type: ignore[arg-type]

    assert [output.prompt for output in outputs] == ["The quick", None, "SELECT", None]
    assert outputs[1].outputs[0].token_ids == outputs[3].outputs[0].token_ids


@pytest.mark.parametrize("prompt", ["The quick", PROMPT, tuple(PROMPT), {"prompt": "The quick"}], ids=str)
def test_one_prompt_needs_no_list(llm: LLM, prompt: object) -> None:
    assert len(llm.generate(prompt, greedy(1), use_tqdm=False)) == 1  # type: ignore[arg-type]


def test_no_prompts_have_no_answers(llm: LLM) -> None:
    assert llm.generate([], use_tqdm=False) == []


def test_the_default_is_sixteen_sampled_tokens(llm: LLM) -> None:
    (output,) = llm.generate([PROMPT], use_tqdm=False)

    assert 1 <= len(output.outputs[0].token_ids) <= SamplingParams().max_tokens == 16


def test_each_prompt_may_have_parameters_of_its_own(llm: LLM) -> None:
    outputs = llm.generate([PROMPT] * 3, [greedy(1), greedy(2), greedy(3)], use_tqdm=False)

    assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 2, 3]


def test_each_prompt_may_have_an_adapter_of_its_own(llm: LLM, adapter: LoRARequest, reference: Reference) -> None:
    outputs = llm.generate([PROMPT] * 2, greedy(), lora_request=[adapter, None], use_tqdm=False)

    assert outputs[0].outputs[0].token_ids == reference.greedy(PROMPT, 6, Path(adapter.lora_path))
    assert outputs[1].outputs[0].token_ids == reference.greedy(PROMPT, 6)
    assert [output.lora_request for output in outputs] == [adapter, None]


def test_one_adapter_serves_all_prompts(llm: LLM, adapter: LoRARequest) -> None:
    outputs = llm.generate([PROMPT, PROMPT[1:]], greedy(1), lora_request=adapter, use_tqdm=False)

    assert [output.lora_request for output in outputs] == [adapter, adapter]


def test_more_adapters_than_host_memory_holds_take_turns(
    llm: LLM, make_adapter: MakeAdapter, reference: Reference
) -> None:
    folders = [make_adapter(f"turn{index}", rank=2, seed=10 + index) for index in range(4)]
    adapters = [LoRARequest(folder.name, 20 + index, str(folder)) for index, folder in enumerate(folders)]

    outputs = llm.generate([PROMPT] * 8, greedy(3), lora_request=adapters * 2, use_tqdm=False)

    expected = [reference.greedy(PROMPT, 3, folder) for folder in folders]
    assert [output.outputs[0].token_ids for output in outputs] == expected * 2


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_list_of_the_wrong_length_is_refused(llm: LLM, adapter: LoRARequest, count: int) -> None:
    message = f"has {count} entries for 2 prompts; give one for all, or one per prompt"

    with pytest.raises(RequestInvalid, match=f"sampling_params {message}"):
        llm.generate([PROMPT] * 2, [greedy()] * count, use_tqdm=False)
    with pytest.raises(RequestInvalid, match=f"lora_request {message}"):
        llm.generate([PROMPT] * 2, greedy(), lora_request=[adapter] * count, use_tqdm=False)


def test_a_refused_prompt_stops_everything_before_it_runs(llm: LLM) -> None:
    steps = llm.llm_engine.runner.num_steps

    with pytest.raises(RequestInvalid):
        llm.generate([PROMPT, []], greedy(), use_tqdm=False)

    assert llm.llm_engine.runner.num_steps == steps


def test_an_invalid_adapter_is_raised_before_anything_runs_and_the_engine_goes_on(llm: LLM, tmp_path: Path) -> None:
    steps = llm.llm_engine.runner.num_steps

    with pytest.raises(AdapterInvalid, match="adapter 'nowhere'"):
        llm.generate([PROMPT] * 2, greedy(), lora_request=[None, LoRARequest("nowhere", 9, str(tmp_path / "x"))])

    assert llm.llm_engine.runner.num_steps == steps
    assert len(llm.generate([PROMPT], greedy(2), use_tqdm=False)[0].outputs[0].token_ids) == 2


def test_an_adapter_that_vanishes_between_its_loads_fails_its_own_requests(
    llm: LLM, make_adapter: MakeAdapter, tmp_path: Path, reference: Reference
) -> None:
    """Three adapters for two places: the first one has left host memory again when its prompt's turn comes."""
    folder = tmp_path / "vanishing"
    shutil.copytree(make_adapter("r3", rank=3, seed=2), folder)
    vanishing = LoRARequest("vanishing", 30, str(folder))
    others = [
        LoRARequest(f"turn{index}", 40 + index, str(make_adapter(f"turn{index}", rank=2, seed=10 + index)))
        for index in range(2)
    ]
    engine = llm.llm_engine
    add_lora = engine.add_lora

    def add_then_remove_the_files(request: LoRARequest) -> bool:
        added = add_lora(request)
        shutil.rmtree(folder, ignore_errors=True)
        return added

    engine.add_lora = add_then_remove_the_files  # type: ignore[method-assign]
    try:
        outputs = llm.generate([PROMPT] * 3, greedy(), lora_request=[vanishing, *others], use_tqdm=False)
    finally:
        engine.add_lora = add_lora  # type: ignore[method-assign]

    assert isinstance(outputs[0].error, AdapterInvalid)
    assert outputs[0].outputs[0].finish_reason == "abort"
    for output, other in zip(outputs[1:], others, strict=True):
        assert output.outputs[0].token_ids == reference.greedy(PROMPT, 6, Path(other.lora_path))


def test_an_interrupt_aborts_what_was_under_way(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    step = llm.llm_engine.step
    steps = iter([step, step])

    def interrupted() -> object:
        for one in steps:
            return one()
        raise KeyboardInterrupt

    monkeypatch.setattr(llm.llm_engine, "step", interrupted)

    with pytest.raises(KeyboardInterrupt):
        llm.generate([PROMPT] * 3, greedy(50), use_tqdm=False)


def test_chat_goes_through_the_models_template(llm: LLM, adapter: LoRARequest) -> None:
    messages = [{"role": "user", "content": "Hello"}]

    (output,) = llm.chat(messages, greedy(2), lora_request=adapter, use_tqdm=False)

    assert output.prompt_token_ids == llm.get_tokenizer().apply_chat_template(messages)
    assert output.lora_request == adapter


def test_chat_takes_a_list_of_conversations(llm: LLM) -> None:
    conversations = [[{"role": "user", "content": text}] for text in ("Hello", "Bye")]

    outputs = llm.chat(conversations, greedy(1), use_tqdm=False)

    assert [llm.get_tokenizer().decode(output.prompt_token_ids, skip_special_tokens=False) for output in outputs] == [
        "<|user|>Hello<|end|><|assistant|>",
        "<|user|>Bye<|end|><|assistant|>",
    ]


def test_chat_without_messages_is_refused(llm: LLM) -> None:
    with pytest.raises(RequestInvalid, match="at least one message"):
        llm.chat([], greedy(1), use_tqdm=False)


@pytest.mark.parametrize("messages", ["hi", None, {"role": "user", "content": "hi"}])
def test_messages_that_are_no_list_are_refused_by_name(llm: LLM, messages: object) -> None:
    with pytest.raises(RequestInvalid, match="messages must be a list"):
        llm.chat(messages, greedy(1), use_tqdm=False)  # type: ignore[arg-type]


def test_text_parts_of_a_message_are_joined(llm: LLM) -> None:
    parts = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]

    (output,) = llm.chat([{"role": "user", "content": parts}], greedy(1), use_tqdm=False)

    assert (
        llm.get_tokenizer()
        .decode(output.prompt_token_ids, skip_special_tokens=False)
        .startswith("<|user|>Hi\nthere<|end|>")
    )


@pytest.mark.parametrize("prompts", [None, 5, (prompt for prompt in ["hi"])])
def test_prompts_of_no_known_form_are_refused_by_name(llm: LLM, prompts: object) -> None:
    with pytest.raises(RequestInvalid, match="prompts must be a string, a list of token ids, or a list of prompts"):
        llm.generate(prompts, greedy(1), use_tqdm=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("prompt", [np.array([5, 6]), [np.int64(5), np.int64(6)], torch.tensor([5, 6])])
def test_token_ids_may_come_as_an_array(llm: LLM, prompt: object) -> None:
    (output,) = llm.generate(prompt, greedy(1), use_tqdm=False)  # type: ignore[arg-type]

    assert output.prompt_token_ids == [5, 6]


def test_parameters_and_adapters_of_another_type_are_refused_by_name(llm: LLM) -> None:
    with pytest.raises(RequestInvalid, match=r"sampling_params must be SamplingParams.*got dict"):
        llm.generate("hi", {"temperature": 0}, use_tqdm=False)  # type: ignore[arg-type]
    with pytest.raises(RequestInvalid, match=r"lora_request must be LoRARequest.*got str"):
        llm.generate("hi", greedy(1), use_tqdm=False, lora_request="adapters/a1")  # type: ignore[arg-type]


def test_the_progress_bar_leaves_standard_output_alone(llm: LLM, capfd: pytest.CaptureFixture[str]) -> None:
    llm.generate([PROMPT], greedy(1))

    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("shown", [True, False])
def test_use_tqdm_shows_a_progress_bar_or_nothing(llm: LLM, capfd: pytest.CaptureFixture[str], shown: bool) -> None:
    llm.generate([PROMPT] * 3, greedy(1), use_tqdm=shown)

    captured = capfd.readouterr()
    assert ("3/3" in captured.out + captured.err) == shown
