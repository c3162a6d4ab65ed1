"""How the log looks: lines for people, or one JSON object per line; both say which request they are about."""

from __future__ import annotations

import logging
import sys
import threading
from types import TracebackType
from typing import Literal, TextIO

from pythonjsonlogger.json import JsonFormatter

from loramux.server.observing.exchange import current_exchange

LogFormat = Literal["text", "json"]

logger = logging.getLogger(__name__)


def configure_logging(log_format: LogFormat) -> None:
    """Send everything to standard error; as JSON, also what libraries and crashes would write there by themselves."""
    logging.basicConfig(level=logging.INFO, handlers=[make_handler(log_format, sys.stderr)])
    if log_format == "json":
        _take_over_libraries()
        logging.captureWarnings(True)
        sys.excepthook = _log_uncaught
        threading.excepthook = _log_uncaught_in_thread


def make_handler(log_format: LogFormat, stream: TextIO) -> logging.Handler:
    """Build what writes records in a format."""
    handler = logging.StreamHandler(stream)
    handler.addFilter(add_request)
    if log_format == "json":
        renamed = {"levelname": "level", "name": "logger"}
        formatter = JsonFormatter(["levelname", "name", "message"], rename_fields=renamed, timestamp=True)
        handler.setFormatter(formatter)
    else:
        handler.setFormatter(_TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler


def add_request(record: logging.LogRecord) -> bool:
    """Give a record the id and the adapter of the request that it is about, if there is one; for a filter."""
    exchange = current_exchange()
    if exchange is not None and not hasattr(record, "request_id"):
        record.request_id = exchange.request_id
        record.adapter = exchange.adapter_name or "-"
    return True


class _TextFormatter(logging.Formatter):
    """Ends a line with the request's id, unless its message has that already."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        line = super().formatMessage(record)
        request_id = getattr(record, "request_id", None)
        if request_id is None or "request_id=" in line:
            return line
        return f"{line} request_id={request_id} adapter={getattr(record, 'adapter', '-')}"


def _take_over_libraries() -> None:
    """Let libraries that have handlers of their own, such as transformers, speak through ours."""
    for known in list(logging.root.manager.loggerDict.values()):
        if isinstance(known, logging.Logger) and known.handlers:
            known.handlers.clear()
            known.propagate = True


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    logger.critical("uncaught exception", exc_info=(kind, error, traceback))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        thread = "-" if args.thread is None else args.thread.name
        logger.critical(
            "uncaught exception in thread=%s", thread, exc_info=(args.exc_type, args.exc_value, args.exc_traceback)
        )
