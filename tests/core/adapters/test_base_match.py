"""Which base an adapter was trained for: exact, by basename, or not asked."""

from __future__ import annotations

import logging

import pytest

from loramux.adapters.base_match import BaseMatch, refuse_other_base
from loramux.adapters.refusal import Refusal

NAMES = ("/srv/models/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", "smol")


def check(trained_for: str | None, base_match: BaseMatch, names: tuple[str, ...] = NAMES) -> None:
    refuse_other_base("tidy", trained_for, base_names=names, base_match=base_match)


@pytest.mark.parametrize(
    "trained_for",
    [
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "SmolLM2-135M-Instruct",
        "/home/x/ckpt/SmolLM2-135M-Instruct/",
        "../SmolLM2-135M-Instruct",
        "other-org/smol",
        "/root/.cache/huggingface/hub/models--HuggingFaceTB--SmolLM2-135M-Instruct/snapshots/0123abcd",
    ],
)
def test_basenames_match_whatever_the_path(trained_for: str) -> None:
    check(trained_for, "basename")


def test_the_same_folder_matches() -> None:
    check("/tmp/xyz/model", "basename", ("/tmp/xyz/model",))
    check("/tmp/xyz/model", "exact", ("/tmp/xyz/model",))


@pytest.mark.parametrize("trained_for", ["HuggingFaceTB/smollm2-135m-instruct", "SmolLM2-135M", ".", "..", "/", "x/.."])
def test_other_basenames_are_refused(trained_for: str) -> None:
    with pytest.raises(Refusal) as caught:
        check(trained_for, "basename")
    assert caught.value.reason.startswith(
        f"was trained for {trained_for!r}; this server runs 'HuggingFaceTB/SmolLM2-135M-Instruct'. "
    )
    assert caught.value.code == "adapter_base_mismatch"


def test_a_refusal_says_what_to_do_when_only_the_name_differs() -> None:
    with pytest.raises(
        Refusal, match=r"add the name with .*--served-model-name.* turn this check off .*--base-match off"
    ):
        check("org/SmolLM2-135M-Instruct", "basename", ("/srv/renamed",))
    check("org/SmolLM2-135M-Instruct", "basename", ("SmolLM2-135M-Instruct", "/srv/renamed"))


def test_exact_means_the_whole_name() -> None:
    check("HuggingFaceTB/SmolLM2-135M-Instruct", "exact")
    with pytest.raises(Refusal, match="was trained for 'SmolLM2-135M-Instruct'; this server runs"):
        check("SmolLM2-135M-Instruct", "exact")


def test_off_asks_nothing() -> None:
    check("meta-llama/Llama-3.2-1B", "off")


def test_a_refusal_does_not_tell_where_the_server_keeps_its_files() -> None:
    with pytest.raises(Refusal, match="this server runs 'model'"):
        check("other", "basename", ("/srv/secret/model",))
    with pytest.raises(Refusal, match="this server runs 'model'"):
        check("other", "basename", (".", "/srv/secret/model"))


def test_no_name_is_accepted_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check(None, "exact")
    assert "adapter config names no base model, accepted unchecked: adapter=tidy" in caplog.text
