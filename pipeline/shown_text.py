"""Text as people and log files may see it: without secrets, and without characters that a terminal obeys.

Names of objects, tensors and classes, and the messages of stores, are written by others. A name may hold an escape
sequence that rewrites a terminal, a line break that forges a log line, or a bidirectional control that turns text
round. URIs and messages may hold credentials.

`shown` is applied where text leaves the program: the formatters of log lines, the last line of a job, the console of
the tables, error messages of rows (`one_line`), records of nights. So callers pass names on as they are, and the tables
keep the true `image_key`. Nothing heavy is imported here.
"""

import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache

MASK = "***"

# Categories of Unicode that do something instead of showing something: controls (C0, DEL, C1), format characters (zero
# width, bidirectional, tags), lone surrogates, separators of lines and paragraphs.
_ACTIVE = ("Cc", "Cf", "Cs", "Zl", "Zp")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}

_URI = re.compile(r"\b([a-zA-Z][a-zA-Z0-9+.-]*://)([^\s\"'<>|]+)")
# In these stores `?` is a character of a key like any other; elsewhere it begins a query.
_KEYS_MAY_HOLD_QUESTION_MARKS = ("s3://", "s3a://", "file://")
# Values of these parameters are secrets in presigned URLs of S3, Google Cloud Storage and Azure, and in others.
_SECRET_PARAMETER = re.compile(
    r"(?i)([?&;](?:x-amz-[a-z-]+|x-goog-[a-z-]+|awsaccesskeyid|googleaccessid|sig|signature|[a-z_-]*(?:token|secret|"
    r"password|credential|api[_-]?key))=)[^&;\s\"'<>]+"
)
# Access key ids of AWS, tokens of the Hugging Face hub, and what follows `Bearer` in a header.
_KNOWN_FORMS = re.compile(r"\b(?:(?:AKIA|ASIA)[A-Z0-9]{16}|hf_[A-Za-z0-9]{20,})\b|(?<=\bBearer )[\w.~+/=-]{8,}")
_SECRET_VARIABLE = re.compile(
    r"(?i)secret|token|passw|credential|access_key|account_key|api_key|connection_string|(?:^|_)sas(?:_|$)"
)
_LEAST_SECRET = 8  # characters; a shorter value is no secret, and is likely to stand in other words


def shown(text: str) -> str:
    """`text` without secrets, on one line, with every active character as an escape such as `\\x1b`."""
    return printable(masked(text))


def showing() -> Callable[[str], str]:
    """`shown` for thousands of texts: the secrets of the environment are looked for once, and equal texts once."""
    secrets = _secrets_of_environment()
    return lru_cache(maxsize=1000)(lambda text: printable(_masked(text, secrets)))


def printable(text: str) -> str:
    """`text` with every character that a terminal obeys as an escape: `\\n`, `\\x1b`, `\\u202e`."""
    if text.isprintable():
        return text
    return "".join(_escape(c) if unicodedata.category(c) in _ACTIVE else c for c in text)


def printable_lines(text: str) -> str:
    """Like `shown`, but text of several lines, such as a stack, keeps its lines."""
    return "\n".join(shown(line) for line in text.split("\n"))


def printable_json(text: str) -> str:
    """JSON with every active character as an escape of JSON, so that it parses to the same values."""
    if text.isprintable():
        return text
    return "".join(_json_escape(c) if unicodedata.category(c) in _ACTIVE else c for c in text)


def masked(text: str) -> str:
    """`text` with user info, queries and known forms of secrets of URIs as `***`, and so the secrets of this
    environment.
    """
    return _masked(text, _secrets_of_environment())


def _masked(text: str, secrets: Iterable[str]) -> str:
    text = without_uri_secrets(text)
    for secret in secrets:
        text = text.replace(secret, MASK)
    return _KNOWN_FORMS.sub(MASK, text)


def without_uri_secrets(text: str) -> str:
    """`text` with the user info and the queries of the URIs in it as `***`."""
    return _SECRET_PARAMETER.sub(rf"\1{MASK}", _URI.sub(_mask_uri, text)) if "://" in text else text


def holds_secret(uri: str) -> bool:
    """Whether `uri` has user info, or a query where queries are no part of a key, or a signature."""
    return without_uri_secrets(uri) != uri


def _mask_uri(match: "re.Match[str]") -> str:
    scheme, rest = match[1], match[2]
    authority, slash, path = rest.partition("/")
    if "@" in authority:
        authority = f"{MASK}@{authority.rpartition('@')[2]}"
    elif ":" in authority and not re.fullmatch(r"arn:.*|(\[[^\]]*\]|[^:]*):\d*\W*", authority):
        # A password with a slash in it, as secrets of AWS have, ends at the last @.
        return f"{scheme}{MASK}" + (f"@{rest.rpartition('@')[2]}" if "@" in path else "")
    if scheme.lower() in _KEYS_MAY_HOLD_QUESTION_MARKS:
        return f"{scheme}{authority}{slash}{path}"
    place, question, _ = f"{authority}{slash}{path}".partition("?")
    return f"{scheme}{place}{question}{MASK if question else ''}"


def _secrets_of_environment() -> list[str]:
    """The values of variables that are named as secrets, and the passwords in others, such as those of proxies."""
    found = set()
    for name, value in os.environ.items():
        if _SECRET_VARIABLE.search(name) and not value.startswith(("/", ".", "~")):
            found.add(value)
        elif "@" in value and (match := re.match(r"(?:\w+://)?[^\s:/@]*:([^\s@]+)@", value)):
            found.add(match[1])
    return sorted((value for value in found if len(value) >= _LEAST_SECRET), key=len, reverse=True)


def _escape(character: str) -> str:
    number = ord(character)
    if character in _SHORT:
        return _SHORT[character]
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))
