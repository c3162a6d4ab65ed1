"""An answer that is held to a shape has that shape, whatever the model would rather say, and nobody else notices."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loramux import LLM, AsyncLLMEngine, LLMEngine, RequestOutput, SamplingParams, StructuredOutputsParams
from loramux.errors import RequestFailed, RequestInvalid
from loramux.text.grammar import GrammarMatcher
from tiny_engines import Reference, answer, assert_idle, engine_args, greedy, kv_bytes, run
from tiny_models import build_model
from tiny_tokenizers import byte_fallback

MakeEngine = Callable[..., LLMEngine]

PROMPT = [17, 200, 45, 8, 99, 310, 61, 7, 150, 33, 42]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "kind": {"enum": ["café", "東京", 'a"b\\c']},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": -20, "maximum": 300}, "maxItems": 3},
    },
    "required": ["name", "kind", "sizes"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},  # a random model may write spaces for ever
}
REGEX = r"[a-z]{2,5}-[0-9]{3}(é|東)?"
CHOICES = ["yes", "no", "not sure", 'it\'s "so-so"\n', "naïve 東京 😀"]
GRAMMAR = """
start: term (" + " term){0,3}
term: NUMBER | "(" term ")"
NUMBER: /[0-9]{1,3}/
"""


def is_object(text: str) -> bool:
    value = json.loads(text)
    return (
        list(value) == ["name", "kind", "sizes"]
        and len(value["name"]) <= 8
        and value["kind"] in SCHEMA["properties"]["kind"]["enum"]  # type: ignore[index]
        and len(value["sizes"]) <= 3
        and all(-20 <= size <= 300 for size in value["sizes"])
    )


SHAPES: dict[str, tuple[dict[str, Any], Callable[[str], object]]] = {
    "json": ({"json": SCHEMA}, is_object),
    "regex": ({"regex": REGEX}, re.compile(REGEX).fullmatch),
    "choice": ({"choice": CHOICES}, CHOICES.__contains__),
    "grammar": ({"grammar": GRAMMAR}, re.compile(r"\(*\d{1,3}\)*( \+ \(*\d{1,3}\)*){0,3}").fullmatch),
}


def shaped(kind: str, **params: object) -> SamplingParams:
    return SamplingParams(
        **{  # type: ignore[arg-type]
            "max_tokens": 150,
            "structured_outputs": StructuredOutputsParams(**SHAPES[kind][0]),
            **params,
        }
    )


def held(**shape: Any) -> SamplingParams:
    return greedy(40, ignore_eos=False, structured_outputs=StructuredOutputsParams(**shape))


def text_of(output: RequestOutput) -> str:
    return output.outputs[0].text


@pytest.fixture(scope="module")
def byte_fallback_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLMEngine]:
    folder = build_model(
        tmp_path_factory.mktemp("models") / "byte-fallback", vocab_size=400, bos_token_id=1, eos_token_id=2
    )
    byte_fallback().hf.save_pretrained(folder)
    engine = LLMEngine.from_engine_args(engine_args(folder, kv_cache_memory_bytes=kv_bytes(400)))
    yield engine
    assert_idle(engine)
    engine.shutdown()


@pytest.fixture(scope="module")
def byte_level_engine(tiny_llama: Path) -> Iterator[LLMEngine]:
    engine = LLMEngine.from_engine_args(engine_args(tiny_llama, kv_cache_memory_bytes=kv_bytes(400)))
    yield engine
    assert_idle(engine)
    engine.shutdown()


# --- the shape


@pytest.mark.parametrize("tokens", ["byte_level", "byte_fallback"])
@pytest.mark.parametrize("kind", SHAPES)
def test_every_answer_has_its_shape(request: pytest.FixtureRequest, kind: str, tokens: str) -> None:
    engine: LLMEngine = request.getfixturevalue(f"{tokens}_engine")
    _shape, matches = SHAPES[kind]
    for seed in range(25):
        engine.add_request(str(seed), PROMPT[seed % 5 :], shaped(kind, seed=seed))
    engine.add_request("n", PROMPT, shaped(kind, seed=99, n=3))
    engine.add_request("greedy", PROMPT, shaped(kind, temperature=0))

    outputs = run(engine)

    answers = [completion for output in outputs.values() for completion in output.outputs]
    assert [output.error for output in outputs.values()] == [None] * 27
    assert [completion.finish_reason for completion in answers] == ["stop"] * 29
    assert [completion.text for completion in answers if not matches(completion.text)] == []
    assert len({completion.text for completion in answers}) > 3


def test_neighbours_without_a_shape_keep_their_tokens(make_engine: MakeEngine, reference: Reference) -> None:
    engine = make_engine(kv_cache_memory_bytes=kv_bytes(24))  # preemptions among them
    free = SamplingParams(seed=4, max_tokens=12, ignore_eos=True)
    alone = answer(engine, PROMPT, free).outputs[0].token_ids
    shaped_alone = text_of(answer(engine, PROMPT, shaped("json", seed=5)))
    engine.add_request("free", PROMPT, free)
    engine.add_request("greedy", PROMPT, greedy(12))
    for name in "abcd":
        engine.add_request(name, PROMPT, shaped("json", seed=5))

    outputs = run(engine)

    assert engine.scheduler.num_preemptions > 0
    assert outputs["free"].outputs[0].token_ids == alone
    assert outputs["greedy"].outputs[0].token_ids == reference.greedy(PROMPT, 12)
    assert {text_of(outputs[name]) for name in "abcd"} == {shaped_alone}
    assert is_object(shaped_alone)
    assert_idle(engine)


def test_any_json_object_is_an_object(byte_level_engine: LLMEngine) -> None:
    params = SamplingParams(
        max_tokens=250, seed=3, structured_outputs=StructuredOutputsParams(json_object=True), temperature=0.2
    )
    byte_level_engine.add_request("x", [5], params)

    (completion,) = run(byte_level_engine)["x"].outputs

    assert completion.text.startswith("{")
    if completion.finish_reason == "stop":
        assert isinstance(json.loads(completion.text), dict)


def test_a_model_that_loves_white_space_comes_to_an_end_all_the_same(byte_level_engine: LLMEngine) -> None:
    (space,) = byte_level_engine.tokenizer.encode(" ", add_special_tokens=False)
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
    params = greedy(450, ignore_eos=False, structured_outputs=StructuredOutputsParams(json=schema))
    byte_level_engine.add_request("x", PROMPT, replace(params, logit_bias={space: 100.0}))

    (completion,) = run(byte_level_engine)["x"].outputs

    assert completion.finish_reason == "stop"
    assert json.loads(completion.text) == {"a": 1}
    assert " " * 64 in completion.text


def test_logprobs_are_those_of_the_model_itself(byte_level_engine: LLMEngine, reference: Reference) -> None:
    params = greedy(40, ignore_eos=False, logprobs=0, structured_outputs=StructuredOutputsParams(choice=["no", "yes"]))

    (completion,) = answer(byte_level_engine, PROMPT, params).outputs

    logprobs = reference.logprobs([*PROMPT, *completion.token_ids])
    assert completion.logprobs is not None
    for index, (token_id, table) in enumerate(zip(completion.token_ids, completion.logprobs, strict=True)):
        expected = float(logprobs[len(PROMPT) - 1 + index][token_id])
        assert table[token_id].logprob == pytest.approx(expected, abs=1e-4)


def test_offline_answers_have_their_shape(tiny_llama: Path) -> None:
    llm = LLM(str(tiny_llama), max_model_len=128, kv_cache_memory_bytes=kv_bytes(64), block_size=4)
    try:
        outputs = llm.generate(["SELECT", "The"], [shaped("choice", seed=1), greedy(3)], use_tqdm=False)
    finally:
        llm.llm_engine.shutdown()

    assert text_of(outputs[0]) in CHOICES
    assert len(outputs[1].outputs[0].token_ids) == 3


# --- where it ends


def test_an_answer_ends_with_the_last_token_that_fits(byte_level_engine: LLMEngine) -> None:
    (completion,) = answer(byte_level_engine, PROMPT, held(regex="a{4}")).outputs

    assert completion.text == "aaaa"
    assert (completion.finish_reason, completion.stop_reason) == ("stop", None)
    assert 0 not in completion.token_ids, "no end token was needed"


def test_an_open_grammar_ends_with_an_end_token_or_at_max_tokens(byte_level_engine: LLMEngine) -> None:
    one_or_more = StructuredOutputsParams(regex="a+")
    wants_to_end = SamplingParams(max_tokens=9, temperature=0, logit_bias={0: 100.0}, structured_outputs=one_or_more)
    wants_more = SamplingParams(max_tokens=9, temperature=0, logit_bias={0: -100.0}, structured_outputs=one_or_more)

    (ended,) = answer(byte_level_engine, PROMPT, wants_to_end).outputs
    (cut,) = answer(byte_level_engine, PROMPT, wants_more).outputs

    assert (ended.text, ended.finish_reason, ended.token_ids[-1]) == ("a", "stop", 0)
    assert (cut.text, cut.finish_reason) == ("a" * 9, "length")


def test_every_end_token_of_the_model_may_end_it(tiny_llama: Path, make_engine: MakeEngine, tmp_path: Path) -> None:
    folder = build_model(tmp_path / "two-ends", eos_token_id=[0, 2])
    engine = make_engine(folder)
    shape = StructuredOutputsParams(regex="a+")
    for end in (0, 2):
        params = SamplingParams(max_tokens=9, temperature=0, logit_bias={end: 100.0}, structured_outputs=shape)

        (completion,) = answer(engine, PROMPT, params).outputs

        assert (completion.text, completion.finish_reason, completion.token_ids[-1]) == ("a", "stop", end)


@pytest.mark.parametrize("patience", [{"min_tokens": 5}, {"ignore_eos": True}], ids=["min_tokens", "ignore_eos"])
def test_who_is_to_go_on_goes_on_while_the_grammar_can(byte_level_engine: LLMEngine, patience: dict[str, Any]) -> None:
    end = {"max_tokens": 30, "temperature": 0, "logit_bias": {0: 100.0}, **patience}
    at_most_four = SamplingParams(**end, structured_outputs=StructuredOutputsParams(regex="(ab){0,4}"))
    endless = SamplingParams(**end, structured_outputs=StructuredOutputsParams(regex="(ab)*"))

    (stopped,) = answer(byte_level_engine, PROMPT, at_most_four).outputs
    (going_on,) = answer(byte_level_engine, PROMPT, endless).outputs

    if "min_tokens" in patience:
        assert (stopped.text, going_on.text) == ("ababab", "ababab")
        assert {stopped.finish_reason, going_on.finish_reason} == {"stop"}
    else:
        assert (stopped.text, stopped.finish_reason) == ("abababab", "stop")
        assert (going_on.text, going_on.finish_reason) == ("ab" * 15, "length")


def test_min_tokens_beyond_the_grammars_end_is_no_trouble(byte_level_engine: LLMEngine) -> None:
    params = greedy(20, ignore_eos=False, min_tokens=15, structured_outputs=StructuredOutputsParams(choice=["ab"]))

    (completion,) = answer(byte_level_engine, PROMPT, params).outputs

    assert (completion.text, completion.finish_reason) == ("ab", "stop")


@pytest.mark.parametrize("patience", [{"min_tokens": 5}, {"ignore_eos": True}], ids=["min_tokens", "ignore_eos"])
def test_an_end_token_that_is_all_that_is_left_ends_it_and_is_not_shown(
    byte_level_engine: LLMEngine, patience: dict[str, Any]
) -> None:
    nothing = StructuredOutputsParams(grammar='start: ""')
    params = greedy(20, **{"ignore_eos": False, **patience}, skip_special_tokens=False, structured_outputs=nothing)

    (completion,) = answer(byte_level_engine, PROMPT, params).outputs

    assert (completion.token_ids, completion.text, completion.finish_reason) == ([0], "", "stop")


# --- refusals and failures


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"regex": "a(b"}, "unclosed group"),
        ({"regex": r"(a)\1"}, "backreferences are not supported"),
        ({"grammar": "start: missing"}, "unknown name"),
        ({"json": '{"type": '}, "structured_outputs.json cannot be used"),
        ({"json": {"type": "string", "format": "no-such-format"}}, "no-such-format"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(
    byte_level_engine: LLMEngine, shape: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RequestInvalid, match=re.escape(reason)) as refused:
        byte_level_engine.add_request("x", PROMPT, held(**shape))

    assert refused.value.param == "structured_outputs"


def test_a_grammar_that_grows_too_dear_ends_its_own_request_only(
    byte_level_engine: LLMEngine, reference: Reference
) -> None:
    late_explosion = {"regex": "x[ab]((a{1000}){1000}){1000}"}
    byte_level_engine.add_request("dear", PROMPT, held(**late_explosion))
    byte_level_engine.add_request("fine", PROMPT, greedy())

    outputs = run(byte_level_engine)

    error = outputs["dear"].error
    assert isinstance(error, RequestInvalid)
    assert "structured_outputs cannot go on: lexer error" in str(error)
    assert outputs["dear"].outputs[0].finish_reason == "abort"
    assert outputs["fine"].outputs[0].token_ids == reference.greedy(PROMPT, 6)


def test_limits_that_leave_no_token_end_their_own_request_only(
    byte_level_engine: LLMEngine, reference: Reference
) -> None:
    letters = [byte_level_engine.tokenizer.encode(letter)[0] for letter in "xyz"]
    shape = StructuredOutputsParams(regex="a+")
    byte_level_engine.add_request("torn", PROMPT, greedy(allowed_token_ids=letters, structured_outputs=shape))
    byte_level_engine.add_request("fine", PROMPT, greedy())

    outputs = run(byte_level_engine)

    error = outputs["torn"].error
    assert isinstance(error, RequestInvalid)
    assert "no token is left" in str(error)
    assert outputs["fine"].outputs[0].token_ids == reference.greedy(PROMPT, 6)


def test_a_matcher_that_breaks_ends_its_own_request_only(
    byte_level_engine: LLMEngine, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(_matcher: GrammarMatcher, _token_id: int) -> bool:
        raise RuntimeError("a bug")

    monkeypatch.setattr(GrammarMatcher, "take", explode)
    byte_level_engine.add_request("broken", PROMPT, held(regex="a+"))
    byte_level_engine.add_request("fine", PROMPT, greedy())

    outputs = run(byte_level_engine)

    assert isinstance(outputs["broken"].error, RequestFailed)
    assert outputs["fine"].outputs[0].token_ids == reference.greedy(PROMPT, 6)


def test_an_aborted_request_leaves_nothing(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.add_request("x", PROMPT, held(regex="a+"))
    engine.step()

    engine.abort_request("x")

    assert_idle(engine)


# --- beside an event loop


async def test_the_engine_thread_finds_what_was_compiled_before(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = AsyncLLMEngine.from_engine_args(engine_args(tiny_llama))
    try:
        params = held(choice=["ab", "cd"])
        await engine.check_structured_outputs(params.structured_outputs)
        compiler = engine._engine.grammars
        monkeypatch.setattr(compiler, "_start", None)  # from here on, nothing can be compiled

        outputs = [output async for output in engine.generate(PROMPT, params, "x")]
    finally:
        engine.shutdown()

    assert text_of(outputs[-1]) in ("ab", "cd")


async def test_what_makes_no_sense_is_refused_before_the_engine_thread_sees_it(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = AsyncLLMEngine.from_engine_args(engine_args(tiny_llama))
    monkeypatch.setattr(engine._engine, "add_request", None)
    try:
        await engine.check_structured_outputs(None)
        with pytest.raises(RequestInvalid, match="unclosed group"):
            await engine.check_structured_outputs(StructuredOutputsParams(regex="(a"))
        with pytest.raises(RequestInvalid, match="unclosed group"):
            await anext(engine.generate(PROMPT, held(regex="(a"), "x"))
        assert engine._streams == {}
    finally:
        engine.shutdown()
