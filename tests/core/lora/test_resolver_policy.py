"""The options that every resolver has, because the core reads them."""

from __future__ import annotations

import pytest

from loramux.errors import ConfigInvalid
from loramux.lora.plugin_manager import PluginConfig, PluginManager
from loramux.lora.resolver_options import ResolverOptions
from loramux.lora.resolver_policy import ResolverPolicy
from plugin_cases import TableResolver, entry_point


@pytest.mark.parametrize(
    ("option", "value", "policy"),
    [
        ("timeout_seconds", "2.5", ResolverPolicy(timeout_seconds=2.5)),
        ("on_error", "continue", ResolverPolicy(on_error="continue")),
        ("revalidate", "never", ResolverPolicy(revalidate_seconds=None)),
        ("revalidate", "always", ResolverPolicy(revalidate_seconds=0.0)),
        ("revalidate", "ttl:60", ResolverPolicy(revalidate_seconds=60.0)),
        ("unknown_seconds", "0", ResolverPolicy(unknown_seconds=0.0)),
        ("names", "team-*/*, prod", ResolverPolicy(names=("team-*/*", "prod"))),
    ],
)
def test_each_option_is_read(option: str, value: str, policy: ResolverPolicy) -> None:
    assert ResolverPolicy.from_options("s3", {option: value}) == policy


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("timeout_seconds", "0", "resolver option s3.timeout_seconds='0' must be a number of seconds above 0"),
        ("timeout_seconds", "nan", "must be a number of seconds above 0"),
        ("timeout_seconds", "soon", "must be a number of seconds above 0"),
        ("on_error", "ignore", "resolver option s3.on_error='ignore' must be stop or continue"),
        ("revalidate", "ttl:", "must be a number of seconds above 0"),
        ("revalidate", "daily", "resolver option s3.revalidate='daily' must be never, always or ttl:SECONDS"),
        ("unknown_seconds", "-1", "must be a number of seconds above 0"),
    ],
)
def test_a_wrong_value_is_refused_by_name(option: str, value: str, message: str) -> None:
    with pytest.raises(ConfigInvalid, match=message):
        ResolverPolicy.from_options("s3", {option: value})


def test_a_resolver_never_sees_the_options_of_the_core() -> None:
    class TakesNone(TableResolver):
        """`from_config` refuses any option."""

    environment = {"LORAMUX_S3_TIMEOUT_SECONDS": "3", "LORAMUX_S3_NAMES": "a-*"}
    manager = PluginManager.start(
        PluginConfig(None, ResolverOptions.gather(environment=environment)), [entry_point("s3", TakesNone)]
    )
    (active,) = manager.resolvers
    assert (active.policy.timeout_seconds, active.policy.names) == (3.0, ("a-*",))


def test_the_fingerprint_changes_with_the_configuration_and_shows_none_of_it() -> None:
    class Configured(TableResolver):
        option_names = ("url",)

        @classmethod
        def from_config(cls, options: object) -> Configured:
            return cls()

    def fingerprint(url: str, timeout: str) -> str:
        options = ResolverOptions.gather(flags=[f"s3.url={url}", f"s3.timeout_seconds={timeout}"], environment={})
        (active,) = PluginManager(PluginConfig(None, options), [entry_point("s3", Configured)]).resolvers
        return active.fingerprint

    assert fingerprint("one", "1") == fingerprint("one", "2") != fingerprint("two", "1")
    assert "one" not in fingerprint("one", "1")
