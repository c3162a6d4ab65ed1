"""PluginHooks: calls what plugins have to say or to hear while the server runs; a fault in one stays with that one."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from loramux.lora.hookspecs import AdapterEvent, RequestRecord
from loramux.lora.loaded_plugin import LoadedPlugin

logger = logging.getLogger(__name__)


class PluginHooks:
    """What the registry of adapters calls; without plugins everybody may use everything."""

    def __init__(self, plugins: Sequence[LoadedPlugin] = ()) -> None:
        self._authorizers = [plugin for plugin in plugins if "authorize" in plugin.hook_names]
        self._readers = [plugin for plugin in plugins if "request_finished" in plugin.hook_names]
        self._listeners = [plugin for plugin in plugins if "adapter_event" in plugin.hook_names]

    def authorize(self, principal: str | None, adapter_name: str) -> bool:
        """Return whether no plugin refuses; an answer that is no bool, or a fault, refuses."""
        return all(_is_allowed_by(plugin, principal, adapter_name) for plugin in self._authorizers)

    def adapter_event(self, event: AdapterEvent) -> None:
        """Tell every plugin; never raises."""
        for plugin in self._listeners:
            try:
                plugin.hooks.adapter_event(event=event)
            except Exception:  # a plugin call
                logger.exception("adapter_event failed plugin=%s kind=%s", plugin.name, event.kind)

    def request_finished(self, record: RequestRecord) -> None:
        """Tell every plugin; never raises."""
        for plugin in self._readers:
            try:
                plugin.hooks.request_finished(record=record)
            except Exception:  # a plugin call
                logger.exception("request_finished failed plugin=%s request_id=%s", plugin.name, record.request_id)


def _is_allowed_by(plugin: LoadedPlugin, principal: str | None, adapter_name: str) -> bool:
    try:
        answers = plugin.hooks.authorize(principal=principal, adapter_name=adapter_name)
    except Exception:  # a plugin call
        logger.exception("authorize failed, so the request is refused plugin=%s adapter=%s", plugin.name, adapter_name)
        return False
    for answer in answers:  # pluggy leaves out None: no opinion
        if not isinstance(answer, bool):
            logger.error(
                "authorize must return a bool or None, so the request is refused plugin=%s adapter=%s got=%s",
                plugin.name,
                adapter_name,
                type(answer).__name__,
            )
    return all(answer is True for answer in answers)
