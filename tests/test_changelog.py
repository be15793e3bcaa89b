"""CHANGELOG.md has the form of keepachangelog.com: what is not released first, then each release with its date."""

import re
from itertools import pairwise

import pytest
from packaging.version import Version

import m2f_core
from tests.support.places import ROOT

KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def problems(page: str) -> list[str]:
    """What is wrong with the form of a changelog."""
    found = []
    heads = re.findall(r"^## (.*)$", page, flags=re.MULTILINE)
    if heads[:1] != ["Unreleased"]:
        found.append("the first section is not 'Unreleased'")
    releases = []
    for head in heads[1:]:
        match = re.fullmatch(r"(\d+\.\d+\.\d+) - (\d{4}-\d{2}-\d{2})", head)
        if match is None:
            found.append(f"'{head}' is not 'X.Y.Z - YYYY-MM-DD'")
        else:
            releases.append((Version(match[1]), match[2]))
    if any(newer[0] <= older[0] or newer[1] < older[1] for newer, older in pairwise(releases)):
        found.append("the releases are not in order, newest first")
    if releases and releases[0][0] > Version(m2f_core.__version__):
        found.append("the newest release is newer than m2f_core.__version__")
    for section in re.split(r"^## .*$", page, flags=re.MULTILINE)[1:]:
        kinds = re.findall(r"^### (.*)$", section, flags=re.MULTILINE)
        if len(set(kinds)) < len(kinds) or not set(kinds) <= KINDS:
            found.append(f"the parts are {kinds}; keepachangelog.com has {sorted(KINDS)}, each once")
        for text in re.split(r"^### .*$", section, flags=re.MULTILINE)[1:]:
            if not re.search(r"^- ", text, flags=re.MULTILINE):
                found.append("a part has no entry")
    return found


def test_the_changelog_has_its_form():
    assert problems((ROOT / "CHANGELOG.md").read_text()) == []


GOOD = """# Changelog

## Unreleased

### Added

- This.

## 0.0.2 - 2026-11-30

### Fixed

- That.

## 0.0.1 - 2026-11-01

### Added

- All.
"""


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("## Unreleased\n", "## Next\n", "not 'Unreleased'"),
        ("0.0.2 - 2026-11-30", "0.0.2", "'0.0.2' is not 'X.Y.Z - YYYY-MM-DD'"),
        ("0.0.2 - 2026-11-30", "0.0.2 - 2026-10-30", "not in order"),
        ("0.0.1 -", "0.0.3 -", "not in order"),
        ("0.0.2 -", "77.0.0 -", "newer than m2f_core.__version__"),
        ("### Fixed", "### Repaired", "the parts are ['Repaired']"),
        ("### Fixed\n", "### Added\n\n- More.\n\n### Added\n", "each once"),
        ("- That.", "", "a part has no entry"),
    ],
)
def test_the_check_can_fail(before, after, said):
    assert problems(GOOD) == []
    assert any(said in problem for problem in problems(GOOD.replace(before, after, 1)))
