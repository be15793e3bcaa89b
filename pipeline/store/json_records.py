"""Read JSON that anybody may have written: bounded, without surprises, and checked field by field by pydantic.

Every mistake is one line that names the field. A record is a dataclass or a TypedDict with `STRICT` as its pydantic
config; fields that the record does not know come from later programs and are left out.
"""

import codecs
import json
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from math import isfinite
from typing import Annotated, Any, TypeVar

from annotated_types import Interval
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import from_json

from m2f_core.config.fields import excerpt
from pipeline.errors import RunError
from pipeline.store.filesystem import one_line

T = TypeVar("T")

STRICT = ConfigDict(strict=True, allow_inf_nan=False)
Count = Annotated[int, Interval(ge=0, le=2**62)]
Seconds = Annotated[float, Interval(ge=0.0, le=1e12)]

_TRANSCODED = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def moment(timespec: str) -> Callable[[str], str]:
    """A check of a time in UTC. The times of runs are compared as texts, so each must be spelled in one way."""

    def check(text: str) -> str:
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            found = None
        if found is None or found.utcoffset() != timedelta(0) or found.isoformat(timespec=timespec) != text:
            raise ValueError("it must be a time in UTC such as 2026-11-23T09:00:00+00:00")
        return text

    return check


def plain_values(values: dict[str, Any]) -> dict[str, Any]:
    """A check of settings: each is a text, a number, true, false or null, or a list of these."""
    for name, value in values.items():
        for one in value if isinstance(value, list) else [value]:
            is_plain = one is None or isinstance(one, (str, int, float))
            if not is_plain or (isinstance(one, float) and not isfinite(one)):
                raise ValueError(f"{excerpt(name)} must be a plain value")
    return values


def parse_record(adapter: TypeAdapter[T], data: bytes, describe: Callable[[ValidationError], str] | None = None) -> T:
    """`data` as a record. ValueError with one line that names the field, or says why `data` is not JSON.

    `describe` makes the line of a field that is wrong; default: `one_mistake`.
    """
    try:
        data = _as_utf8(data)
        record = adapter.validate_json(data)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    except ValidationError as error:
        is_json = error.errors(include_url=False)[0]["type"] != "json_invalid"
        raise ValueError((describe if is_json and describe else one_mistake)(error)) from None
    _refuse_repeated_names(data)
    return record


def parse_json(data: bytes) -> Any:
    """`data` as JSON of any form. ValueError also for NaN, for a name twice, and for more than 200 levels."""
    data = _as_utf8(data)
    content = from_json(data, allow_inf_nan=False)
    _refuse_repeated_names(data)
    return content


def parse_json_object(data: bytes, path: str, what: str) -> dict[str, Any]:
    """`data` as a JSON object. If `data` is anything else, raises a RunError that starts with `what`."""
    try:
        content = parse_json(data)
    except ValueError as error:
        raise RunError(f"{what} {path} is not JSON: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise RunError(f"{what} {path} must hold a JSON object, not a {type(content).__name__}")
    return content


def one_mistake(error: ValidationError) -> str:
    """The first mistake in a line: `plan.files[3].path is 5; input should be a valid string`."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return f"it is not JSON: {first['ctx']['error']}"
    name = place_of(first["loc"])
    if first["type"] == "missing":
        owner = place_of(first["loc"][:-1])
        return f"{owner} has no {first['loc'][-1]!r}" if owner else f"{first['loc'][-1]!r} is missing"
    said = f"{first['msg'][0].lower()}{first['msg'][1:]}".removeprefix("value error, ")
    return f"{name or 'its content'} is {excerpt(first['input'])}; {said}"


def place_of(location: tuple[int | str, ...]) -> str:
    """`plan.files[3].path`; names that a stranger wrote are shown as Python shows them."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{_name(part)}" for part in location)
    return "".join(parts).lstrip(".")


def _name(part: str) -> str:
    return part if part.isidentifier() and part.isascii() else excerpt(part)


def _as_utf8(data: bytes) -> bytes:
    """Editors of some systems write JSON with a byte order mark."""
    for mark, encoding in _TRANSCODED:
        if data.startswith(mark):
            return data.decode(encoding).encode()
    return data


def _refuse_repeated_names(data: bytes) -> None:
    """A name that is there twice: other readers take the first, this one the last."""

    def once(pairs: list[tuple[str, Any]]) -> None:
        """Keep nothing: a file of ground truth would be in memory a second time."""
        if len({name for name, _ in pairs}) < len(pairs):
            twice = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
            raise ValueError(f"it has the name {excerpt(twice)} twice in one object")

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is no number")

    json.loads(data, object_pairs_hook=once, parse_constant=constant)
