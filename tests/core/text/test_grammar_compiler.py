"""A grammar is compiled once, refused with a reason, and however hostile it is, it costs little."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from loramux.errors import RequestInvalid
from loramux.structured_outputs import StructuredOutputsParams
from loramux.text.grammar import GrammarMatcher
from loramux.text.grammar_compiler import LIMITS, MAX_CHECKED_GRAMMARS, GrammarCompiler
from tiny_tokenizers import byte_fallback, byte_level, unigram, word_level


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    tokenizer = byte_level()
    return GrammarCompiler(tokenizer, vocab_size=tokenizer.vocab_size, eos_token_ids=tokenizer.eos_token_ids)


def start(compiler: GrammarCompiler, **shape: Any) -> GrammarMatcher:
    return compiler.compile(StructuredOutputsParams(**shape)).matcher()


def allowed(matcher: GrammarMatcher) -> list[int]:
    bits: list[int] = np.flatnonzero(np.unpackbits(matcher.allowed_tokens(), bitorder="little")).tolist()
    return bits


def take(matcher: GrammarMatcher, text: str) -> bool:
    return all(matcher.take(token_id) for token_id in byte_level().encode(text, add_special_tokens=False))


# --- walking


@pytest.mark.parametrize(
    "choice", ['say "hi"', "a\nb\t", "naïve café", "😀", "back\\slash", "/x/", "\x00\x01", "日本\u2028", "start: a | b"]
)
def test_any_text_may_be_a_choice(compiler: GrammarCompiler, choice: str) -> None:
    matcher = start(compiler, choice=[choice, "other"])

    assert take(matcher, choice)
    assert matcher.is_complete


def test_copies_of_one_grammar_walk_apart(compiler: GrammarCompiler) -> None:
    one, other = start(compiler, choice=["ab", "cd"]), start(compiler, choice=["ab", "cd"])

    assert take(one, "a")

    assert take(other, "cd")
    assert other.is_complete
    assert not one.is_complete
    assert take(one, "b")


def test_end_tokens_are_allowed_where_the_text_may_end_and_only_there() -> None:
    tokenizer = byte_level()
    compiler = GrammarCompiler(tokenizer, vocab_size=tokenizer.vocab_size, eos_token_ids=(1, 2, 10**6))
    matcher = start(compiler, regex="ab?")
    assert not {1, 2} & set(allowed(matcher))

    take(matcher, "a")

    assert {1, 2} < set(allowed(matcher))
    take(matcher, "b")
    assert matcher.is_complete
    assert allowed(matcher) == [1, 2]


def test_special_tokens_are_no_text(compiler: GrammarCompiler) -> None:
    tokenizer = byte_level()
    assert not set(allowed(start(compiler, regex="(.|\n){10}"))) & tokenizer.special_token_ids


def test_a_token_that_was_not_allowed_is_an_error_for_good(compiler: GrammarCompiler) -> None:
    matcher = start(compiler, regex="ab")

    assert not take(matcher, "b")

    assert "doesn't satisfy the grammar" in str(matcher.error)
    assert "\n" not in str(matcher.error)
    assert allowed(matcher) == []
    assert not matcher.is_complete


@pytest.mark.parametrize("num_more", [-40, 0, 60])
def test_the_model_may_know_fewer_or_more_tokens_than_the_tokenizer(num_more: int) -> None:
    tokenizer = byte_fallback()
    compiler = GrammarCompiler(tokenizer, vocab_size=tokenizer.vocab_size + num_more, eos_token_ids=())

    assert max(allowed(start(compiler, regex="[a-z]+"))) < tokenizer.vocab_size


# --- ahead of a request


def test_what_was_checked_is_compiled_already(compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler.check(StructuredOutputsParams(regex="once"))
    compiler.check(StructuredOutputsParams(regex="once"))
    monkeypatch.setattr(compiler, "_start", None)  # from here on, nothing can be compiled

    assert take(start(compiler, regex="once"), "once")


def test_the_grammars_checked_last_are_kept_and_no_more(compiler: GrammarCompiler) -> None:
    for index in range(MAX_CHECKED_GRAMMARS + 5):
        compiler.check(StructuredOutputsParams(regex=f"a{index}"))

    assert len(compiler._checked) == MAX_CHECKED_GRAMMARS
    assert StructuredOutputsParams(regex="a0") not in compiler._checked


def test_what_one_request_has_used_up_is_there_for_the_next(compiler: GrammarCompiler) -> None:
    dear = {"regex": "x[ab]((a{1000}){1000}){1000}"}
    for _ in range(2):
        matcher = start(compiler, **dear)
        assert [bool(allowed(matcher)) and take(matcher, letter) for letter in "xaa"] == [True, True, False]
        assert "too many expressions" in str(matcher.error)


def test_many_threads_may_compile(compiler: GrammarCompiler) -> None:
    shapes = [StructuredOutputsParams(regex=f"thread{index % 5}[a-z]{{3}}") for index in range(60)]
    with ThreadPoolExecutor(8) as pool:
        grammars = list(pool.map(compiler.compile, shapes))

    for index, grammar in enumerate(grammars):
        assert take(grammar.matcher(), f"thread{index % 5}abc")


# --- refusals


def nested(depth: int) -> dict[str, object]:
    schema: dict[str, object] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unclosed": ({"regex": "a(b"}, "unclosed group"),
    "look-around": ({"regex": "(?=a)b"}, "look-around"),
    "backreference": ({"regex": r"(a)\1"}, "backreferences"),
    "parentheses": ({"regex": "(" * 30000 + "a" + ")" * 30000}, "regex"),
    "repetition": ({"regex": "((a{1000}){1000}){1000}"}, "too many expressions"),
    "product": ({"grammar": "start: A\nA: /.*a.{30}/ & /.*b.{30}/ & /.*c.{30}/ & ~/.*d.{30}/"}, "fuel exhausted"),
    "no JSON": ({"json": "{"}, "structured_outputs.json"),
    "no schema": ({"json": "[]"}, "schema"),
    "brackets": ({"json": "[" * 60000}, "recursion limit"),
    "deep schema": ({"json": nested(300)}, "recursion limit"),
    "loop": ({"json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}}, "no text can match it"),
    "endless": (
        {"json": {"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}}}},
        "",
    ),
    "remote": ({"json": {"$ref": "http://127.0.0.1:1/schema.json"}}, "does not fetch resources"),
    "file": ({"json": {"$ref": "file:///etc/passwd"}}, "does not fetch resources"),
    "product schema": (
        {"json": {"allOf": [{"anyOf": [{"pattern": f"a{i}{j}"} for j in range(8)]} for i in range(12)]}},
        "too large",
    ),
    "wide schema": (
        {"json": {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(1500)}}},
        "max is 2000",
    ),
    "unknown rule": ({"grammar": "start: missing"}, 'unknown name: "missing"'),
    "no start": ({"grammar": 'other: "a"'}, "start"),
    "nothing matches": ({"grammar": "start: A\nA: /a/ & /b/"}, "no text can match it"),
    "wide grammar": ({"grammar": 'start: "a"{1000000}'}, "Too many items"),
    "deep grammar": ({"grammar": "start: " + "(" * 20000 + '"a"' + ")" * 20000}, "too deeply nested"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_grammar_that_cannot_be_served_is_refused_with_the_reason(compiler: GrammarCompiler, name: str) -> None:
    shape, reason = REFUSED[name]
    with pytest.raises(RequestInvalid) as refused:
        compiler.compile(StructuredOutputsParams(**shape))
    assert refused.value.param == "structured_outputs"
    assert str(refused.value).startswith("structured_outputs.")
    assert reason in str(refused.value)
    assert len(str(refused.value)) < 400


HOSTILE: dict[str, dict[str, Any]] = {
    "catastrophic": {"regex": "(a+)+$"},
    "alternatives": {"regex": "(a|aa)*" * 20 + "b"},
    "exponential": {"regex": "(a|b)*a(a|b){30}"},
    "windows": {"regex": "(.*a.{20}){3}"},
    "counts": {"regex": "([a-z]{0,1000}[0-9]{0,1000}){0,1000}"},
    "late": {"regex": "x{1,8}(a{300000}|b)"},
    "ambiguous": {"grammar": 'start: a{1,5000}\na: b b b | "x"\nb: "x" | "xx" | a'},
    "left": {"grammar": 'start: start "a" | "a"'},
    "whitespace": {"json": {"x-guidance": {"whitespace_pattern": "(a|b)*a(a|b){30}"}, "type": "object"}},
    "items": {"json": {"type": "array", "minItems": 1000000, "items": {"type": "string"}}},
    "length": {"json": {"type": "string", "minLength": 10**6, "maxLength": 2 * 10**6}},
    "recursive": {"json": {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}}},
    "enum": {"json": {"enum": [f"v{index}" for index in range(5000)]}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_walks_within_its_limits_or_ends_in_an_error(compiler: GrammarCompiler, name: str) -> None:
    """llguidance counts its own work; a run-away step ends the matcher, and never the thread."""
    chooser = random.Random(0)
    matcher = start(compiler, **HOSTILE[name])
    for _ in range(100):
        tokens = allowed(matcher)
        if not tokens or matcher.is_complete:
            break
        matcher.take(chooser.choice(tokens))

    assert matcher.is_complete or matcher.error is not None or allowed(matcher)


def test_a_long_text_of_bounded_length_is_within_the_limits(compiler: GrammarCompiler) -> None:
    words = byte_level().encode("the capital of France, ", add_special_tokens=False)
    matcher = start(compiler, json={"type": "string", "maxLength": 100_000})
    assert take(matcher, '"')
    for token_id in words * 1000:
        matcher.allowed_tokens()
        assert matcher.take(token_id)

    assert take(matcher, '"')
    assert matcher.is_complete


def test_the_limits_are_below_the_librarys_own() -> None:
    own = type(LIMITS)()
    assert LIMITS.initial_lexer_fuel < own.initial_lexer_fuel
    assert LIMITS.step_lexer_fuel < own.step_lexer_fuel
    assert not LIMITS.verbose_errors


@pytest.mark.parametrize("tokenizer", [unigram, word_level])
def test_a_tokenizer_without_bytes_is_refused_for_this_alone(tokenizer: Any) -> None:
    compiler = GrammarCompiler(tokenizer(), vocab_size=tokenizer().vocab_size, eos_token_ids=(2,))
    with pytest.raises(RequestInvalid, match="cannot be used with this model: its tokenizer does not tell the bytes"):
        compiler.compile(StructuredOutputsParams(json=json.dumps({"type": "object"})))
