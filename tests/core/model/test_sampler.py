"""The sampler: every row by its own rules and its own random numbers, equal to the plain way of doing it."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from loramux.model.logit_edits import apply_edits
from loramux.model.sampler import SampledToken, Sampler, SamplingRow, Unchosen, prompt_logprobs
from loramux.sampling_params import SamplingParams

VOCAB = 300  # more than the first tier of top-p candidates


class FixedUniform(random.Random):
    """Gives one number forever, so that the inverse of the distribution can be read off."""

    def __init__(self, number: float) -> None:
        super().__init__(0)
        self.number = number

    def random(self) -> float:
        return self.number


def make_row(
    *,
    prompt: Sequence[int] = (1, 2),
    output: Sequence[int] = (),
    seed: int = 0,
    uniform: float | None = None,
    eos: Sequence[int] = (),
    bad_words: Sequence[tuple[int, ...]] = (),
    **params: Any,
) -> SamplingRow:
    generator = random.Random(seed) if uniform is None else FixedUniform(uniform)
    return SamplingRow(SamplingParams(**params), list(prompt), list(output), generator, tuple(eos), bad_words)


def make_logits(num_rows: int, seed: int = 0, scale: float = 3.0, vocab: int = VOCAB) -> torch.Tensor:
    return torch.randn(num_rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def sample(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> list[SampledToken]:
    tokens = Sampler().sample(logits, rows)
    chosen = [token for token in tokens if isinstance(token, SampledToken)]
    assert len(chosen) == len(tokens)
    return chosen


def sample_ids(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> list[int]:
    return [token.token_id for token in sample(logits, rows)]


def reachable(logits: torch.Tensor, num_points: int = 4000, **params: Any) -> set[int]:
    """All tokens that a fine comb of uniform numbers reaches."""
    rows = [make_row(uniform=(point + 0.5) / num_points, **params) for point in range(num_points)]
    return set(sample_ids(logits.expand(num_points, -1), rows))


def test_greedy_takes_the_largest_logit_and_the_first_among_equals() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 2.0, 1.0]])
    assert sample(logits, [make_row(temperature=0), make_row(temperature=0)]) == [SampledToken(1), SampledToken(0)]


def test_greedy_draws_no_random_number() -> None:
    row = make_row(temperature=0, repetition_penalty=1.5, seed=7)
    sample(make_logits(1), [row])
    assert row.random.random() == random.Random(7).random()


def test_a_sampled_token_draws_exactly_one() -> None:
    row = make_row(top_k=5, top_p=0.5, min_p=0.1, logprobs=3, seed=7)
    sample(make_logits(1), [row])
    reference = random.Random(7)
    reference.random()
    assert row.random.random() == reference.random()


def test_the_callers_logits_are_left_alone() -> None:
    logits = make_logits(3)
    before = logits.clone()
    sample(logits, [make_row(temperature=0, logit_bias={1: 5}), make_row(top_k=2, logprobs=1), make_row(min_p=0.5)])
    assert torch.equal(logits, before)


def test_no_rows_give_no_tokens() -> None:
    assert Sampler().sample(torch.empty(0, 10), []) == []


@pytest.mark.parametrize(
    ("uniform", "token_id"), [(0.0, 1), (0.2499, 1), (0.25, 2), (0.7499, 2), (0.75, 4), (1 - 2**-53, 4)]
)
def test_drawing_inverts_the_cumulative_distribution(uniform: float, token_id: int) -> None:
    """Probabilities 0, 1/4, 1/2, 0, 1/4, 0: the tokens of probability 0 are never drawn, at no edge."""
    logits = torch.tensor([[0, 0.25, 0.5, 0, 0.25, 0]]).log()
    assert sample_ids(logits, [make_row(uniform=uniform)]) == [token_id]


@given(seed=st.integers(0, 2**31), uniform=st.floats(0, 1, exclude_max=True), temperature=st.floats(1e-5, 2))
@settings(max_examples=60, deadline=None)
def test_drawing_equals_a_plain_walk_over_the_probabilities(seed: int, uniform: float, temperature: float) -> None:
    logits = make_logits(1, seed, vocab=40)
    probs = torch.softmax((logits[0] - logits[0].max()) / temperature, dim=-1).double()
    target, cumulative, expected = uniform * probs.sum().item(), 0.0, -1
    for token_id, prob in enumerate(probs.tolist()):
        cumulative += prob
        if cumulative > target:
            expected = token_id
            break
    drawn = sample_ids(logits, [make_row(uniform=uniform, temperature=temperature)])[0]
    assert probs[drawn] > 0
    assert drawn == expected or abs(cumulative - target) < 1e-12


def test_the_smallest_temperature_that_samples_neither_overflows_nor_changes_the_best() -> None:
    logits = make_logits(1, scale=1000.0)
    assert sample_ids(logits, [make_row(temperature=1e-5, uniform=0.5)]) == [int(logits.argmax())]


def test_a_seed_gives_the_same_tokens_again() -> None:
    logits = make_logits(1)
    first, second = make_row(seed=5), make_row(seed=5)
    assert [sample_ids(logits, [first]) for _ in range(20)] == [sample_ids(logits, [second]) for _ in range(20)]


params_strategy = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.0]),
        "top_k": st.sampled_from([0, -1, 1, 5, 290, 1000]),
        "top_p": st.sampled_from([1.0, 0.01, 0.5, 0.95, 0.999999]),
        "min_p": st.sampled_from([0.0, 0.05, 1.0]),
        "repetition_penalty": st.sampled_from([1.0, 0.5, 1.7]),
        "presence_penalty": st.sampled_from([0.0, -1.0, 2.0]),
        "frequency_penalty": st.sampled_from([0.0, 0.5]),
        "logit_bias": st.sampled_from([None, {3: 5.0, 299: -100.0}]),
        "min_tokens": st.sampled_from([0, 10]),
        "logprobs": st.sampled_from([None, 0, 1, 5]),
        "allowed_token_ids": st.sampled_from([None, [3, 17], range(100, 300)]),
    }
)


@given(all_params=st.lists(params_strategy, min_size=2, max_size=6), seed=st.integers(0, 1000), coarse=st.booleans())
@settings(max_examples=60, deadline=None)
def test_neighbours_do_not_change_a_row(all_params: list[dict[str, Any]], seed: int, coarse: bool) -> None:
    """Coarse logits are full of ties, as those of a bfloat16 model are."""
    logits = make_logits(len(all_params), seed)
    logits = logits.round() if coarse else logits

    def rows() -> list[SamplingRow]:
        return [
            make_row(prompt=(1, 5, 9), output=(5, 7, 7), seed=index, eos=(0,), **params)
            for index, params in enumerate(all_params)
        ]

    alone = [sample(logits[index : index + 1], [row])[0] for index, row in enumerate(rows())]
    assert sample(logits, rows()) == alone


@pytest.mark.parametrize("vocab", (6400, 6437))
def test_neighbours_do_not_change_a_row_of_a_wide_vocabulary(vocab: int) -> None:
    """A row alone and one among others that keep more are cut and summed in different ways where all is wide."""
    cuts: list[dict[str, Any]] = [{}, {"top_k": 7}, {"top_p": 0.6}, {"min_p": 0.3}, {"top_k": 40, "top_p": 0.9}]
    logits = make_logits(40, vocab=vocab)

    def rows() -> list[SamplingRow]:
        return [make_row(seed=index, **cuts[index % len(cuts)]) for index in range(len(logits))]

    alone = [sample(logits[index : index + 1], [row])[0] for index, row in enumerate(rows())]
    assert sample(logits, rows()) == alone


@pytest.mark.parametrize("uniform", (0.0, 0.3, 0.77, 1 - 2**-53))
def test_drawing_from_a_wide_vocabulary_equals_a_plain_walk_over_what_the_cuts_keep(uniform: float) -> None:
    logits = make_logits(1, scale=1.0, vocab=6437)
    scores = logits / 0.9
    for warper in (TopKLogitsWarper(500), TopPLogitsWarper(0.8), MinPLogitsWarper(0.1)):
        scores = warper(torch.empty(1, 0, dtype=torch.long), scores)
    probs = torch.softmax(scores[0], dim=-1).double()
    expected = int(torch.searchsorted(probs.cumsum(0), uniform * probs.sum(), right=True).clamp(max=vocab_end(probs)))
    row = make_row(temperature=0.9, top_k=500, top_p=0.8, min_p=0.1, uniform=uniform)
    assert sample_ids(logits, [row]) == [expected]


def vocab_end(probs: torch.Tensor) -> int:
    """The last token that can be drawn."""
    return int(probs.nonzero()[-1])


def kept_by(processor: Any, logits: torch.Tensor) -> set[int]:
    scores = processor(torch.empty(1, 0, dtype=torch.long), logits)
    return set(torch.isfinite(scores[0]).nonzero().flatten().tolist())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("top_k", [1, 2, 17])
def test_top_k_keeps_what_transformers_keeps(top_k: int, seed: int) -> None:
    logits = make_logits(1, seed, scale=0.1)
    assert reachable(logits, top_k=top_k) == kept_by(TopKLogitsWarper(top_k), logits)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("top_p", [0.001, 0.3, 0.9, 0.97])
def test_top_p_keeps_what_transformers_keeps(top_p: float, seed: int) -> None:
    """At a small scale the nucleus is wider than the first tier of candidates."""
    logits = make_logits(1, seed, scale=0.1)
    assert reachable(logits, top_p=top_p) == kept_by(TopPLogitsWarper(top_p), logits)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("min_p", [0.05, 0.5, 1.0])
def test_min_p_keeps_what_transformers_keeps(min_p: float, seed: int) -> None:
    logits = make_logits(1, seed, scale=0.5)
    assert reachable(logits, min_p=min_p) == kept_by(MinPLogitsWarper(min_p), logits)


def test_the_cuts_work_together_in_the_order_of_transformers() -> None:
    logits = make_logits(1, scale=0.5)
    expected = logits / 0.7
    for warper in (TopKLogitsWarper(40), TopPLogitsWarper(0.8), MinPLogitsWarper(0.3)):
        expected = warper(torch.empty(1, 0, dtype=torch.long), expected)
    kept = set(torch.isfinite(expected[0]).nonzero().flatten().tolist())
    assert reachable(logits, temperature=0.7, top_k=40, top_p=0.8, min_p=0.3) == kept


def test_top_k_and_top_p_keep_all_ties_at_the_edge() -> None:
    logits = torch.tensor([[1.0, 2.0, 1.0, 0.0, 1.0]])
    assert reachable(logits, top_k=2) == reachable(logits, top_p=0.6) == {0, 1, 2, 4}


def edited(logits: torch.Tensor, row: SamplingRow) -> torch.Tensor:
    scores = logits.clone()
    apply_edits(scores, [row])
    return scores


@pytest.mark.parametrize("penalty", [0.5, 1.3, 5.0])
def test_the_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    logits = make_logits(1)
    prompt, output = [1, 2, 2, 250], [7, 7, 1]
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + output]), logits)
    row = make_row(prompt=prompt, output=output, repetition_penalty=penalty)
    assert torch.equal(edited(logits, row), expected)


def test_presence_and_frequency_penalties_look_at_the_output_only() -> None:
    logits = torch.zeros(1, 6)
    row = make_row(prompt=[0, 1], output=[1, 2, 2, 2], presence_penalty=1.0, frequency_penalty=0.25)
    assert edited(logits, row).tolist() == [[0, -1.25, -1.75, 0, 0, 0]]


def test_a_kept_row_counts_the_tokens_added_since_the_last_step() -> None:
    output = [2]
    row = SamplingRow(SamplingParams(frequency_penalty=1.0, repetition_penalty=2.0), [0], output, random.Random(0))
    assert edited(torch.ones(1, 5), row).tolist() == [[0.5, 1, -0.5, 1, 1]]
    output += [2, 3]
    assert edited(torch.ones(1, 5), row).tolist() == [[0.5, 1, -1.5, -0.5, 1]]


def test_bias_comes_before_the_penalties() -> None:
    row = make_row(prompt=[0], logit_bias={0: 3.0}, repetition_penalty=2.0)
    assert edited(torch.ones(1, 2), row).tolist() == [[2.0, 1.0]]


def test_bias_changes_the_greedy_choice() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    assert sample_ids(logits, [make_row(temperature=0, logit_bias={2: 2.5})]) == [2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_min_tokens_forbids_every_token_that_would_end_the_text(temperature: float) -> None:
    logits = torch.tensor([[9.0, 8.0, 7.0, -50.0]])
    early = make_row(output=[3], min_tokens=2, eos=(0, 1), stop_token_ids=[2, 99], temperature=temperature)
    assert sample_ids(logits, [early]) == [3]
    late = make_row(output=[3, 3], min_tokens=2, eos=(0, 1), stop_token_ids=[2], temperature=0)
    assert sample_ids(logits, [late]) == [0]


def test_tokens_beyond_the_head_are_passed_over() -> None:
    row = make_row(prompt=[400], output=[500], repetition_penalty=2.0, frequency_penalty=1.0, logit_bias={600: 1.0})
    logits = make_logits(1)
    assert torch.equal(edited(logits, row), logits)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("params", [{"temperature": 0}, {"top_p": 0.9, "top_k": 3, "min_p": 0.1, "logprobs": 2}])
def test_a_row_without_usable_logits_fails_alone(poison: float, params: dict[str, Any]) -> None:
    logits = make_logits(3)
    expected = sample(logits, [make_row(seed=index, **params) for index in range(3)])
    logits[1, 17] = poison
    tokens = Sampler().sample(logits, [make_row(seed=index, **params) for index in range(3)])
    assert tokens == [expected[0], Unchosen.NO_NUMBERS, expected[2]]


@pytest.mark.parametrize("params", [{"temperature": 0}, {}])
def test_a_row_with_every_token_forbidden_fails_alone(params: dict[str, Any]) -> None:
    forbidden = make_row(min_tokens=5, stop_token_ids=range(VOCAB), **params)
    nothing, token = Sampler().sample(make_logits(2), [forbidden, make_row(temperature=0)])
    assert nothing is Unchosen.NOTHING_LEFT
    assert isinstance(token, SampledToken)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_allowed_tokens_are_chosen(temperature: float) -> None:
    rows = [make_row(seed=seed, temperature=temperature, allowed_token_ids=[3, 17, 299]) for seed in range(40)]
    neighbours = [make_row(seed=seed, temperature=temperature) for seed in range(40)]
    logits = make_logits(40)

    tokens = sample_ids(torch.cat([logits, logits]), rows + neighbours)

    assert set(tokens[:40]) == {3, 17, 299}
    assert tokens[40:] == sample_ids(logits, [make_row(seed=seed, temperature=temperature) for seed in range(40)])


def test_the_best_allowed_token_is_the_greedy_one() -> None:
    logits = make_logits(1)
    allowed = list(range(5, 280, 7))
    row = make_row(temperature=0, allowed_token_ids=allowed)
    assert sample_ids(logits, [row]) == [max(allowed, key=lambda token_id: float(logits[0, token_id]))]


def test_allowed_tokens_need_not_fill_the_vocabulary_nor_lie_in_it() -> None:
    logits = make_logits(1, vocab=13)
    assert sample_ids(logits, [make_row(temperature=0, allowed_token_ids=[2, 90])]) == [2]
    nothing = Sampler().sample(logits, [make_row(temperature=0, allowed_token_ids=[90])])
    assert nothing == [Unchosen.NOTHING_LEFT]


@pytest.mark.parametrize(
    ("output", "banned"),
    [((), {5}), ((4,), {5, 7}), ((4, 7), {5, 9}), ((7, 4), {5, 7}), ((4, 7, 9), {5}), ((7,), {5})],
)
def test_the_last_token_of_a_bad_word_is_banned_where_the_others_stand_before_it(
    output: tuple[int, ...], banned: set[int]
) -> None:
    row = make_row(prompt=(4, 7), output=output, bad_words=((5,), (4, 7), (4, 7, 9)))
    logits = make_logits(1)
    apply_edits(logits, [row])
    assert set(torch.nonzero(logits[0].isneginf()).flatten().tolist()) == banned


def test_a_row_is_not_repaired_by_forbidding_the_token_that_is_broken() -> None:
    logits = make_logits(1)
    logits[0, 3] = float("nan")
    assert Sampler().sample(logits, [make_row(min_tokens=5, eos=(3,), temperature=0, logprobs=1)]) == [
        Unchosen.NO_NUMBERS
    ]


def test_logprobs_are_those_of_the_raw_logits_with_rank_and_rivals() -> None:
    logits = make_logits(1)
    row = make_row(temperature=0, logit_bias={11: 100.0}, logprobs=3)
    token = sample(logits, [row])[0]
    reference = torch.log_softmax(logits[0].double(), dim=-1)
    best = reference.topk(3)
    assert token.token_id == 11
    assert token.logprob == pytest.approx(reference[11].item(), abs=1e-5)
    assert token.rank == int((reference > reference[11]).sum()) + 1
    assert [rival.token_id for rival in token.top] == best.indices.tolist()
    assert [rival.rank for rival in token.top] == [1, 2, 3]
    assert [rival.logprob for rival in token.top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_rows_that_did_not_ask_get_no_logprobs() -> None:
    asked, zero, none = sample(make_logits(3), [make_row(logprobs=2), make_row(logprobs=0), make_row()])
    assert (len(asked.top), len(zero.top), len(none.top)) == (2, 0, 0)
    assert zero.logprob is not None
    assert none.logprob is None


def test_more_logprobs_than_tokens_gives_all_of_them() -> None:
    assert len(sample(torch.zeros(1, 4), [make_row(logprobs=10)])[0].top) == 4


def test_equal_tokens_share_a_rank() -> None:
    token = sample(torch.tensor([[1.0, 2.0, 2.0, 0.0]]), [make_row(temperature=0, logprobs=4)])[0]
    assert [(rival.token_id, rival.rank) for rival in token.top] == [(1, 1), (2, 1), (0, 3), (3, 4)]
    assert token.rank == 1


def test_prompt_logprobs_look_up_the_tokens_that_follow() -> None:
    logits = make_logits(200)  # more than one chunk
    next_token_ids = [index % VOCAB for index in range(200)]
    found = prompt_logprobs(logits, next_token_ids, 2)
    reference = torch.log_softmax(logits, dim=-1)
    assert [token.token_id for token in found if token] == next_token_ids
    assert [token.logprob for token in found if token] == pytest.approx(
        reference[torch.arange(200), torch.tensor(next_token_ids)].tolist(), abs=1e-5
    )
    assert {len(token.top) for token in found if token} == {2}


def test_a_bad_prompt_position_does_not_hide_the_others() -> None:
    logits = make_logits(3)
    logits[1, 0] = float("nan")
    assert [token is None for token in prompt_logprobs(logits, [1, 2, 3], 1)] == [False, True, False]


def test_a_mismatch_of_rows_and_sequences_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="2 rows of logits for 1"):
        Sampler().sample(make_logits(2), [make_row()])
    with pytest.raises(ValueError, match="2 rows of logits for 1"):
        prompt_logprobs(make_logits(2), [1], 1)
