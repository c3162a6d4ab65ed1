"""Stop strings are found as a plain search would find them, and what may become one is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux.text.stop_strings import StopStrings

few_letters = st.text("ab", min_size=1, max_size=5)


@given(stop=st.lists(few_letters, max_size=4), text=st.text("ab", max_size=20), ends_after=st.integers(0, 20))
def test_the_match_that_starts_first_wins_then_the_first_listed(stop: list[str], text: str, ends_after: int) -> None:
    found = StopStrings(stop).find(text, ends_after=ends_after)
    matches = [
        (start, order)
        for order, stop_string in enumerate(stop)
        for start in range(len(text))
        if text.startswith(stop_string, start) and start + len(stop_string) > ends_after
    ]
    expected = min(matches, default=None)
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert (found.start, found.stop_string) == (expected[0], stop[expected[1]])
        assert text[found.start : found.end] == found.stop_string


@given(stop=st.lists(few_letters, max_size=4), pieces=st.lists(st.text("ab", max_size=4), max_size=8))
def test_open_characters_are_the_longest_end_that_starts_a_stop_string(stop: list[str], pieces: list[str]) -> None:
    strings = StopStrings(stop)
    text = ""
    for piece in pieces:
        text += piece
        starts = {stop_string[:length] for stop_string in stop for length in range(1, len(stop_string))}
        assert strings.follow(piece) == max((len(start) for start in starts if text.endswith(start)), default=0)


@pytest.mark.parametrize(("text", "num_open"), [("a" * 9_999 + "b", 0), ("b" + "a" * 5_000, 5_000)])
def test_a_very_long_stop_string_is_followed_letter_by_letter(text: str, num_open: int) -> None:
    assert StopStrings(["a" * 10_000]).follow(text) == num_open
