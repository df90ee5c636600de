"""Logs of both processes: standard logging everywhere, rendered to stderr by structlog here and only here."""

from __future__ import annotations

import logging
import sys
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import structlog


def configure(process: str, *, level: int = logging.INFO) -> None:
    """Send all logging of this process to stderr, one line an entry, with ``process`` in it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(process))
    logging.basicConfig(level=level, handlers=[handler], force=True)


class _Formatter(logging.Formatter):
    """Renders with structlog, imported (50 ms) when the first entry comes: not before the daemon is ready."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    @cached_property
    def _renderer(self) -> structlog.stdlib.ProcessorFormatter:
        import structlog

        processors: list[structlog.typing.Processor] = [
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
        ]
        return structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=processors,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                lambda _logger, _name, event: {**event, "process": self._process},
                structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "process", "logger", "event"]),
            ],
        )

    def format(self, record: logging.LogRecord) -> str:
        return self._renderer.format(record)
