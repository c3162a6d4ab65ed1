"""OpenTelemetry spans for the requests of a loramux server, and for the loads of its adapters."""

from __future__ import annotations

import os

from loramux_otel.exporting import make_provider
from loramux_otel.spans import Spans

__all__ = ["Spans", "plugin"]

plugin = Spans(make_provider(os.environ))
