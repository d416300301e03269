"""Logs of a role, with the trace of each record: one line per record on one stream, as JSON or as text for people, and
the same records by OTLP.
"""

import datetime as dt
import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from opentelemetry._logs import LoggerProvider, SeverityNumber
from opentelemetry.context import get_current
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.trace import format_span_id, format_trace_id

from bronze.errors import Misconfigured
from bronze.settings import LogFormat
from bronze.telemetry.context import span_context

#: The attributes of a record without `extra`; all others were added by `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

#: Libraries whose INFO records repeat what spans and metrics show, or are of use only to their authors.
_VERBOSE_LOGGERS = ("httpx", "botocore", "urllib3", "asyncio")

#: The exporters' loggers: while the collector is unavailable, they log an error for each batch.
_EXPORTERS = "opentelemetry"
_EXPORTERS_INTERVAL_S = 60


def configure(log_format: LogFormat, level: str, resource: Mapping[str, str], stream: TextIO | None = None) -> None:
    """Sends the records of all loggers, also uvicorn's, to one handler on `stream` (standard output by default).

    Raises `Misconfigured` if there is no such level.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise Misconfigured(f"BRONZE_LOG_LEVEL: {level!r} is not a log level; use DEBUG, INFO, WARNING or ERROR")
    handler = Output(stream or sys.stdout)
    handler.setFormatter(Json(resource) if log_format is LogFormat.JSON else Console())
    handler.addFilter(RepetitionFilter())
    root = logging.getLogger()
    root.setLevel(number)
    for earlier in root.handlers[:]:
        if isinstance(earlier, ExportHandler) or isinstance(earlier.formatter, (Json, Console)):
            root.removeHandler(earlier)
    root.addHandler(handler)
    for name in _VERBOSE_LOGGERS:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        uvicorn = logging.getLogger(name)
        uvicorn.handlers.clear()
        uvicorn.propagate = True
    logging.getLogger("uvicorn.access").setLevel(logging.CRITICAL)  # spans and metrics show requests


class Output(logging.StreamHandler[TextIO]):
    """Writes records to a stream. Once nobody reads it any more, as after `| head`, they are lost without a traceback
    for each.
    """

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  the library's name
        if not isinstance(sys.exception(), BrokenPipeError):
            super().handleError(record)


class Json(logging.Formatter):
    """JSON (RFC 8259), one object per line; `resource` identifies the process."""

    def __init__(self, resource: Mapping[str, str]) -> None:
        super().__init__()
        self._resource = {key.replace(".", "_"): resource[key] for key in ("service.name", "service.instance.id")}

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_trace(),
            **self._resource,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        line |= {key: value for key, value in _extra(record).items() if key not in line}
        return json.dumps(line, ensure_ascii=False, default=str)


class Console(logging.Formatter):
    """Text for people: time of day (UTC), level, logger, message, then the other fields as key=value."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{key}={value}" for key, value in (_extra(record) | _trace()).items())
        time = _time(record).strftime("%H:%M:%S")
        line = f"{time} {record.levelname:<7} {record.name}: {record.getMessage()} {fields}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class ExportHandler(logging.Handler):
    """Passes each record to the SDK, which exports it from a separate thread; `extra` becomes attributes.

    Records of the exporters are not exported: each failed export would add a record to the queue.
    """

    def __init__(self, loggers: LoggerProvider) -> None:
        super().__init__()
        self._loggers = loggers

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(_EXPORTERS) or not is_instrumentation_enabled():  # it is disabled during an export
            return
        try:
            self._loggers.get_logger(record.name).emit(
                timestamp=int(record.created * 1e9),
                observed_timestamp=time.time_ns(),
                context=get_current(),
                severity_number=_severity(record.levelno),
                severity_text=record.levelname,
                body=record.getMessage(),
                attributes={key: _plain(value) for key, value in _extra(record).items()},
                exception=record.exc_info[1] if record.exc_info else None,
            )
        except Exception:  # noqa: BLE001  as in logging's own handlers; for example wrong arguments of a message
            self.handleError(record)


class RepetitionFilter(logging.Filter):
    """Lets each message of an exporter pass once per minute, with the number of messages that it held back."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith(_EXPORTERS):
            return True
        key = (record.name, str(record.msg))
        passed_at, held_back = self._last.get(key, (float("-inf"), 0))
        if record.created - passed_at < _EXPORTERS_INTERVAL_S:
            self._last[key] = (passed_at, held_back + 1)
            return False
        self._last[key] = (record.created, 0)
        if held_back:
            record.held_back = held_back
        return True


def _time(record: logging.LogRecord) -> dt.datetime:
    return dt.datetime.fromtimestamp(record.created, dt.UTC)


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _plain(value: object) -> str | bool | float:
    return value if isinstance(value, (str, bool, int, float)) else str(value)


def _severity(level: int) -> SeverityNumber:
    """The severity in the data model of logs: DEBUG is 5, INFO 9, WARNING 13, ERROR 17 and CRITICAL 21."""
    return SeverityNumber(min(max(1, 1 + level // 10 * 4), SeverityNumber.FATAL.value))


def _trace() -> dict[str, str]:
    span = span_context()
    if not span.is_valid:
        return {}
    return {"trace_id": format_trace_id(span.trace_id), "span_id": format_span_id(span.span_id)}
