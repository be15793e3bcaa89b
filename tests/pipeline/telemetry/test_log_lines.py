"""The program's lines: time and level as text, one object a line as JSON, workers' lines as the driver's own."""

import json
import logging
import re

import pytest

from pipeline.telemetry.log_lines import about_run, last_line, record_from, send_log_lines, show_log_lines
from tests.pipeline.test_shown_text import HOSTILE

logger = logging.getLogger("pipeline.some_room.some_file")


@pytest.fixture(autouse=True)
def loggers_as_before():
    kept = [
        (log, log.handlers[:], log.level, log.propagate) for log in map(logging.getLogger, ("pipeline", "m2f_core"))
    ]
    for log, *_ in kept:
        # At the start of a test pytest gives a handler of its own to each logger that does not propagate, and earlier
        # tests leave these so. The handler's copy would have a lone surrogate, which pytest-xdist cannot send.
        log.propagate = True
    yield
    show_log_lines()  # forgets the run
    for log, handlers, level, propagate in kept:
        log.handlers[:], log.level, log.propagate = handlers, level, propagate


def objects(capsys) -> list[dict]:
    """Every line on stderr is one object; no number that JSON does not know."""
    return [json.loads(line, parse_constant=pytest.fail) for line in capsys.readouterr().err.splitlines()]


def test_a_line_of_text_has_time_and_level(capsys):
    show_log_lines()
    show_log_lines()  # again: still one handler
    logger.info("planned %d images", 7)
    [line] = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ INFO: planned 7 images", line)


def test_a_line_of_json_has_time_level_logger_run_and_shard(capsys):
    show_log_lines("json")
    logger.info('a "quoted"\nmessage')
    about_run("night-1")
    logger.warning("late", extra={"shard": 7})
    first, second = objects(capsys)
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {"level": "INFO", "logger": logger.name, "message": 'a "quoted"\nmessage'}
    assert second.pop("time")
    assert second == {"level": "WARNING", "logger": logger.name, "run_id": "night-1", "shard": 7, "message": "late"}


def test_a_job_in_the_same_process_does_not_have_the_run_of_the_one_before(capsys):
    show_log_lines("json")
    about_run("night-1")
    show_log_lines("json")
    logger.info("x")
    assert "run_id" not in objects(capsys)[0]


def test_the_last_line_is_an_object_too_and_nothing_follows(capsys):
    show_log_lines("json")
    try:
        raise ValueError("of Ray")
    except ValueError as error:
        last_line("job.py", "it broke", error=error)
    logger.warning("said while Ray shuts down")
    [line] = objects(capsys)
    assert (line["level"], line["logger"], line["message"]) == ("ERROR", "job.py", "it broke")
    assert "Traceback" in line["exception"] and "ValueError: of Ray" in line["exception"]


def test_the_last_line_as_text_names_the_program(capsys):
    show_log_lines()
    last_line("job.py", "interrupted", level=logging.WARNING)
    last_line("job.py", "it broke")
    assert capsys.readouterr().err == "job.py: interrupted\njob.py: error: it broke\n"


def test_a_line_of_a_worker_arrives_as_it_was_sent(capsys):
    send_log_lines()
    logger.error("a crash", extra={"shard": 3})
    sent = capsys.readouterr().err.strip()
    record = record_from(f"{sent} [repeated 2x across cluster]", "SegmentImages 12", logging.INFO)
    assert (record.levelno, record.name, record.shard) == (logging.ERROR, logger.name, 3)
    show_log_lines("json")
    logging.getLogger(record.name).handle(record)
    show_log_lines()
    logging.getLogger(record.name).handle(record)
    as_json, as_text = capsys.readouterr().err.splitlines()
    assert json.loads(as_json)["worker"] == "SegmentImages 12" and json.loads(as_json)["shard"] == 3
    assert as_text.endswith("Z ERROR: a crash [repeated 2x across cluster] [SegmentImages 12]")


@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
def test_names_of_others_cannot_rewrite_a_terminal_or_forge_a_line(hostile, capsys):
    key = f"s3://b/a{hostile}2026-11-29T14:07:53Z INFO: forged"
    show_log_lines()
    logger.warning("image %s", key, extra={"worker": key})
    last_line("job.py", f"image {key}")
    show_log_lines("json")
    logger.warning("image %s", key, extra={"image_key": key})
    text = capsys.readouterr().err
    *lines, as_json = text.split("\n")[:-1]
    assert len(lines) == 2 and hostile not in text.replace("\n", "")
    assert json.loads(as_json)["image_key"] == key and json.loads(as_json)["message"] == f"image {key}"


@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
def test_a_workers_line_about_any_key_arrives_whole(hostile, capsys):
    """U+2028 or a C1 control in a key once cut the line in two, and neither half was JSON."""
    send_log_lines()
    logger.error("lost", extra={"shard": 3, "image_key": f"s3://b/a{hostile}b"})
    [sent] = capsys.readouterr().err.splitlines()
    record = record_from(sent, "SegmentImages 12", logging.INFO)
    assert (record.shard, record.image_key, record.getMessage()) == (3, f"s3://b/a{hostile}b", "lost")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_secrets_are_masked_in_messages_fields_and_stacks(log_format, capsys, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SECRET-of-the-environment")
    secrets = "s3://KEY:SECRET@b/x SECRET-of-the-environment https://a.blob/x?sig=SECRET"
    show_log_lines(log_format)
    try:
        raise OSError(secrets)
    except OSError as error:
        logger.exception("lost %s", secrets, extra={"worker": secrets, "image_key": secrets})
        last_line("job.py", secrets, error=error)
    said = capsys.readouterr().err
    assert "SECRET" not in said and "OSError: s3://***@b/x" in said and "Traceback" in said


@pytest.mark.parametrize("line", ["plain words", "{", '{"a": 1}', "[1]", "7", '"text"', '{"level": "INFO"} x'])
def test_any_other_line_of_a_worker_is_its_own_message(line):
    record = record_from(line, "raylet", logging.WARNING)
    assert (record.getMessage(), record.levelno, record.name) == (line, logging.WARNING, "pipeline.worker")
