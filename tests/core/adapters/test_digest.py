"""The digest is one function of two files, however they are read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from loramux.adapters import digest
from loramux.adapters.digest import digest_of_bytes, digest_of_folder, is_digest
from loramux.lora.remote import CONFIG_NAME, WEIGHTS_NAME
from store_cases import digest_of, fill

CHUNK = digest._CHUNK_NBYTES


@pytest.mark.parametrize("nbytes", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 7])
def test_files_in_pieces_and_bytes_in_pieces_have_the_same_digest(tmp_path: Path, nbytes: int) -> None:
    weights = os.urandom(nbytes)
    fill(tmp_path, weights, b"{}")

    expected = digest_of(b"{}", weights)

    assert digest_of_folder(tmp_path).digest == expected
    assert digest_of_bytes(b"{}", (weights[:8], weights[8:20], bytearray(weights[20:]))) == expected


def test_bytes_that_move_from_one_file_to_the_other_change_it() -> None:
    assert digest_of_bytes(b"ab", [b"c"]) != digest_of_bytes(b"a", [b"bc"])


def test_each_file_has_its_own_size_and_sha256(tmp_path: Path) -> None:
    fill(tmp_path, b"", b"abc")

    files = digest_of_folder(tmp_path).files

    assert (files[CONFIG_NAME].nbytes, files[WEIGHTS_NAME].nbytes) == (3, 0)
    assert files[CONFIG_NAME].sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    fill(tmp_path, b"w")
    (tmp_path / WEIGHTS_NAME).unlink()
    os.mkfifo(tmp_path / WEIGHTS_NAME)

    with pytest.raises(ValueError, match=f"{WEIGHTS_NAME} is not a regular file"):
        digest_of_folder(tmp_path)


def test_a_file_that_grows_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, b"w" * 10)

    def grow(nbytes: int) -> bytes:
        with (tmp_path / WEIGHTS_NAME).open("ab") as stream:
            stream.write(b"more")
        return nbytes.to_bytes(8, "little")

    monkeypatch.setattr(digest, "_length", grow)

    with pytest.raises(ValueError, match=f"{WEIGHTS_NAME} changes its size"):
        digest_of_folder(tmp_path)


@pytest.mark.parametrize("text", ["", "0" * 63, "0" * 65, "A" * 64, "../" + "0" * 61, "0" * 64 + "\n"])
def test_what_is_no_digest_is_told_apart(text: str) -> None:
    assert is_digest("0123456789abcdef" * 4)
    assert not is_digest(text)
