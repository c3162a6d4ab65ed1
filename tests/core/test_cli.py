from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import loramux
from loramux.cli import _build_parser, main
from loramux.config import EngineArgs
from loramux.errors import ConfigInvalid
from loramux.server.startup.arguments import read_server_config
from loramux.server.startup.config import LoRAModule, ServerConfig
from loramux.server.startup.shutdown import StopConfig


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LORAMUX_API_KEY", "LORAMUX_ALLOW_RUNTIME_LORA_UPDATING", "LORAMUX_FILESYSTEM_ROOT"):
        monkeypatch.delenv(name, raising=False)


def read(*arguments: str, **environment: str) -> ServerConfig:
    return read_server_config(_build_parser().parse_args(["serve", "llama", *arguments]), environment)


def test_a_model_alone_gives_the_defaults() -> None:
    config = read()

    assert config == ServerConfig(engine=EngineArgs(model="llama"))
    assert (config.host, config.port) == ("127.0.0.1", 8000)


def test_every_engine_flag_reaches_the_engine(tmp_path: Path) -> None:
    config = read(
        *("--served-model-name", "a", "b"),
        *("--tokenizer", "t"),
        "--enable-lora",
        *("--max-loras", "2"),
        *("--max-lora-rank", "16"),
        *("--max-cpu-loras", "20"),
        *("--max-model-len", "128"),
        *("--max-num-seqs", "4"),
        *("--max-num-batched-tokens", "32"),
        *("--kv-cache-memory-bytes", "64MiB"),
        *("--memory-utilization", "0.5"),
        *("--dtype", "float32"),
        *("--device", "cpu"),
        *("--seed", "3"),
        *("--base-match", "off"),
    )

    assert config.engine == EngineArgs(
        model="llama",
        tokenizer="t",
        served_model_name=("a", "b"),
        enable_lora=True,
        max_loras=2,
        max_lora_rank=16,
        max_cpu_loras=20,
        max_model_len=128,
        max_num_seqs=4,
        max_num_batched_tokens=32,
        dtype="float32",
        device="cpu",
        seed=3,
        kv_cache_memory_bytes=64 * 2**20,
        memory_utilization=0.5,
        base_match="off",
    )


def test_every_server_flag_reaches_the_server(tmp_path: Path) -> None:
    (tmp_path / "options.toml").write_text("[resolvers.filesystem]\nroot = '/file'\n")
    config = read(
        "--enable-lora",
        *("--lora-modules", "sql=/sql", '{"name": "json", "path": "/json"}'),
        *("--host", "0.0.0.0"),
        *("--port", "0"),
        *("--api-key", "one", "two"),
        *("--allowed-hosts", "A", "b", "--allowed-hosts", "c.lan"),
        *("--max-connections-per-client", "7"),
        *("--max-connections", "50", "--max-waiting", "9", "--request-timeout", "90", "--allow-python-parser"),
        *("--drain-delay", "1.5", "--grace", "30"),
        *("--lora-resolvers", "filesystem, hub"),
        *("--resolver-option", "filesystem.root=/flag"),
        *("--resolver-option", "hub.repos=a/b"),
        *("--config", str(tmp_path / "options.toml")),
        *("--allowed-lora-roots", str(tmp_path)),
        *("--log-format", "json"),
        LORAMUX_ALLOW_RUNTIME_LORA_UPDATING="True",
    )

    assert config.lora_modules == (LoRAModule("sql", "/sql"), LoRAModule("json", "/json"))
    assert (config.allowed_hosts, config.max_connections, config.allow_python_parser) == (("a", "b", "c.lan"), 50, True)
    assert config.max_connections_per_client == 7
    assert (config.max_waiting, config.request_timeout_seconds) == (9, 90)
    assert config.stop == StopConfig(drain_delay_seconds=1.5, grace_seconds=30)
    assert (config.host, config.port, config.api_keys) == ("0.0.0.0", 0, ("one", "two"))
    assert config.plugins.resolver_names == ("filesystem", "hub")
    assert config.plugins.options.of("filesystem", {"filesystem", "hub"}) == {"root": "/flag"}
    assert config.plugins.options.file == {"filesystem": {"root": "/file"}}
    assert config.allow_runtime_updates
    assert config.allowed_lora_roots == (tmp_path.resolve(),)
    assert config.log_format == "json"


def test_the_environment_says_which_kernels_serve() -> None:
    assert read().engine.kernels == read(LORAMUX_KERNELS="").engine.kernels == "auto"
    assert read(LORAMUX_KERNELS="torch").engine.kernels == "torch"
    with pytest.raises(ConfigInvalid, match="kernels must be one of auto, torch, triton; got 'cuda'"):
        read(LORAMUX_KERNELS="cuda")


def test_the_key_of_the_environment_counts_when_no_flag_gives_one() -> None:
    assert read(LORAMUX_API_KEY="env").api_keys == ("env",)
    assert read("--api-key", "flag", LORAMUX_API_KEY="env").api_keys == ("flag",)
    assert read(LORAMUX_API_KEY="").api_keys == ()


@pytest.mark.parametrize(
    ("value", "is_on"), [("True", True), ("true", True), ("1", True), ("False", False), ("0", False)]
)
def test_runtime_updates_are_switched_by_the_environment(value: str, is_on: bool) -> None:
    assert read(LORAMUX_ALLOW_RUNTIME_LORA_UPDATING=value).allow_runtime_updates is is_on


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--enable-lora", "--lora-modules", "sql"], "Invalid JSON format for --lora-modules: sql"),
        (["--enable-lora", "--lora-modules", '{"name": "sql"}'], 'Invalid fields for --lora-modules: {"name": "sql"}'),
        (["--enable-lora", "--lora-modules", "a=/a", "=x"], "--lora-modules '=x' must look like name=path"),
        (["--enable-lora", "--lora-modules", "a=/nope"], "--lora-modules a=/nope: there is no such folder"),
        (["--enable-lora", "--resolver-option", "root"], "--resolver-option 'root' must look like NAME.OPTION=VALUE"),
        (["--enable-lora", "--config", "/nowhere.toml"], "--config /nowhere.toml"),
        (["--host", "0.0.0.0"], "a key is needed"),
        (["--enable-lora", "--max-loras", "0"], "max_loras must be an integer of at least 1, got 0"),
        (["--enable-lora", "--max-loras", "8", "--max-cpu-loras", "4"], "max_cpu_loras (4) must be >= max_loras (8)"),
        (["--enable-lora", "--allowed-lora-roots", "/nowhere"], "--allowed-lora-roots: '/nowhere' is no folder"),
        (["--enable-lora", "--allowed-lora-roots", "/"], "--allowed-lora-roots: '/' cannot be used: it is the root"),
        (["--max-connections", "0"], "--max-connections must be from 1 to 1000000, got 0"),
        (["--max-connections-per-client", "0"], "--max-connections-per-client must be from 1 to 1000000, got 0"),
        (["--allowed-hosts", "http://a"], "--allowed-hosts: 'http://a' is no host name"),
        (["--keys-file", "/nowhere.toml"], "--keys-file /nowhere.toml: cannot be read"),
        (["--max-waiting", "0"], "--max-waiting must be at least 1, got 0"),
        (["--insecure", "--api-key", "k"], "--insecure is for a server without a key"),
        (["--request-timeout", "0"], "--request-timeout must be above 0 and at most 86400 seconds, got 0"),
        (["--grace", "-1"], "--grace must be from 0 to 3600 seconds, got -1"),
    ],
)
def test_a_wrong_setting_ends_the_command_with_its_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["serve", "llama", *arguments])

    assert status == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--lora-modules", "a=/a"),
        ("--lora-resolvers", "filesystem"),
        ("--resolver-option", "filesystem.root=/a"),
        ("--config", "/a.toml"),
        ("--allowed-lora-roots", "/"),
        ("--max-loras", "2"),
        ("--max-lora-rank", "16"),
        ("--max-cpu-loras", "100"),
        ("--base-match", "off"),
    ],
)
def test_a_flag_about_adapters_never_does_nothing_in_silence(flag: str, value: str) -> None:
    with pytest.raises(ConfigInvalid, match=f"^{flag} needs --enable-lora$"):
        read(flag, value)


def test_an_environment_that_configures_resolvers_does_not_stop_a_server_without_lora() -> None:
    assert read(LORAMUX_FILESYSTEM_ROOT="/a").plugins.resolver_names is None


def test_a_flag_that_is_repeated_adds_to_what_it_gave_before() -> None:
    config = read(
        "--enable-lora",
        *("--lora-modules", "a=/a", "--lora-modules", "b=/b", "c=/c"),
        *("--api-key", "one", "--api-key", "two"),
        *("--served-model-name", "x", "--served-model-name", "y"),
    )

    assert [module.name for module in config.lora_modules] == ["a", "b", "c"]
    assert config.api_keys == ("one", "two")
    assert config.engine.served_model_name == ("x", "y")


def test_a_switch_that_is_neither_on_nor_off_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LORAMUX_ALLOW_RUNTIME_LORA_UPDATING", "yes")

    assert main(["serve", "llama"]) == 2
    assert "LORAMUX_ALLOW_RUNTIME_LORA_UPDATING must be True or False, got 'yes'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--kv-cache-memory-bytes", "lots"], ["--dtype", "int3"], ["--port", "http"], ["--no-such-flag"]]
)
def test_what_is_no_argument_at_all_shows_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["serve", "llama", *arguments])

    assert caught.value.code == 2
    assert "usage: loramux" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "nbytes"), [("1024", 1024), ("2KiB", 2048), ("1gib", 2**30), ("3 MiB", 3 * 2**20)])
def test_sizes_may_have_units(text: str, nbytes: int) -> None:
    assert read("--kv-cache-memory-bytes", text).engine.kv_cache_memory_bytes == nbytes


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])

    assert caught.value.code == 0
    assert capsys.readouterr().out == f"loramux {loramux.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["serve", "--help"], ["plugins"], ["store", "ls"], ["--version"], ["bench", "serve", "--help"]],
)
def test_what_needs_no_model_does_not_wait_for_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom loramux.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )

    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert completed.returncode == 0, completed.stdout + completed.stderr


def test_a_server_that_cannot_start_says_so_in_the_form_of_its_log() -> None:
    command = [sys.executable, "-m", "loramux.cli", "serve", "model", "--port", "99999", "--log-format"]

    ended = {name: subprocess.run([*command, name], capture_output=True, text=True) for name in ("text", "json")}

    reason = "loramux serve: error: --port must be from 0 to 65535, got 99999"
    assert ended["text"].stderr == f"{reason}\n"
    assert json.loads(ended["json"].stderr)["message"] == reason
    assert [process.returncode for process in ended.values()] == [2, 2]
