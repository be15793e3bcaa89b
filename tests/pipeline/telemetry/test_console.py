"""Tables and lines on standard output show text of others as text: no markup, no pictures, no escape sequences."""

import ast
import io
import sys

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.drill.drill import Finding
from pipeline.drill.report import print_findings
from pipeline.evaluate.report import print_evaluation
from pipeline.report.summary import print_preview, print_summary
from pipeline.runs.accounting import Report
from pipeline.runs.preview import Preview
from pipeline.schema import REASONS
from pipeline.telemetry.console import output_console, say
from tests.pipeline.test_shown_text import HOSTILE
from tests.support.places import ROOT

NAME = f"[bold]x[/bold] :cat: {''.join(HOSTILE)} s3://KEY:SECRET@b"
SHOWN = r"[bold]x[/bold] :cat: \x1b]0;owned\x07\r"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def is_text(text: str) -> bool:
    """NAME is in `text`, as characters, without its secret."""
    active = [hostile for hostile in HOSTILE if hostile in text.replace("\n", "")]
    return SHOWN in text and r"\r\n\u202e" in text and "SECRET" not in text and not active


def test_a_cell_a_title_and_a_line_hold_characters_only(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    table = Table("head", NAME, title=NAME)
    table.add_row(NAME, Text("ok"))
    output_console().print(table)
    say(NAME)
    out = capsys.readouterr().out
    assert is_text(out)
    assert out.count(SHOWN) == 4


def test_on_a_terminal_only_the_styles_of_ours_are_sequences(monkeypatch):
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "500")
    findings = [Finding("step", "done", NAME, False)]
    print_findings(findings)
    assert "\x1b[1;31mWRONG" in terminal.getvalue(), "a style of ours"
    assert "\x1b]0;" not in terminal.getvalue() and SHOWN in terminal.getvalue()


def test_the_summaries_are_printed_by_this_console(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    name = NAME
    report = Report(name, "", 1, 0, 1, 0, {"new": 1}, 0, {name: 1}, 1, 0, 1.0, 1.0, "", {"images": 1, "segments": 1})
    print_summary(report, name, 0.0)
    assert is_text(capsys.readouterr().out)
    print_preview(Preview({REASONS[0]: 1}, {REASONS[0]: 1}, (), name))
    assert is_text(capsys.readouterr().out)


def test_the_scores_are_printed_by_this_console(capsys):
    scores = {"n": 1, "per_class": [{"name": NAME, "pixels": 1}, {"name": "b", "pixels": 0}], "mIoU": 1.0}
    semantic = {**scores, "fwIoU": 1.0, "mAcc": 1.0, "pAcc": 1.0}
    print_evaluation({"run_id": NAME, "ground_truth": {}, "semantic": semantic})
    assert is_text(capsys.readouterr().out)


def prints(source: str) -> list[int]:
    """Lines that call `print`, or make a console of rich for standard output."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if node.func.id == "print" or (node.func.id == "Console" and not node.keywords)
    ]


# Own text only: the demo's names, the version; log_lines calls `shown` itself.
MAY_PRINT = {"jobs/demo.py", "jobs/common/command_line.py", "pipeline/telemetry/log_lines.py"}


@pytest.mark.parametrize("package", ["jobs", "pipeline"])
def test_nothing_is_printed_past_this_console(package):
    files = {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / package).rglob("*.py")}
    assert {name for name, source in files.items() if prints(source)} <= MAY_PRINT
    assert prints("print(1)\nConsole().print(table)\n") == [1, 2] and Console is not None
