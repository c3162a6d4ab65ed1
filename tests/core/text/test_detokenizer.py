"""Shown text is always a prefix of the final text, and ends where the stop string says."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_tokenizers
from loramux.sampling_params import SamplingParams
from loramux.text.detokenizer import IncrementalDetokenizer
from loramux.text.tokenizer import Tokenizer


def letters(tokenizer: Tokenizer, text: str) -> list[int]:
    """One token per character, so that everything spans tokens."""
    return [token_id for letter in text for token_id in tokenizer.encode(letter, add_special_tokens=False)]


def shown_texts(detokenizer: IncrementalDetokenizer, token_ids: Sequence[int]) -> list[str]:
    """The text after each token up to the stop string, then the final one."""
    texts = []
    for token_id in token_ids:
        detokenizer.append(token_id)
        texts.append(detokenizer.text)
        if detokenizer.stop_string is not None:
            break
    return [*texts, detokenizer.finish()]


def run(text: str, **kwargs: Any) -> tuple[list[str], str | None]:
    tokenizer = tiny_tokenizers.byte_level()
    detokenizer = IncrementalDetokenizer(tokenizer, [], **kwargs)
    return shown_texts(detokenizer, letters(tokenizer, text)), detokenizer.stop_string


def assert_only_grows(texts: Sequence[str]) -> None:
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts)), texts


def test_letters_that_may_begin_a_stop_string_are_held_back_until_decided() -> None:
    assert run("xENyEND", stop=["END"]) == (["x", "x", "x", "xENy", "xENy", "xENy", "xENy", "xENy"], "END")


def test_letters_held_back_are_shown_when_no_more_tokens_come() -> None:
    assert run("xEN", stop=["END"]) == (["x", "x", "x", "xEN"], None)


def test_the_stop_string_is_shown_when_asked_for_and_then_nothing_is_held_back() -> None:
    texts = ["x", "xE", "xEN", "xEND", "xEND"]
    assert run("xENDy", stop=["END"], include_stop_str_in_output=True) == (texts, "END")


def test_the_match_that_starts_first_wins() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    detokenizer = IncrementalDetokenizer(tokenizer, [], stop=["is", "capital of France"])
    texts = shown_texts(detokenizer, tokenizer.encode("The capital of France is Paris"))
    assert (texts[-1], detokenizer.stop_string) == ("The ", "capital of France")


def test_among_equal_starts_the_first_listed_wins() -> None:
    assert run("xab", stop=["a", "ab"])[1] == "a"
    tokenizer = tiny_tokenizers.byte_level()
    for stop in (["hel", "he"], ["he", "hel"]):
        detokenizer = IncrementalDetokenizer(tokenizer, [], stop=stop)
        shown_texts(detokenizer, tokenizer.encode("hello"))
        assert detokenizer.stop_string == stop[0]


def test_a_token_that_goes_on_behind_the_stop_string_is_cut() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    token_ids = tokenizer.encode("hello")
    assert len(token_ids) == 1
    for includes, final in ((False, "he"), (True, "hel")):
        detokenizer = IncrementalDetokenizer(tokenizer, [], stop=["l"], include_stop_str_in_output=includes)
        assert shown_texts(detokenizer, token_ids) == [final, final]


def test_tokens_after_the_stop_string_change_nothing() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    detokenizer = IncrementalDetokenizer(tokenizer, [], stop=["b"])
    for token_id in letters(tokenizer, "abab"):
        detokenizer.append(token_id)
    assert (detokenizer.text, detokenizer.finish(), detokenizer.stop_string) == ("a", "a", "b")


def test_no_stop_string_matches_before_min_tokens() -> None:
    assert run("ababab", stop=["b"], min_tokens=3) == (["a", "ab", "aba", "aba", "aba"], "b")
    assert run("ababab", stop=["b"], min_tokens=4) == (["a", "ab", "aba", "aba", "aba"], "b")
    assert run("ababab", stop=["ab"], min_tokens=5)[0][-1] == "abab"


def test_a_stop_string_may_span_min_tokens() -> None:
    assert run("xyz", stop=["xyz"], min_tokens=2) == (["", "", "", ""], "xyz")


def test_a_stop_string_does_not_match_across_the_end_of_the_prompt() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    detokenizer = IncrementalDetokenizer(tokenizer, letters(tokenizer, "EN"), stop=["END"])
    assert shown_texts(detokenizer, letters(tokenizer, "D"))[-1] == "D"


def test_a_stop_string_of_wide_characters_is_found_when_its_last_byte_comes() -> None:
    texts, stop_string = run("hi\U0001f600\u4f60!", stop=["\U0001f600\u4f60"])
    assert (texts[-1], stop_string) == ("hi", "\U0001f600\u4f60")


def test_a_stop_string_in_text_that_was_held_back_is_found_at_the_end() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    wrong_byte = tokenizer.backend.token_to_id("\u00ff")
    detokenizer = IncrementalDetokenizer(tokenizer, [], stop=["\ufffd"])
    assert shown_texts(detokenizer, [*letters(tokenizer, "a"), wrong_byte]) == ["a", "a", "a"]
    assert detokenizer.stop_string == "\ufffd"


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_an_answer_cut_within_a_character_ends_before_it(kind: str) -> None:
    tokenizer = tiny_tokenizers.KINDS[kind]()
    *ids, _ = tokenizer.encode("a\u4f60", add_special_tokens=False)
    detokenizer = IncrementalDetokenizer(tokenizer, [], stop=["\ufffd"])
    assert shown_texts(detokenizer, ids)[-2:] == ["a", "a"]
    assert detokenizer.stop_string is None


def test_special_tokens_are_shown_only_when_asked_for() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    token_ids = [*letters(tokenizer, "a"), tokenizer.eos_token_ids[0]]
    assert shown_texts(IncrementalDetokenizer(tokenizer, []), token_ids)[-1] == "a"
    shown = IncrementalDetokenizer(tokenizer, [], skip_special_tokens=False)
    assert shown_texts(shown, token_ids)[-1] == "a</s>"


def test_without_detokenizing_there_is_no_text() -> None:
    params = SamplingParams(detokenize=False)
    detokenizer = IncrementalDetokenizer.for_request(tiny_tokenizers.byte_level(), [], params)
    assert shown_texts(detokenizer, [300, 301, 99_999]) == ["", "", "", ""]
    assert detokenizer.stop_string is None


def test_a_request_brings_all_its_settings() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    params = SamplingParams(stop="b", include_stop_str_in_output=True, min_tokens=3, skip_special_tokens=False)
    detokenizer = IncrementalDetokenizer.for_request(tokenizer, [], params)
    token_ids = [*tokenizer.eos_token_ids, *letters(tokenizer, "babab")]
    assert shown_texts(detokenizer, token_ids)[-1] == "</s>bab"


@pytest.mark.parametrize("kind", tiny_tokenizers.KINDS)
def test_any_tokens_and_stop_strings_end_as_a_plain_search_says(kind: str) -> None:
    tokenizer = tiny_tokenizers.KINDS[kind]()
    ids = st.integers(0, tokenizer.vocab_size - 1)
    stops = st.lists(st.sampled_from(["e", "el", "he", " ", "\u4f60", "a f", "the capital", "\ufffd"]), max_size=3)

    @given(ids=st.lists(ids, max_size=40), prompt=st.lists(ids, max_size=4), stop=stops, includes=st.booleans())
    @settings(max_examples=150, deadline=None)
    def check(ids: list[int], prompt: list[int], stop: list[str], includes: bool) -> None:
        plain = shown_texts(IncrementalDetokenizer(tokenizer, prompt), ids)
        detokenizer = IncrementalDetokenizer(tokenizer, prompt, stop=stop, include_stop_str_in_output=includes)
        texts = shown_texts(detokenizer, ids)
        expected = plain[-1]
        for text in plain:
            matches = [(text.find(s), order) for order, s in enumerate(stop) if s in text]
            if matches:
                start, order = min(matches)
                expected = text[: start + (len(stop[order]) if includes else 0)]
                break
        assert_only_grows(plain)
        assert_only_grows(texts)
        assert texts[-1] == expected

    check()
