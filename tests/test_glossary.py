"""docs/glossary.md: in order, a sentence for each word, and no word that nobody uses."""

import re

from tests.support.places import ROOT

PAGE = ROOT / "docs" / "glossary.md"
ENTRIES = [
    (word, " ".join(meaning.split()))
    for word, meaning in re.findall(
        r"^- \*\*(.+?)\*\*: (.+?)(?=^- |\Z)", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL
    )
]


def used_in() -> str:
    pages = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *(ROOT / "docs").glob("*.md")]
    sources = [path for folder in ("pipeline", "m2f_core", "jobs") for path in (ROOT / folder).rglob("*.py")]
    return "\n".join(path.read_text() for path in (*pages, *sources) if path != PAGE)


def test_words_stand_in_order_and_once():
    words = [word for word, _ in ENTRIES]
    assert len(words) == PAGE.read_text().count("\n- ")
    assert words == sorted(set(words))


def test_each_word_has_one_sentence():
    several = [
        word for word, meaning in ENTRIES if len(re.findall(r"[.!?](?= |$)", meaning)) != 1 or meaning[-1] != "."
    ]
    assert not several


def test_each_word_is_used():
    text = re.sub(r"[\s_-]+", " ", used_in().lower())  # in_flight_actor in the code is "in-flight actor" in prose
    unused = [word for word, _ in ENTRIES if re.sub(r"[_-]", " ", word) not in text]
    assert not unused
