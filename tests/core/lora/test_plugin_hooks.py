"""authorize, adapter_event and request_finished: every plugin is heard, and a fault stays where it is."""

from __future__ import annotations

import dataclasses

import pytest

from loramux.lora.hookspecs import AdapterEvent, RequestRecord, hookimpl
from loramux.lora.plugin_hooks import PluginHooks
from loramux.lora.plugin_manager import PluginConfig, PluginManager
from plugin_cases import entry_point

EVENT = AdapterEvent("loaded", "sql", 1, "/adapters/sql")
RECORD = RequestRecord(**dict.fromkeys(field.name for field in dataclasses.fields(RequestRecord)))


class Answering:
    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.events: list[AdapterEvent] = []
        self.records: list[RequestRecord] = []

    @hookimpl
    def authorize(self, principal: str | None, adapter_name: str) -> object:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    @hookimpl
    def adapter_event(self, event: AdapterEvent) -> None:
        if isinstance(self.answer, Exception):
            raise self.answer
        self.events.append(event)

    @hookimpl
    def request_finished(self, record: RequestRecord) -> None:
        if isinstance(self.answer, Exception):
            raise self.answer
        self.records.append(record)


def hooks_of(*plugins: object) -> PluginHooks:
    return PluginManager(PluginConfig(), [entry_point(f"p{i}", plugin) for i, plugin in enumerate(plugins)]).hooks


@pytest.mark.parametrize(
    ("answers", "is_allowed"),
    [([], True), ([None], True), ([True], True), ([True, False], False), ([None, False], False)],
)
def test_one_refusal_is_enough_and_no_opinion_allows(answers: list[bool | None], is_allowed: bool) -> None:
    assert hooks_of(*map(Answering, answers)).authorize("alice", "sql") is is_allowed


@pytest.mark.parametrize("answer", [RuntimeError("down"), "yes", 1])
def test_a_fault_or_an_answer_that_is_no_bool_refuses_and_names_the_plugin(
    answer: object, caplog: pytest.LogCaptureFixture
) -> None:
    assert hooks_of(Answering(answer), Answering(True)).authorize("alice", "sql") is False
    assert "plugin=p0" in caplog.text


def test_a_fault_in_one_listener_keeps_no_event_from_the_others(caplog: pytest.LogCaptureFixture) -> None:
    listener = Answering(None)
    hooks_of(Answering(RuntimeError("down")), listener).adapter_event(EVENT)
    assert listener.events == [EVENT]
    assert "plugin=p0 kind=loaded" in caplog.text


def test_a_fault_in_one_reader_keeps_no_request_from_the_others(caplog: pytest.LogCaptureFixture) -> None:
    reader = Answering(None)
    hooks_of(Answering(RuntimeError("down")), reader).request_finished(RECORD)
    assert reader.records == [RECORD]
    assert "plugin=p0" in caplog.text
