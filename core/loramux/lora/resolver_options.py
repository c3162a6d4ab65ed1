"""ResolverOptions: what the operator set for each resolver, by flag, environment or file; the nearer one wins.

Every value reaches a resolver as text, whichever way it came, so that a plugin parses in one way.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loramux.errors import ConfigInvalid


@dataclass(frozen=True, slots=True)
class ResolverOptions:
    """The three sources, read once; `of` merges them for one resolver."""

    flags: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    file: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def gather(
        cls, *, flags: Sequence[str] = (), environment: Mapping[str, str], config_file: Path | None = None
    ) -> ResolverOptions:
        """Read `--resolver-option` values, `LORAMUX_*` variables and `[resolvers.NAME]` tables of a TOML file."""
        variables = {name: value for name, value in environment.items() if name.startswith("LORAMUX_")}
        return cls(_parse_flags(flags), variables, {} if config_file is None else _read_file(config_file))

    def named_resolvers(self) -> set[str]:
        """Return the resolvers that a flag or the file names; a variable's name alone does not tell."""
        return set(self.flags) | set(self.file)

    def of(self, resolver_name: str, all_resolver_names: Collection[str]) -> dict[str, str]:
        """Return the options of one resolver: flag before environment before file."""
        others = {_variable_prefix(name) for name in all_resolver_names} - {_variable_prefix(resolver_name)}
        prefix = _variable_prefix(resolver_name)
        longer = tuple(other for other in others if other.startswith(prefix))  # LORAMUX_S3_EU_URL is not s3's EU_URL
        from_environment = {
            variable.removeprefix(prefix).lower(): value
            for variable, value in self.environment.items()
            if variable.startswith(prefix) and not variable.startswith(longer) and variable != prefix
        }
        return {**self.file.get(resolver_name, {}), **from_environment, **self.flags.get(resolver_name, {})}


def _variable_prefix(resolver_name: str) -> str:
    return "LORAMUX_" + resolver_name.upper().replace("-", "_").replace(".", "_") + "_"


def _parse_flags(flags: Sequence[str]) -> dict[str, dict[str, str]]:
    options: dict[str, dict[str, str]] = {}
    for flag in flags:
        target, equals, value = flag.partition("=")
        resolver_name, dot, option = target.rpartition(".")
        if not (equals and dot and resolver_name and option):
            raise ConfigInvalid(f"--resolver-option {flag!r} must look like NAME.OPTION=VALUE")
        options.setdefault(resolver_name, {})[_option_name(option)] = value
    return options


def _read_file(path: Path) -> dict[str, dict[str, str]]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigInvalid(f"--config {path}: {exc}") from exc
    unknown = sorted(set(document) - {"resolvers"})
    if unknown:
        raise ConfigInvalid(f"--config {path}: unknown {', '.join(unknown)}; only [resolvers.NAME] tables are accepted")
    tables = document.get("resolvers", {})
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise ConfigInvalid(f"--config {path}: write resolver options as [resolvers.NAME] tables")
    return {
        name: {
            _option_name(option): _as_text(value, f"{path}: resolvers.{name}.{option}")
            for option, value in table.items()
        }
        for name, table in tables.items()
    }


def _option_name(text: str) -> str:
    return text.lower().replace("-", "_")


def _as_text(value: object, where: str) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str() | int() | float():
            return str(value)
        case list():
            return ",".join(_as_text(item, where) for item in value)
        case _:
            raise ConfigInvalid(
                f"--config {where} must be text, a number, true, false or a list of these, got {type(value).__name__}"
            )
