"""How jobs end: exit code and line for each way, here without a job around it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jobs import (
    drill,
    evaluate,
    export_model,
    finetune,
    make_scenes,
    nights,
    plan_bucket,
    roll_back,
    segment_bucket,
    selfcheck,
    tidy,
)
from jobs.common import night_job
from jobs.common.ends import run_job
from pipeline.config import Settings
from pipeline.errors import BrokenRunError, RunError, StoreUnavailableError
from tests.support.places import ROOT

KEPT = "all is kept"


def raising(error: BaseException, cause: Exception | None = None):
    def work() -> int:
        raise error from cause

    return work


@pytest.mark.parametrize("code", [0, 1])
def test_a_job_that_is_done_says_its_own_code(code, capsys):
    assert run_job("job.py", lambda: code) == code
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [RunError("no input"), StoreUnavailableError("no input")])
def test_a_job_that_cannot_start_is_code_2(error, capsys):
    with pytest.raises(SystemExit) as stop:
        run_job("job.py", raising(error), kept=KEPT)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "job.py: error: no input\n", "nothing was begun, so that nothing is kept"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (BrokenRunError("run a broke"), 1, "job.py: error: run a broke; all is kept\n"),
        (KeyboardInterrupt(), 130, "job.py: interrupted; all is kept\n"),
        (SystemExit(143), 143, "job.py: stopped by SIGTERM; all is kept\n"),
        (SystemExit(15), 143, "job.py: stopped by SIGTERM; all is kept\n"),  # of the handler that ray.init sets
    ],
)
def test_a_job_that_is_stopped_says_what_is_kept(error, code, line, capsys):
    assert run_job("job.py", raising(error), kept=KEPT) == code
    assert capsys.readouterr().err == line


def test_a_job_that_keeps_nothing_says_nothing_of_it(capsys):
    assert run_job("job.py", raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "job.py: interrupted\n"


def test_a_broken_run_prints_one_line_and_leaves_its_traceback_in_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run_job("job.py", raising(BrokenRunError("run a broke"), OSError("the disk is full"))) == 1
    said = capsys.readouterr().err
    [line] = said.splitlines()
    [name] = re.findall(r"^job.py: error: run a broke \(traceback: (.+)\)$", line)
    text = Path(name).read_text()
    assert "OSError: the disk is full" in text and "BrokenRunError: run a broke" in text
    assert list(tmp_path.iterdir()) == [Path(name)]


def test_a_traceback_that_cannot_be_written_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    assert run_job("job.py", raising(BrokenRunError("run a broke"), OSError("the disk is full"))) == 1
    lines = capsys.readouterr().err.splitlines()
    assert "OSError: the disk is full" in lines and lines[-1] == "job.py: error: run a broke"


@pytest.mark.parametrize("error", [ValueError("a bug"), SystemExit(3)])
def test_bugs_and_other_exits_are_left_as_they_are(error):
    with pytest.raises(type(error)) as raised:
        run_job("job.py", raising(error))
    assert raised.value is error


BUG = """
from jobs.common.ends import run_job
def work():
    raise ValueError("s3://K:SECRET@b \u202e")
run_job("job.py", work)
"""


def test_the_stack_of_a_bug_is_text_without_secrets():
    done = subprocess.run([sys.executable, "-c", BUG], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and done.stderr.startswith("Traceback")
    assert done.stderr.endswith("ValueError: s3://***@b \\u202e\n")


def test_a_signal_leaves_through_the_exits_of_each_with(capsys):
    left = []

    def work() -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            left.append("with")
        return 0

    before = signal.getsignal(signal.SIGTERM)
    assert run_job("job.py", work) == 143
    assert left == ["with"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_of_the_main_thread_signals_are_left_alone():
    """Where signal.signal would raise."""
    codes = []
    thread = threading.Thread(target=lambda: codes.append(run_job("job.py", lambda: 0)))
    thread.start()
    thread.join()
    assert codes == [0]


ENDS = [
    (lambda: 1, "finished", 1, ""),
    (raising(StoreUnavailableError("no input")), "refused", 2, "no input"),
    (raising(BrokenRunError("run a broke")), "broke", 1, "run a broke"),
    (raising(KeyboardInterrupt()), "stopped", 130, "interrupted; all is kept"),
    (raising(SystemExit(143)), "stopped", 143, "stopped by SIGTERM; all is kept"),
    (raising(SystemExit(3)), "broke", 3, "the job exits with 3"),
    (raising(ValueError("x")), "broke", 1, "a bug of this program: ValueError: x"),
]


@pytest.mark.parametrize(("work", "end", "code", "reason"), ENDS)
def test_each_end_is_told_before_the_last_line(work, end, code, reason, capsys):
    told = []

    def on_end(*facts: object) -> None:
        told.append((*facts, capsys.readouterr().err))

    with contextlib.suppress(SystemExit, ValueError):
        assert run_job("job.py", work, kept=KEPT, on_end=on_end) == code
    assert told == [(end, code, reason, "")]


UNREAD = """
import sys
from jobs.common.ends import leave_with, run_job
def work():
    for line in range({lines}):
        print("a line of a list")
    return 0
{end}(lambda: run_job("job.py", work, on_end=lambda *facts: print(*facts, file=sys.stderr)))
"""


@pytest.mark.parametrize("lines", [1, 100_000])  # written when the job ends; written while the job works
@pytest.mark.parametrize("end", ["leave_with", "(lambda main: sys.exit(main()))"])
@pytest.mark.parametrize("buffered", [[], ["-u"]])
def test_a_job_whose_output_nobody_reads_ends_without_a_stack(lines, end, buffered):
    code, errors = unread([sys.executable, *buffered, "-c", UNREAD.format(lines=lines, end=end)])
    assert (code, errors) == (141, "stopped 141 nobody reads what the job prints\n")


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_a_text_that_nobody_reads_ends_without_a_stack(flag):
    assert unread([sys.executable, "jobs/nights.py", flag]) == (141, "")


def test_another_pipe_that_breaks_is_no_unread_output(capsys):
    with pytest.raises(BrokenPipeError):
        run_job("job.py", raising(BrokenPipeError("of a socket")))


def unread(command: list[str]) -> tuple[int, str]:
    """Exit code and standard error of `command`, whose output goes to a pipe without a reader."""
    reader, writer = os.pipe()
    os.close(reader)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, cwd=ROOT, env=buffered, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "job",
    [
        drill,
        evaluate,
        export_model,
        finetune,
        make_scenes,
        nights,
        plan_bucket,
        roll_back,
        segment_bucket,
        selfcheck,
        tidy,
    ],
)
def test_every_job_ends_here(job, monkeypatch, capsys):
    """Ctrl-C at once, while the job is being loaded."""
    works = {
        "_drill",
        "_evaluate",
        "_export",
        "_train",
        "_draw",
        "_plan",
        "_check",
        "_list",
        "_roll_back",
        "_tidy",
        "set_ray_environment",
    }
    works &= set(vars(job))
    for work in works:
        monkeypatch.setattr(job, work, lambda *_: raising(KeyboardInterrupt())())
    monkeypatch.setattr(night_job, "set_ray_environment", raising(KeyboardInterrupt()))
    monkeypatch.setattr(sys, "argv", [job.PROG])
    monkeypatch.setattr(job, "parse", lambda *args, **kwargs: Settings("in", "out"))
    assert job.main() == 130
    assert capsys.readouterr().err.startswith(f"{job.PROG}: interrupted")
