"""The program's own lines on stderr: text for people, or one JSON object a line for machines.

    2026-11-29T14:07:53Z INFO: run 20261129-140753-116d: 40 images in 3 shards, 0 done before
    {"time": "2026-11-29T14:07:53.412Z", "level": "INFO", "logger": "pipeline.run", "run_id": "...", "message": "..."}

Times are UTC, so that lines of all nodes of a cluster sort together. Worker processes always write JSON; the driver
reads these lines and writes them again in its own format (`pipeline/cluster/worker_lines.py`). Each line is free of
secrets and of characters that a terminal obeys (`pipeline/shown_text.py`).
"""

import json
import logging
import sys
import time
import traceback
from typing import Any, Literal

from pipeline.shown_text import masked, printable_json, printable_lines, shown

LogFormat = Literal["text", "json"]

# Loggers of the program itself. The lines of other libraries are not shown here.
_LOGGERS = ("pipeline", "m2f_core")
# Attributes of a record (`extra=`) that are fields of a JSON line.
FIELDS = ("shard", "image_key", "progress", "worker")

_run: dict[str, str] = {}
_format: LogFormat = "text"
_ended = False  # the last line is written: drop later lines, which only describe Ray's shutdown


class _OnStderr(logging.StreamHandler):
    """Writes to the current sys.stderr: a live display replaces sys.stderr, to print lines above itself."""

    def __init__(self, formatter: logging.Formatter):
        super().__init__(sys.stderr)
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        if _ended:
            return
        self.stream = sys.stderr
        super().emit(record)


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s: %(message)s", datefmt="%Y-%m-%dT%H:%M:%SZ")
        self.converter = time.gmtime

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        record.message = shown(record.message)
        worker = getattr(record, "worker", None)
        return super().formatMessage(record) + (f" [{shown(worker)}]" if worker else "")

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return printable_lines(super().formatException(ei))


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            **_run,
            **{name: value for name in FIELDS if (value := getattr(record, name, None)) is not None},
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = "".join(traceback.format_exception(*record.exc_info))
        line = {name: masked(value) if isinstance(value, str) else value for name, value in line.items()}
        return printable_json(json.dumps(line, ensure_ascii=False, default=str))


def show_log_lines(log_format: LogFormat = "text") -> None:
    """Write the program's lines of level INFO and above to stderr in this format. May be called again."""
    global _format, _ended
    _format, _ended = log_format, False
    _run.clear()
    _write_with(_Json() if log_format == "json" else _Text())
    for name in _LOGGERS:  # Ray gives the driver's root logger a handler of its own
        logging.getLogger(name).propagate = False


def send_log_lines(run_id: str | None = None) -> None:
    """Call in a worker process: write log lines as JSON, so that the driver can read them."""
    _write_with(_Json())
    if run_id is not None:
        about_run(run_id)


def line_to_send(logger_name: str, message: str, **fields: Any) -> str:
    """An error as a line that `send_log_lines` would write, for code that must not wait for a lock of `logging`."""
    record = logging.LogRecord(logger_name, logging.ERROR, "", 0, message, None, None)
    vars(record).update(fields)
    return _Json().format(record)


def about_run(run_id: str) -> None:
    """Add this run_id to all later JSON lines."""
    _run["run_id"] = run_id


def last_line(prog: str, message: str, *, level: int = logging.ERROR, error: BaseException | None = None) -> None:
    """Write why the program ends: `prog: message` on stderr, or a JSON object that includes the stack of `error`."""
    global _ended
    _ended = True
    if _format == "json":
        exc_info = None if error is None else (type(error), error, error.__traceback__)
        record = logging.LogRecord(prog, level, "", 0, message, None, exc_info)
        print(_Json().format(record), file=sys.stderr, flush=True)
        return
    kind = "error: " if level >= logging.ERROR else ""
    print(shown(f"{prog}: {kind}{message}"), file=sys.stderr, flush=True)


def record_from(line: str, worker: str, otherwise: int) -> logging.LogRecord:
    """Make a record of a worker's line; text that `send_log_lines` did not write gets the level `otherwise`."""
    fields, rest = _fields_of(line)
    level = logging.getLevelName(str(fields.get("level")))  # for a name this returns the number
    message = f"{fields.get('message', '')}{rest}"
    name = str(fields.get("logger", "pipeline.worker"))
    record = logging.LogRecord(name, level if isinstance(level, int) else otherwise, "", 0, message, None, None)
    record.worker = worker
    for name in ("shard", "image_key"):
        if name in fields:
            setattr(record, name, fields[name])
    return record


def _fields_of(line: str) -> tuple[dict[str, Any], str]:
    """The fields of a JSON line and the text after the JSON; no fields and the whole line if it is no JSON log line."""
    try:
        fields, end = json.JSONDecoder().raw_decode(line)
    except ValueError:
        return {}, line
    if isinstance(fields, dict) and {"level", "logger", "message"} <= set(fields):
        return fields, line[end:]
    return {}, line


def _write_with(formatter: logging.Formatter) -> None:
    for name in _LOGGERS:
        log = logging.getLogger(name)
        for handler in [handler for handler in log.handlers if isinstance(handler, _OnStderr)]:
            log.removeHandler(handler)
        log.addHandler(_OnStderr(formatter))
        log.setLevel(logging.INFO)
