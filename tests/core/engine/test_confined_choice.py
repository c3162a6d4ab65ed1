"""allowed_token_ids and bad_words hold in a real engine: greedy, sampled, for every answer, under pressure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from loramux import LLMEngine, SamplingParams
from loramux.errors import RequestInvalid
from tiny_engines import Reference, answer, assert_idle, greedy, kv_bytes, run

MakeEngine = Callable[..., LLMEngine]

PROMPT = [17, 200, 45, 8, 99, 310, 61, 7, 150, 33, 42]


def holds(tokens: Sequence[int], word: Sequence[int]) -> bool:
    return any(list(tokens[start : start + len(word)]) == list(word) for start in range(len(tokens)))


def test_answers_consist_of_allowed_tokens(make_engine: MakeEngine, reference: Reference) -> None:
    engine = make_engine(kv_cache_memory_bytes=kv_bytes(14))
    allowed = [5, 66, 67, 68, 301]
    sampled = SamplingParams(n=3, seed=1, max_tokens=12, ignore_eos=True, allowed_token_ids=allowed)
    engine.add_request("greedy", PROMPT, greedy(12, allowed_token_ids=allowed))
    engine.add_request("sampled", PROMPT, sampled)
    engine.add_request("free", PROMPT, greedy(12))

    outputs = run(engine)

    assert engine.scheduler.num_preemptions > 0
    answers = [completion for name in ("greedy", "sampled") for completion in outputs[name].outputs]
    assert len(answers) == 4
    assert all(set(completion.token_ids) <= set(allowed) for completion in answers)
    assert len({tuple(completion.token_ids) for completion in answers}) == 4
    assert outputs["free"].outputs[0].token_ids == reference.greedy(PROMPT, 12)
    assert_idle(engine)


def test_an_end_token_must_be_allowed_to_end_an_answer(shared_engine: LLMEngine) -> None:
    bias = {0: 100.0}
    without = greedy(3, ignore_eos=False, logit_bias=bias, allowed_token_ids=[5])
    with_it = greedy(3, ignore_eos=False, logit_bias=bias, allowed_token_ids=[5, 0])

    assert answer(shared_engine, PROMPT, without).outputs[0].token_ids == [5, 5, 5]
    assert answer(shared_engine, PROMPT, with_it).outputs[0].token_ids == [0]


def test_an_allowed_token_that_the_model_lacks_is_refused(shared_engine: LLMEngine) -> None:
    with pytest.raises(RequestInvalid, match="allowed_token_ids must be token ids from 0 to 319, got 320"):
        shared_engine.add_request("x", PROMPT, greedy(allowed_token_ids=[1, 320]))


def test_bad_words_do_not_come_up(make_engine: MakeEngine, reference: Reference) -> None:
    engine = make_engine(kv_cache_memory_bytes=kv_bytes(14))
    tokenizer = engine.tokenizer
    letters = {tokenizer.encode(letter)[0]: 100.0 for letter in "ab "}
    words = ["aa", "ab"]
    banned = [tokenizer.encode(text) for word in words for text in (word, " " + word)]
    options = {"logit_bias": letters, "max_tokens": 12, "ignore_eos": True}
    sampled = SamplingParams(n=3, seed=1, **options)  # type: ignore[arg-type]
    held = SamplingParams(n=3, seed=1, bad_words=words, **options)  # type: ignore[arg-type]
    free = [completion.token_ids for completion in answer(engine, PROMPT, sampled).outputs]
    assert any(holds(tokens, word) for tokens in free for word in banned), "nothing was there to be banned"
    engine.add_request("greedy", PROMPT, greedy(12, bad_words=words, logit_bias=letters))
    engine.add_request("sampled", PROMPT, held)
    engine.add_request("free", PROMPT, greedy(12))

    outputs = run(engine)

    assert engine.scheduler.num_preemptions > 0
    answers = [completion for name in ("greedy", "sampled") for completion in outputs[name].outputs]
    assert not [word for completion in answers for word in banned if holds(completion.token_ids, word)]
    assert not [completion.text for completion in answers if "aa" in completion.text or "ab" in completion.text]
    assert outputs["free"].outputs[0].token_ids == reference.greedy(PROMPT, 12)


def test_the_prompt_does_not_count_as_the_start_of_a_bad_word(shared_engine: LLMEngine) -> None:
    a, b = (shared_engine.tokenizer.encode(letter)[0] for letter in "ab")
    params = greedy(2, bad_words=["ab"], allowed_token_ids=[a, b], logit_bias={b: 100.0})

    assert answer(shared_engine, [a], params).outputs[0].token_ids == [b, b]


def test_a_choice_with_nothing_left_ends_its_own_request_only(shared_engine: LLMEngine, reference: Reference) -> None:
    a = shared_engine.tokenizer.encode("a")[0]
    shared_engine.add_request("none", PROMPT, greedy(bad_words=["a"], allowed_token_ids=[a]))
    shared_engine.add_request("free", PROMPT, greedy())

    outputs = run(shared_engine)

    assert isinstance(outputs["none"].error, RequestInvalid)
    assert "no token is left" in str(outputs["none"].error)
    assert outputs["free"].outputs[0].token_ids == reference.greedy(PROMPT, 6)
