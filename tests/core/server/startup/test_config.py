from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from loramux.config import EngineArgs
from loramux.errors import ConfigInvalid
from loramux.server.access.keys_file import KeysFile
from loramux.server.startup.config import LoRAModule, ServerConfig


def config(**settings: object) -> ServerConfig:
    return ServerConfig(engine=EngineArgs(model="llama", enable_lora=True), **settings)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_needs_no_key(host: str) -> None:
    assert not config(host=host, allow_runtime_updates=True).is_public


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_other_machines_need_a_key(host: str) -> None:
    with pytest.raises(ConfigInvalid, match="a key is needed: give --api-key KEY or set LORAMUX_API_KEY"):
        config(host=host)

    assert config(host=host, api_keys=("key",)).is_public


def test_other_machines_may_load_adapters_from_named_folders_only() -> None:
    with pytest.raises(ConfigInvalid, match="--allowed-lora-roots"):
        config(host="0.0.0.0", api_keys=("key",), allow_runtime_updates=True)

    config(host="0.0.0.0", api_keys=("key",), allow_runtime_updates=True, allowed_lora_roots=(Path("/a"),))


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_is_a_port(port: int) -> None:
    with pytest.raises(ConfigInvalid, match=f"--port must be from 0 to 65535, got {port}"):
        config(port=port)


ADMIN = KeysFile.parse(Path("keys"), f'[[keys]]\nid = "a"\nsha256 = "{0:064x}"\nscopes = ["admin"]'.encode())
NARROW = KeysFile.parse(Path("keys"), f'[[keys]]\nid = "a"\nsha256 = "{0:064x}"'.encode())
ROOTS = (Path("/a"),)


@pytest.mark.parametrize(
    ("host", "settings", "refusal"),
    [
        ("127.0.0.1", {}, None),
        ("127.0.0.1", {"allow_runtime_updates": True}, None),
        ("127.0.0.1", {"allow_runtime_updates": True, "keys_file": NARROW}, None),
        ("0.0.0.0", {}, "a key is needed"),
        ("0.0.0.0", {"is_insecure": True}, None),
        ("0.0.0.0", {"api_keys": ("k",)}, None),
        ("0.0.0.0", {"keys_file": NARROW}, None),
        ("0.0.0.0", {"is_insecure": True, "allow_runtime_updates": True, "allowed_lora_roots": ROOTS}, "scope admin"),
        ("0.0.0.0", {"keys_file": NARROW, "allow_runtime_updates": True, "allowed_lora_roots": ROOTS}, "scope admin"),
        ("0.0.0.0", {"keys_file": ADMIN, "allow_runtime_updates": True, "allowed_lora_roots": ROOTS}, None),
        ("0.0.0.0", {"keys_file": ADMIN, "allow_runtime_updates": True}, "--allowed-lora-roots"),
        ("0.0.0.0", {"api_keys": ("k",), "allow_runtime_updates": True}, "--allowed-lora-roots"),
    ],
)
def test_what_is_open_to_whom_is_decided_before_the_start(
    host: str, settings: dict[str, object], refusal: str | None
) -> None:
    with nullcontext() if refusal is None else pytest.raises(ConfigInvalid, match=refusal):
        config(host=host, **settings)


@pytest.mark.parametrize(
    ("host", "allowed", "checked"),
    [
        ("127.0.0.1", (), ()),
        ("localhost", ("a.lan",), ("a.lan",)),
        ("0.0.0.0", (), None),
        ("0.0.0.0", ("a.lan",), ("a.lan",)),
    ],
)
def test_names_are_checked_on_loopback_and_where_some_are_given(
    host: str, allowed: tuple[str, ...], checked: tuple[str, ...] | None
) -> None:
    assert config(host=host, allowed_hosts=allowed, api_keys=("k",)).checked_hosts == checked


def test_an_empty_key_is_no_key() -> None:
    with pytest.raises(ConfigInvalid, match="--api-key must not be empty"):
        config(api_keys=("key", " "))


@pytest.mark.parametrize("names", [("sql", "sql"), ("llama",)])
def test_every_model_needs_its_own_name(names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigInvalid, match=f"{names[0]!r} is given 2 times"):
        config(lora_modules=tuple(LoRAModule(name, "/a") for name in names))


@pytest.mark.parametrize("name", ["a b", "../sql", "x" * 256])
def test_a_name_that_could_never_be_asked_for_is_refused(name: str) -> None:
    with pytest.raises(ConfigInvalid, match="is no name for an adapter"):
        config(lora_modules=(LoRAModule(name, "/a"),))


def test_keys_are_not_in_the_repr() -> None:
    assert "my-key" not in repr(config(api_keys=("my-key",)))
