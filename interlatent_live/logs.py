"""Structured logs, without touching anything global until a process asks for it.

A logger from :func:`get_logger` hands its events to the standard library's logging under
``interlatent_live.…``: a program that only imports this package keeps its own log set-up, and our
own processes call :func:`configure_logging` once. Logs are for programs (JSON lines) or, on a
terminal, for people; they never carry a key or a token.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO, cast

import structlog

from interlatent_live.log_pipe import PipeHandler, is_pipe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping

    from structlog.typing import EventDict, WrappedLogger

    Processor = Callable[
        [WrappedLogger, str, EventDict], Mapping[str, Any] | str | bytes | tuple[Any, ...]
    ]

LogFormat = Literal["auto", "json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]

_ROOT: Final = "interlatent_live"
_HIDDEN: Final = "(hidden)"
_SECRET: Final = re.compile(
    r"(?:^|_)(?:api_?key|token|secret|password|authorization)$", re.IGNORECASE
)
_LEVELS: Final = ("debug", "info", "warning", "error", "critical")


def get_logger(name: str, **bound: Any) -> structlog.stdlib.BoundLogger:
    """A logger named ``interlatent_live.NAME`` with ``bound`` in each of its events."""
    logger = structlog.wrap_logger(
        logging.getLogger(f"{_ROOT}.{name}"),
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    return cast("structlog.stdlib.BoundLogger", logger.bind(**bound))


def configure_logging(
    service: str,
    *,
    level: LogLevel = "info",
    log_format: LogFormat = "auto",
    stream: TextIO | None = None,
) -> None:
    """Make this process write its log, one event a line, to ``stream`` (standard error).

    ``auto`` is for people when the stream is a terminal and JSON lines otherwise. Every event says
    which ``service`` it is of, unless it names one itself. Into a pipe that nobody reads it never
    waits (:mod:`interlatent_live.log_pipe`). Called again, it replaces what it set.
    """
    out = sys.stderr if stream is None else stream
    people = log_format == "console" or (log_format == "auto" and out.isatty())
    handler = PipeHandler(out.fileno()) if is_pipe(out) else logging.StreamHandler(out)
    handler.set_name(_ROOT)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.PositionalArgumentsFormatter(),
                structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
                _say_service(service),
                _hide_secrets,
                structlog.processors.StackInfoRenderer(),
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *(_for_people(out) if people else _for_programs()),
            ],
        )
    )
    root = logging.getLogger()
    for old in [one for one in root.handlers if one.get_name() == _ROOT]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(_ROOT).setLevel(level.upper())


def relay_line(log: structlog.stdlib.BoundLogger, service: str, stream: str, text: str) -> None:
    """Log a line that another process wrote: its own event when it is one, else as ``output``."""
    event = _parse(text)
    if event is None:
        log.info("output", service=service, stream=stream, text=text)
        return
    level = str(event.pop("level", "info")).lower()
    name = str(event.pop("event"))
    event.pop("at", None)
    event.pop("logger", None)
    known = level if level in _LEVELS else "info"
    log.log(getattr(logging, known.upper()), name, **{"service": service, **event})


def _parse(text: str) -> dict[str, Any] | None:
    if not text.startswith("{"):
        return None
    try:
        event = json.loads(text)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def _for_people(out: TextIO) -> list[Processor]:
    return [structlog.dev.ConsoleRenderer(colors=out.isatty(), timestamp_key="at", pad_event_to=0)]


def _for_programs() -> list[Processor]:
    return [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(default=str, ensure_ascii=False),
    ]


def _say_service(service: str) -> Processor:
    def add(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event.setdefault("service", service)
        return event

    return add


def _hide_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    _hide(event)
    return event


def _hide(values: MutableMapping[str, Any]) -> None:
    for key, value in values.items():
        if _SECRET.search(str(key)):
            values[key] = _HIDDEN
        elif isinstance(value, dict):
            copied = dict(value)
            _hide(copied)
            values[key] = copied
