"""Pieces of text are never taken back, and joined they are what the tokenizer decodes of whole characters."""

from collections.abc import Sequence

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tiny_tokenizers
from loramux.text.decode_window import MAX_UNREAD, UNDECIDED, DecodeWindow
from loramux.text.tokenizer import Tokenizer

TEXTS = [
    *tiny_tokenizers.CORPUS,
    " leading and trailing ",
    "\n",
    "a\u0301\u0327 combining, \U0001f9d1\U0001f3ff\u200d\U0001f680!",
]


def pieces(
    tokenizer: Tokenizer, prompt: Sequence[int], output: Sequence[int], skip_special_tokens: bool = True
) -> list[str]:
    window = DecodeWindow(tokenizer, prompt, skip_special_tokens=skip_special_tokens)
    return [*(window.push(token_id) for token_id in output), window.flush()]


def byte_ids(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """The tokens of single bytes, in the two kinds of tokenizers that have them."""
    vocab = tokenizer.backend.get_vocab()
    if "<0x00>" in vocab:
        return [vocab[f"<0x{byte:02X}>"] for byte in data]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [vocab[chr(byte) if byte in printable else chr(256 + others.index(byte))] for byte in data]


def whole_characters(tokenizer: Tokenizer, token_ids: Sequence[int], whole: str) -> str:
    """What these tokens say of a text, when the last ones may be part of a character."""
    known = [tokenizer.decode(token_ids[: len(token_ids) - dropped]) for dropped in range(4)]
    known += [text.rstrip(UNDECIDED) for text in known]
    return max((text for text in known if whole.startswith(text)), key=len)


def without_begun_character(text: str, continued: Sequence[str]) -> str:
    """A text whose bytes end within a character is not made worse by one more byte, the lowest or highest possible."""
    is_begun = any(longer.count(UNDECIDED) <= text.count(UNDECIDED) for longer in continued)
    return text.removesuffix(UNDECIDED) if is_begun else text


def decode_whole_characters(tokenizer: Tokenizer, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
    continued = [[*token_ids, token_id] for token_id in byte_ids(tokenizer, b"\x80\xbf")]
    text, *longer = (tokenizer.decode(ids, skip_special_tokens) for ids in [token_ids, *continued])
    return without_begun_character(text, longer)


def whole_characters_of(data: bytes) -> str:
    text, *longer = ((data + more).decode(errors="replace") for more in (b"", b"\x80", b"\xbf"))
    return without_begun_character(text, longer)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", tiny_tokenizers.KINDS)
def test_text_comes_back_whole_wherever_prompt_and_output_part(kind: str, text: str) -> None:
    tokenizer = tiny_tokenizers.KINDS[kind]()
    token_ids = tokenizer.encode(text)
    whole = tokenizer.decode(token_ids)
    for cut in range(len(token_ids) + 1):
        prompt = whole_characters(tokenizer, token_ids[:cut], whole)
        assert prompt + "".join(pieces(tokenizer, token_ids[:cut], token_ids[cut:])) == whole


@given(ids=st.lists(st.integers(0, tiny_tokenizers.byte_level().vocab_size - 1), max_size=60), skips=st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_tokens_give_the_text_of_the_tokenizer_but_for_a_begun_character(ids: list[int], skips: bool) -> None:
    tokenizer = tiny_tokenizers.byte_level()
    assert "".join(pieces(tokenizer, [], ids, skips)) == decode_whole_characters(tokenizer, ids, skips)


@pytest.mark.parametrize("kind", ["unigram", "word_level"])
@pytest.mark.parametrize("skip_special_tokens", [True, False])
def test_any_tokens_without_bytes_give_the_text_of_the_tokenizer(kind: str, skip_special_tokens: bool) -> None:
    tokenizer = tiny_tokenizers.KINDS[kind]()
    ids = st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=60)

    @given(ids=ids)
    @settings(max_examples=150, deadline=None)
    def check(ids: list[int]) -> None:
        assert "".join(pieces(tokenizer, [], ids, skip_special_tokens)) == tokenizer.decode(ids, skip_special_tokens)

    check()


@given(data=st.lists(st.binary(min_size=1, max_size=40) | st.text(max_size=8).map(lambda text: text.encode())))
@settings(max_examples=200, deadline=None)
def test_bytes_of_any_kind_are_cut_where_python_cuts_them(data: list[bytes]) -> None:
    """Long broken runs included: what is given out early is not what a later byte could have completed."""
    tokenizer = tiny_tokenizers.byte_level()
    joined = b"".join(data)
    assert "".join(pieces(tokenizer, [], byte_ids(tokenizer, joined))) == whole_characters_of(joined)


@given(text=st.text(max_size=40))
@settings(max_examples=150, deadline=None)
def test_byte_fallback_gives_any_text_back(text: str) -> None:
    tokenizer = tiny_tokenizers.byte_fallback()
    ids = byte_ids(tokenizer, text.encode())
    assert "".join(pieces(tokenizer, tokenizer.encode("x"), ids)) == text


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_byte_fallback_agrees_with_the_tokenizer_where_no_byte_is_wrong(data: st.DataObject) -> None:
    tokenizer = tiny_tokenizers.byte_fallback()
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 257), max_size=30))
    for position in data.draw(st.lists(st.integers(0, len(ids)), max_size=4)):
        ids[position:position] = byte_ids(tokenizer, data.draw(st.text(min_size=1, max_size=3)).encode())
    expected = tokenizer.decode(ids)
    assume(UNDECIDED not in expected)  # one character was put into another
    assert "".join(pieces(tokenizer, [], ids)) == expected


@given(data=st.binary(max_size=80))
@settings(max_examples=200, deadline=None)
def test_byte_fallback_survives_any_bytes(data: bytes) -> None:
    tokenizer = tiny_tokenizers.byte_fallback()
    joined = "".join(pieces(tokenizer, tokenizer.encode("x"), byte_ids(tokenizer, data)))
    assert len(joined) <= 2 * len(data)


def test_a_wrong_byte_leaves_the_characters_before_it() -> None:
    """The tokenizer alone would turn the whole run to U+FFFD, after the first two characters were shown."""
    tokenizer = tiny_tokenizers.byte_fallback()
    ids = [*byte_ids(tokenizer, "\u4f60\u597d".encode() + b"\xff"), *tokenizer.encode("a", False)]
    assert tokenizer.decode(ids).count(UNDECIDED) == 7
    assert "".join(pieces(tokenizer, tokenizer.encode("x"), ids)) == "\u4f60\u597d\ufffd a"


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_a_character_comes_at_its_last_byte_and_not_in_parts(kind: str) -> None:
    tokenizer = tiny_tokenizers.KINDS[kind]()
    ids = byte_ids(tokenizer, "\U0001f600\u4f60".encode())
    assert pieces(tokenizer, [], ids) == ["", "", "", "\U0001f600", "", "", "\u4f60", ""]


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@pytest.mark.parametrize("num_bytes", [1, 2, 3])
def test_a_character_that_never_ends_is_left_out(kind: str, num_bytes: int) -> None:
    tokenizer = tiny_tokenizers.KINDS[kind]()
    output = byte_ids(tokenizer, b"ab" + "\U0001f600".encode()[:num_bytes])
    assert pieces(tokenizer, [], output) == ["a", "b", *[""] * num_bytes, ""]


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_a_character_that_the_prompt_began_and_nobody_ends_is_left_out(kind: str) -> None:
    tokenizer = tiny_tokenizers.KINDS[kind]()
    prompt, output = byte_ids(tokenizer, b"a\xe4"), byte_ids(tokenizer, b"\xbd")
    assert pieces(tokenizer, prompt, output) == ["", ""]


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@pytest.mark.parametrize("data", [b"\xef\xbf\xbd", b"\xff", b"\x80", b"\xed\xa0"])
def test_what_no_byte_could_complete_stays_marked_at_the_end(kind: str, data: bytes) -> None:
    """The model may write U+FFFD itself."""
    tokenizer = tiny_tokenizers.KINDS[kind]()
    joined = "".join(pieces(tokenizer, [], byte_ids(tokenizer, b"a" + data)))
    assert joined == "a" + data.decode(errors="replace")


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_a_wrong_byte_stays_marked_before_a_character_that_never_ends(kind: str) -> None:
    tokenizer = tiny_tokenizers.KINDS[kind]()
    assert "".join(pieces(tokenizer, [], byte_ids(tokenizer, b"a\xff\xe4\xbd"))) == "a\ufffd"


def test_of_a_token_with_parts_of_two_characters_the_ended_one_is_given() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    both = tokenizer.backend.token_to_id("\u00a5\u00e6")
    assert tokenizer.token_bytes(both) == b"\xa5\xe6"
    output = [*byte_ids(tokenizer, b"a\xe5\xa5"), both]
    assert "".join(pieces(tokenizer, [], output)) == "a\u5965"
    assert "".join(pieces(tokenizer, [], [*output, *byte_ids(tokenizer, b"\x97")])) == "a\u5965"


def test_a_character_that_never_ends_is_left_out_behind_a_token_of_unknown_bytes() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    unknown = tokenizer.backend.token_to_id("\u00a0\u00a0")
    assert tokenizer.token_bytes(unknown) is None
    assert "".join(pieces(tokenizer, [], [unknown, *byte_ids(tokenizer, b"\xe4")])) == "\u00a0\u00a0"


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@pytest.mark.parametrize(("byte", "num_begun"), [(b"\xff", 0), (b"\x80", 0), (b"\xf0", 1), (b"\xe4", 1)])
def test_an_endless_broken_run_is_not_held_back_without_bound(kind: str, byte: bytes, num_begun: int) -> None:
    tokenizer = tiny_tokenizers.KINDS[kind]()
    window = DecodeWindow(tokenizer, [], skip_special_tokens=True)
    token_id = byte_ids(tokenizer, byte)[0]
    num_shown = 0
    for num_tokens in range(1, 1001):
        num_shown += len(window.push(token_id))
        assert num_tokens - num_shown <= MAX_UNREAD
    assert num_shown + len(window.flush()) == 1000 - num_begun


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_an_output_completes_the_character_that_the_prompt_began(kind: str) -> None:
    tokenizer = tiny_tokenizers.KINDS[kind]()
    ids = byte_ids(tokenizer, "a\u4f60!".encode())
    assert "".join(pieces(tokenizer, ids[:2], ids[2:])) == "\u4f60!"


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_an_output_does_not_repeat_what_the_prompt_left_broken(kind: str) -> None:
    tokenizer = tiny_tokenizers.KINDS[kind]()
    prompt, output = byte_ids(tokenizer, b"a\xe4"), tokenizer.encode("he", add_special_tokens=False)
    assert "".join(pieces(tokenizer, prompt, output)).strip() == "he"
    assert "".join(pieces(tokenizer, prompt, [])) == ""


@pytest.mark.parametrize("kind", ["byte_fallback", "unigram"])
def test_the_first_word_keeps_its_space_behind_a_prompt_and_loses_it_without(kind: str) -> None:
    tokenizer = tiny_tokenizers.KINDS[kind]()
    output = tokenizer.encode("hello", add_special_tokens=False)
    prompt = tokenizer.encode("The", add_special_tokens=False)
    bos = tokenizer.backend.token_to_id("<s>")
    assert "".join(pieces(tokenizer, prompt, output)) == " hello"
    assert "".join(pieces(tokenizer, [*prompt, *[bos] * 20], output)) == " hello"
    assert "".join(pieces(tokenizer, [bos], output)) == "hello"


def test_skipped_special_tokens_leave_no_trace() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    special = tokenizer.backend.token_to_id("<|turn|>")
    first, *rest = byte_ids(tokenizer, "\u4f60".encode())
    assert "".join(pieces(tokenizer, [], [first, special, *rest])) == "\u4f60"
    assert "".join(pieces(tokenizer, [], [special], skip_special_tokens=False)) == "<|turn|>"


def test_ids_beyond_the_vocabulary_give_no_text() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    a = byte_ids(tokenizer, b"a")
    assert "".join(pieces(tokenizer, a, [*([99_999] * 50), *a, 99_999])) == "a"
