"""SamplingParams accepts what vLLM's does and refuses the rest by field, value and range."""

import dataclasses
import subprocess
import sys
from typing import Any

import pytest

from loramux.errors import RequestInvalid
from loramux.sampling_params import SamplingParams


def test_defaults_are_those_of_the_reference() -> None:
    params = SamplingParams()
    assert (params.n, params.temperature, params.top_p, params.top_k, params.min_p) == (1, 1.0, 1.0, 0, 0.0)
    assert (params.max_tokens, params.min_tokens, params.stop_strings, params.stop_token_ids) == (16, 0, (), ())
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (0.0, 0.0, 1.0)
    assert (params.seed, params.logprobs, params.prompt_logprobs, params.logit_bias) == (None, None, None, None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("temperature", value) for value in (-0.1, 2.1, float("nan"), float("inf"), "1", True, None, 10**400)],
        *[("top_p", value) for value in (0, -0.1, 1.01, float("nan"), False)],
        *[("top_k", value) for value in (-2, 1.5, True, None)],
        *[("min_p", value) for value in (-0.1, 1.1)],
        *[("presence_penalty", value) for value in (-2.1, 2.1)],
        *[("frequency_penalty", value) for value in (-2.1, 2.1)],
        *[("repetition_penalty", value) for value in (0, -1.0, float("inf"))],
        *[("n", value) for value in (0, -1, True, 1.0)],
        *[("max_tokens", value) for value in (0, -5, 1.0, True)],
        *[("min_tokens", value) for value in (-1, 17, True)],
        *[("logprobs", value) for value in (-1, 1001, True)],
        *[("prompt_logprobs", value) for value in (-1, 1001, True)],
        *[("stop", value) for value in ("", ["a", ""], [1], 3)],
        *[("stop_token_ids", value) for value in ([-1], [True], ["1"], 4, "12")],
        *[("logit_bias", value) for value in ({-1: 1.0}, {"5": 1.0}, {5: 101}, {5: float("nan")}, {True: 1}, [5])],
        *[("allowed_token_ids", value) for value in ([], (), [-1], [True], ["1"], 4, "12")],
        *[("bad_words", value) for value in ("", "x", ["a", ""], [1], 3, ["a" * 257], ["a"] * 65, ["\ud800"])],
        *[("structured_outputs", value) for value in ({"regex": "a"}, "a")],
        *[("seed", value) for value in (2**63, -(2**63) - 1, 1.0, True)],
        *[(field, 1) for field in ("ignore_eos", "detokenize", "skip_special_tokens", "include_stop_str_in_output")],
    ],
)
def test_a_refusal_names_the_field_and_the_range(field: str, value: Any) -> None:
    with pytest.raises(RequestInvalid, match=rf"^{field} must be .+, got ") as refused:
        SamplingParams(**{field: value})
    assert refused.value.param == field


def test_a_refusal_shows_the_value() -> None:
    with pytest.raises(RequestInvalid, match=r"^temperature must be a number from 0 to 2, got 2\.5$"):
        SamplingParams(temperature=2.5)


def test_a_refusal_shortens_a_huge_value() -> None:
    with pytest.raises(RequestInvalid) as refused:
        SamplingParams(stop_token_ids="9" * 10_000)  # type: ignore[arg-type]  # what a careless client sends
    assert len(str(refused.value)) < 250


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("temperature", value) for value in (0, 2, 1e-9)],
        *[("top_p", value) for value in (1, 1e-9)],
        *[("top_k", value) for value in (-1, 0, 10**9)],
        *[("min_p", value) for value in (0, 1)],
        *[("repetition_penalty", value) for value in (1e-6, 5)],
        *[("seed", value) for value in (-(2**63), 2**63 - 1, 0)],
        *[("max_tokens", value) for value in (None, 1)],
        *[("logprobs", value) for value in (0, 1000)],
        *[("bad_words", value) for value in ((), ("a" * 256,) * 64)],
    ],
)
def test_the_ends_of_a_range_are_inside(field: str, value: Any) -> None:
    assert getattr(SamplingParams(**{field: value}), field) == value


def test_several_greedy_answers_are_refused() -> None:
    with pytest.raises(RequestInvalid, match=r"^n must be 1 when using greedy sampling .+, got 2$") as refused:
        SamplingParams(n=2, temperature=0)
    assert refused.value.param == "n"


def test_min_tokens_has_no_upper_end_without_max_tokens() -> None:
    assert SamplingParams(min_tokens=500, max_tokens=None).min_tokens == 500


@pytest.mark.parametrize(
    ("given", "kept"), [(None, ()), ("\n", ("\n",)), (["b", "a"], ("b", "a")), ((), ()), (("a", "a"), ("a", "a"))]
)
def test_stop_reads_back_as_a_tuple(given: Any, kept: tuple[str, ...]) -> None:
    params = SamplingParams(stop=given)
    assert params.stop == params.stop_strings == kept


def test_stop_strings_need_text() -> None:
    with pytest.raises(RequestInvalid, match="stop must be empty when detokenize is false"):
        SamplingParams(stop="x", detokenize=False)


def test_later_changes_to_the_callers_collections_do_not_reach_in() -> None:
    bias, ids = {3: 1.0}, [4]
    params = SamplingParams(logit_bias=bias, stop_token_ids=ids)
    bias[9] = 5.0
    ids.append(7)
    assert params.logit_bias == {3: 1.0}
    assert params.stop_token_ids == (4,)


def test_a_bias_on_a_token_the_model_lacks_is_refused() -> None:
    params = SamplingParams(logit_bias={10: 1.0})
    params.check_vocabulary(11)
    with pytest.raises(RequestInvalid, match=r"^logit_bias must be keyed by token ids from 0 to 9, got 10$"):
        params.check_vocabulary(10)


def test_a_stop_token_that_the_model_lacks_is_refused() -> None:
    params = SamplingParams(stop_token_ids=[3, 10])
    params.check_vocabulary(11)
    with pytest.raises(RequestInvalid, match=r"^stop_token_ids must be token ids from 0 to 9, got 10$") as refused:
        params.check_vocabulary(10)
    assert refused.value.param == "stop_token_ids"


def test_an_allowed_token_that_the_model_lacks_is_refused() -> None:
    params = SamplingParams(allowed_token_ids=[3, 10])
    params.check_vocabulary(11)
    with pytest.raises(RequestInvalid, match=r"^allowed_token_ids must be token ids from 0 to 9, got 10$") as refused:
        params.check_vocabulary(10)
    assert refused.value.param == "allowed_token_ids"


@pytest.mark.parametrize(("temperature", "greedy"), [(0.0, True), (1e-6, True), (1e-5, False), (1.0, False)])
def test_greedy_means_a_temperature_of_zero_or_next_to_it(temperature: float, greedy: bool) -> None:
    assert SamplingParams(temperature=temperature).is_greedy is greedy


def test_fields_cannot_be_changed_and_dataclasses_replace_checks_again() -> None:
    params = SamplingParams(stop="x", stop_token_ids=[1])
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.n = 2  # type: ignore[misc]  # the promise under test
    assert dataclasses.replace(params, n=3).stop_strings == ("x",)
    with pytest.raises(RequestInvalid):
        dataclasses.replace(params, n=0)


def test_importing_it_does_not_import_torch() -> None:
    code = "import sys, loramux.sampling_params, loramux.outputs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0  # our own code, fixed text
