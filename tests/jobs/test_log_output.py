"""What a person at a terminal sees of a run, and what a machine reads: the real job, on a real terminal first."""

import json
import re
import subprocess
import sys

import pytest

from jobs import segment_bucket
from tests.support.tables import read_report
from tests.support.terminal import CTRL_C, Terminal

LIVE = re.compile(
    r"(loading the program|checking the settings, the checkpoint and the output|listing the input|starting Ray|"
    r"loading the model|first shard|publishing) ━+ \d+:\d\d:\d\d"
    r"|segmenting [━╸╺ ]+ [\d,]+/[\d,]+ images, [\d.]+ images/s, \d+ failed, \d+:\d\d:\d\d left, slowest: \w+ .* image"
)
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (INFO|WARNING): .+")
STOPPED = re.compile(
    r"segment_bucket\.py: interrupted; (\d+) of 11 images are done and kept; run the same command again to continue"
)


@pytest.mark.thorough
def test_a_terminal_has_one_live_line_and_ctrl_c_keeps_what_is_done_then_json_finishes_it(
    photographs, tiny_checkpoint, tmp_path
):
    command = [
        *(sys.executable, segment_bucket.__file__, "--input", str(photographs), "--output", str(tmp_path)),
        *("--model", str(tiny_checkpoint), "--image-size", "320:533", "--images-per-shard", "1"),
    ]
    terminal = Terminal(command)
    for words in ("loading the program", "starting Ray", "loading the model", "segmenting"):
        terminal.wait_for(words)
    terminal.press(CTRL_C)
    assert terminal.exit_code() == 130, terminal.output
    *lines, last = terminal.lines()
    stopped = STOPPED.fullmatch(last)
    assert stopped is not None, terminal.output
    strangers = [line for line in lines if not LIVE.fullmatch(line) and not LOG_LINE.fullmatch(line)]
    assert not strangers
    assert not any("INFO: loading" in line for line in lines), "the live line says it"

    done = subprocess.run(
        [*command, "--log-format", "json", "--progress-seconds", "0.1"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stderr.splitlines()]
    report = read_report(tmp_path)
    assert report["num_shards_done_before"] == int(stopped[1]) >= 1
    assert said[0]["message"] == "loading the program"
    assert {line.get("run_id") for line in said if line["message"] == "loading the model"} == {report["run_id"]}
    counted = [line["progress"] for line in said if "progress" in line]
    assert counted and counted[-1]["images"] == 11 and counted[-1]["failed"] == 0
    assert {line["level"] for line in said} == {"INFO"}
