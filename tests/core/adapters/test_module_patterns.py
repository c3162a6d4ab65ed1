"""ModulePatterns: PEFT's rule for pattern keys, without a matcher that a key can stall."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loramux.adapters.module_patterns import MAX_KEYS, ModulePatterns, PatternRefused

MODULES = [
    f"model.layers.{layer}.{part}"
    for layer in (0, 1, 3, 10, 13)
    for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.experts.7.down_proj")
] + ["lm_head", "model.embed_tokens", "q_proj"]


def peft_winners(keys: list[str]) -> dict[str, str]:
    from peft.utils.other import get_pattern_key

    found = {module: get_pattern_key(keys, module) for module in MODULES}
    return {module: key for module, key in found.items() if key in keys}


@pytest.mark.parametrize(
    "keys",
    [
        ["q_proj", "layers.1.self_attn.q_proj"],
        ["layers.1.self_attn.q_proj", "q_proj"],
        ["model.layers.3.mlp.up_proj", "lm_head", "proj"],
        [r".*\.layers\.3\..*(q_proj|k_proj)$", "q_proj"],
        ["k_proj", r".*\.layers\.3\..*(q_proj|k_proj)$"],
        [r"^model\.layers\.[0-9]+\.mlp\..*"],
        [r"layers\.\d\.self_attn\.(?:q|k)_proj"],
        [r"layers\.(0|1)\..*"],
        [r"layers\.[1-2][0-9]\..+", r"layers.1.*"],
        ["q_proj|k_proj", r"^lm_head$"],
        [r".*(self_attn.(q_proj|k_proj)|mlp\.experts\.[0-9]+\.down_proj)"],
        ["^q_proj", r".*?up_proj"],
        ["(|model.)embed_tokens", "(()|x)lm_head"],
        [r"self\_attn\.k\_proj"],
    ],
)
def test_the_first_matching_key_wins_as_in_peft(keys: list[str]) -> None:
    assert ModulePatterns.compile(keys).winning_keys(MODULES) == peft_winners(keys)


_ATOMS = st.sampled_from(
    [
        "model",
        "layers",
        "q_proj",
        "k",
        "_",
        "0",
        "1",
        r"\.",
        ".",
        ".*",
        ".+",
        r"\d",
        r"\d+",
        "[0-9]+",
        "[1-3]",
        "^",
        "$",
    ]
)
_KEYS = st.recursive(
    st.lists(_ATOMS, min_size=1, max_size=5).map("".join),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(lambda parts: "(" + "|".join(parts) + ")"),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(_KEYS, min_size=1, max_size=3).map("".join), min_size=1, max_size=3, unique=True))
def test_every_key_of_the_grammar_means_what_it_means_to_peft(keys: list[str]) -> None:
    # A key of plain characters is a suffix for us, where PEFT reads each dot as any character: not compared here.
    keys = [key if set(key) & set("^$*+[]()\\|") else f"({key})" for key in keys]
    keys = [key for key in keys if len(key) <= 256]
    assert ModulePatterns.compile(keys).winning_keys(MODULES) == peft_winners(keys)


@pytest.mark.parametrize(
    "key",
    [
        "(a+)+X", "a*", "a?", "a{2}", "(q|k)*", "(q|k)+", "^*", "(", ")", "a)", "(a", "", "[a-z]+", "[^.]+", "[9-0]",
        r"\w+", r"\1", "(?i)q_proj", "(?=q)", "(?P<n>q)", r"\d*", ".**", ".*+", "q_proj\\",
        "é", "x" * 257, "(" * 9 + "a" + ")" * 9,
    ],
)  # fmt: skip
def test_keys_outside_the_grammar_are_refused(key: str) -> None:
    with pytest.raises(PatternRefused) as caught:
        ModulePatterns.compile(["q_proj", key])
    assert caught.value.key == key


def test_the_number_of_keys_is_bounded() -> None:
    keys = [f"layers.{layer}.q_proj" for layer in range(MAX_KEYS)]
    assert ModulePatterns.compile(keys).winning_keys(["layers.511.q_proj"]) == {"layers.511.q_proj": keys[511]}
    with pytest.raises(PatternRefused):
        ModulePatterns.compile([*keys, "one.more"])


def test_more_work_than_about_a_second_is_refused_before_it_starts() -> None:
    patterns = ModulePatterns.compile([f"(.*a{place})|.*b.*" for place in range(MAX_KEYS)])
    with pytest.raises(PatternRefused):
        patterns.winning_keys([f"layers.{layer}.q_proj" for layer in range(1000)])


def test_what_stalls_a_backtracking_matcher_is_linear_here() -> None:
    patterns = ModulePatterns.compile(["^" + ".*a" * 80 + "X$"])
    assert patterns.num_steps < 200
    assert patterns.winning_keys(["a" * 400]) == {}
