"""Every command of a job that README or docs show exists, and has the flags that it is shown with."""

import dataclasses
import re

import pytest

from jobs.common.command_line import COMMANDS
from pipeline.setting_fields import flag, plain_type
from tests.support.command_line_page import JOBS
from tests.support.places import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FILES = {**{file: file for file in COMMANDS}, **{command: file for file, command in COMMANDS.items()}}
COMMON = {"--config", "--help", "--version"}
COMMAND = re.compile(r"(?:python3? (?:-m )?jobs/(\w+\.py)|\b(m2f-[a-z-]+))((?: [^\n`|;>]*)?)")


def commands(text: str) -> list[tuple[str, list[str]]]:
    """(file of the job, flags) of each command line in the page; lines that end in a backslash go on."""
    joined = re.sub(r"\\\n\s*", " ", text)
    found = []
    for match in COMMAND.finditer(joined):
        if (name := match[1] or match[2]) in FILES or match[1]:
            found.append((FILES.get(name, name), re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", match[3])))
    return found


def flags_of(file: str) -> set[str]:
    settings_class = JOBS[file]
    fields = dataclasses.fields(settings_class)
    negated = {flag(f"no_{field.name}") for field in fields if plain_type(field) is bool}
    return {flag(field.name) for field in fields} | negated | COMMON


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_exist_and_have_these_flags(page):
    for file, flags in commands(page.read_text()):
        assert file in COMMANDS, f"{page.name} names jobs/{file}, which is no job"
        unknown = set(flags) - (COMMON if file == "demo.py" else flags_of(file))
        assert not unknown, f"{page.name} shows {file} with {sorted(unknown)}"


def test_the_search_finds_commands():
    text = "```\npython jobs/nights.py --output o \\\n    --last 3\n```\n`m2f-segment --nonsense 1` and m2f-pipeline"
    assert commands(text) == [("nights.py", ["--output", "--last"]), ("segment_bucket.py", ["--nonsense"])]
    assert sum(len(commands(page.read_text())) for page in PAGES) > 20
