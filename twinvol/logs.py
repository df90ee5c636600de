"""Logs of both processes: standard logging everywhere, rendered to stderr by structlog here and only here."""

from __future__ import annotations

import logging
import sys

import structlog


def configure(process: str, *, level: int = logging.INFO) -> None:
    """Send all logging of this process to stderr, one line an entry, with ``process`` in it."""
    processors: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=processors,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            lambda _logger, _name, event: {**event, "process": process},
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "process", "logger", "event"]),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler], force=True)
