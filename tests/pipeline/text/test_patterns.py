"""Patterns: RE2 and Python read the translation alike, and it takes the names that a naive matcher takes."""

import re

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.text.patterns import any_literal, any_regex, as_regex, without_wildcards

NAMES = st.text("ab.-[!/\n#é", max_size=6)
PIECES = st.sampled_from(
    ["a", "b", ".", "-", "/", "*", "?", "**", "**/", "[ab]", "[!a]", "[!]]", "[a-b]", "{a,b.}", "é", "+"]
)
PATTERNS = st.lists(PIECES, min_size=1, max_size=5).map("".join)


def takes(pattern: str, path: str) -> bool:
    """By trying all ways, one character at a time."""
    if "/" not in pattern:
        return any(matches(pattern, rest) for rest in suffixes(path))
    return matches(pattern.removeprefix("/"), path)


def suffixes(path: str) -> list[str]:
    return [path, *(path[place + 1 :] for place, character in enumerate(path) if character == "/")]


def matches(pattern: str, path: str) -> bool:
    if not pattern:
        return not path
    if pattern.startswith("**/"):
        return any(matches(pattern[3:], rest) for rest in suffixes(path))
    if pattern.startswith("**"):
        return any(matches(pattern[2:], path[start:]) for start in range(len(path) + 1))
    if pattern[0] == "*":
        name = path.partition("/")[0]
        return any(matches(pattern[1:], path[start:]) for start in range(len(name) + 1))
    if pattern[0] == "?":
        return path[:1] not in ("", "/") and matches(pattern[1:], path[1:])
    if pattern[0] == "[":
        end = pattern.index("]", 3 if pattern[1] == "!" else 2)
        inside = pattern[1:end].removeprefix("!").replace("a-b", "ab")
        is_in = bool(path) and path[0] in inside
        wanted = path[:1] not in ("", "/") and not is_in if pattern[1] == "!" else is_in
        return wanted and matches(pattern[end + 1 :], path[1:])
    if pattern[0] == "{":
        end = pattern.index("}")
        return any(matches(one + pattern[end + 1 :], path) for one in pattern[1:end].split(","))
    return path[:1] == pattern[0] and matches(pattern[1:], path[1:])


@given(PATTERNS, st.lists(NAMES, min_size=1, max_size=8))
def test_a_pattern_takes_what_a_naive_matcher_takes(pattern, paths):
    regex = any_regex((pattern,))
    expected = [takes(pattern, path) for path in paths]
    assert [re.fullmatch(regex, path) is not None for path in paths] == expected
    assert all(
        re.search(any_literal((pattern,)), path) for path, is_taken in zip(paths, expected, strict=True) if is_taken
    )
    assert pc.match_substring_regex(pa.array(paths), regex).to_pylist() == expected


@pytest.mark.parametrize("pattern", ["a[b", "[!", "{a,b", "{a,{b}}", "[b-a]"])
def test_a_malformed_pattern_is_an_error(pattern):
    with pytest.raises(ValueError, match=r"not closed|not understood|empty"):
        as_regex(pattern)


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("s3://b/a/photo-*.jpg", ("s3://b/a/", "photo-*.jpg")),
        ("s3://b/**/x", ("s3://b/", "**/x")),
        ("s3://b/a{1,2}/x", ("s3://b/", "a{1,2}/x")),
        ("/data/2026-*/", ("/data/", "2026-*/")),
        ("*.jpg", (".", "*.jpg")),
        ("s3://b/a", ("s3://b/a", "")),
    ],
)
def test_an_input_is_a_folder_and_a_pattern(uri, parts):
    assert without_wildcards(uri) == parts
