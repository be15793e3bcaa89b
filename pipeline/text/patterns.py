"""Glob patterns over keys of objects, as regular expressions for RE2 (pyarrow, DuckDB) and for Python's `fullmatch`.

*       any characters but /            ?       one character but /
**      any characters, / included      **/     any folders, or none
[a-c]   one of these characters         [!a-c]  one character but these and /
{a,b}   a or b
"""

import re
from functools import lru_cache

_WILDCARD = re.compile(r"[*?\[{]")


def without_wildcards(uri: str) -> tuple[str, str]:
    """(folder, pattern) of an input: the folder ends before the first name with a wildcard; "" if there is none."""
    found = _WILDCARD.search(uri, uri.find("://") + 3 if "://" in uri else 0)
    if found is None:
        return uri, ""
    slash = uri.rfind("/", 0, found.start())
    return uri[: slash + 1] or ".", uri[slash + 1 :]


def as_regex(pattern: str) -> str:
    """The regular expression of a whole path below a folder. ValueError if a bracket or brace is not closed.

    A pattern without a slash is that of a name, in any folder.
    """
    return ("(?:.*/)?" if "/" not in pattern else "") + _translated(pattern.removeprefix("/"))


@lru_cache
def any_literal(patterns: tuple[str, ...]) -> str:
    """A regular expression, found fast, of texts of which a path has one if one of the patterns matches the path."""
    return "|".join(re.escape(_literal_in(pattern)) for pattern in patterns)


def _literal_in(pattern: str) -> str:
    """The longest text that every path has which the pattern matches; "" if there is none."""
    plain = re.sub(r"\[[^\]]*\]+|\{[^}]*\}|\*\*/|[*?]", "\0", pattern.removeprefix("/"))
    return max(plain.split("\0"), key=len)


@lru_cache
def any_regex(patterns: tuple[str, ...], folder: str = "", behind: str = "") -> str:
    """The regular expression of `folder` and a path below it that one of the patterns matches as a whole.

    `behind` is the regular expression of what may follow the path.
    """
    return f"(?s)^{re.escape(folder)}(?:{'|'.join(map(as_regex, patterns))}){behind}$"


def _translated(pattern: str) -> str:
    regex, place, in_braces = "", 0, False
    while place < len(pattern):
        rest = pattern[place:]
        if rest.startswith("**/"):
            regex, place = regex + "(?:.*/)?", place + 3
        elif rest.startswith("**"):
            regex, place = regex + ".*", place + 2
        elif rest[0] == "*":
            regex, place = regex + "[^/]*", place + 1
        elif rest[0] == "?":
            regex, place = regex + "[^/]", place + 1
        elif rest[0] == "[":
            end = rest.find("]", 3 if rest[1:2] == "!" else 2)
            if end < 0:
                raise ValueError("the bracket [ is not closed")
            regex, place = regex + _class(rest[1:end]), place + end + 1
        elif rest[0] == "{" and in_braces:
            raise ValueError("braces within braces are not understood")
        elif rest[0] == "{":
            regex, place, in_braces = regex + "(?:", place + 1, True
        elif rest[0] == "}" and in_braces:
            regex, place, in_braces = regex + ")", place + 1, False
        elif rest[0] == "," and in_braces:
            regex, place = regex + "|", place + 1
        else:
            regex, place = regex + re.escape(rest[0]), place + 1
    if in_braces:
        raise ValueError("the brace { is not closed")
    return regex


def _class(inside: str) -> str:
    negated = inside.startswith("!")
    characters = re.sub(r"([\\\[\]^&~|])", r"\\\1", inside[1:] if negated else inside)
    for low, high in re.findall(r"(.)-(.)", characters):
        if low > high:
            raise ValueError(f"the range {low}-{high} of a bracket is empty")
    return f"[^/{characters}]" if negated else f"[{characters}]"
