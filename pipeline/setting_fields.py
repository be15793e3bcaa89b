"""Read the annotations and texts of a settings class's fields: section of --help, bounds, help text.

    batch_size: Annotated[int | None, RESOURCES, Interval(ge=1, le=4096)] = None
    \"\"\"Put at most N images into one forward pass.\"\"\"

`__post_init__` of each settings class calls `check_fields`; the command line and docs/command-line.md show the rest.
Nothing heavy loads here.
"""

import re
from dataclasses import Field, dataclass, fields
from datetime import timedelta
from typing import Annotated, Any, TypeVar, get_args, get_origin

from annotated_types import Interval

from pipeline.errors import RunError
from pipeline.shown_text import holds_secret, without_uri_secrets

T = TypeVar("T")


@dataclass(frozen=True)
class Section:
    """A box of --help. A setting with this annotation stands in that box."""

    title: str
    note: str = ""


IN_AND_OUT = Section("input and output")
RESOURCES = Section("resource")
RUN_CONTROL = Section("run control")

# The lease of every job that writes tables: of what duration it may be, and by default is.
LeaseSeconds = Annotated[float, RUN_CONTROL, Interval(ge=1.0, le=86400.0)]
LEASE_SECONDS = 60.0

_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return "--" + name.replace("_", "-")


def marker(field: "Field[Any]", kind: type[T]) -> T | None:
    """The annotation of class `kind` beside a field's type, if any."""
    metadata = get_args(field.type)[1:] if get_origin(field.type) is Annotated else ()
    return next((item for item in metadata if isinstance(item, kind)), None)


def plain_type(field: "Field[Any]") -> Any:
    """The type of a field without its annotations."""
    return get_args(field.type)[0] if get_origin(field.type) is Annotated else field.type


def check_fields(settings: Any) -> None:
    """Raise RunError if a text is blank or holds a secret, or if a number is out of bounds.

    A setting that was not given is None.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        for text in value if isinstance(value, tuple) else [value]:
            if isinstance(text, str):
                if not text.strip():
                    raise RunError(f"{flag(field.name)} is empty")
                refuse_secrets(flag(field.name), text)
        bounds = marker(field, Interval)
        if bounds is not None and value is not None and not _allows(bounds, value):
            raise RunError(f"{flag(field.name)} is {value}; it must {_requirement(bounds)}")


def refuse_secrets(what: str, text: str) -> None:
    """Raise RunError if `text`, which messages call `what`, is a URI with user info, a signature or a query.

    A URI becomes part of keys, records and messages, and `ray job` and `ps` show command lines to everybody.
    """
    if holds_secret(text):
        raise RunError(
            f"{what} {without_uri_secrets(text)} holds credentials or a query; leave them out of the URI and give "
            "credentials by the environment (such as AWS_ACCESS_KEY_ID, AWS_PROFILE) or a role"
        )


def duration_of(flag: str, text: str, least: timedelta = timedelta(microseconds=1)) -> timedelta:
    """`text` as a duration: 90m, 26h or 2d. RunError if it is none, shorter than `least` or longer than ten years."""
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)([mhd])", text)
    duration = timedelta(**{_UNITS[match[2]]: float(match[1])}) if match else timedelta(0)
    if not least <= duration <= timedelta(days=3650):
        at_least = f", at least {least}" if least >= timedelta(minutes=1) else ""
        raise RunError(f"{flag} is {text!r}; write minutes, hours or days{at_least}: 90m, 26h or 2d")
    return duration


def bounds_in_words(field: "Field[Any]") -> str | None:
    """`1 .. 4,096`, or None for a field without bounds."""
    bounds = marker(field, Interval)
    return None if bounds is None else _requirement(bounds).removeprefix("lie in ").removeprefix("be ")


def help_texts(settings_class: type) -> dict[str, str]:
    """The string below each field, on one line; inherited fields are included."""
    import docstring_parser  # here, because only --help and the docs need it

    texts: dict[str, str] = {}
    for one in reversed(settings_class.__mro__[:-1]):
        for param in docstring_parser.parse_from_object(one).params:
            texts[param.arg_name] = " ".join((param.description or "").split())
    return texts


def _allows(bounds: Interval, value: Any) -> bool:
    # Each comparison is false for NaN, so NaN is refused.
    return all(
        (
            bounds.ge is None or value >= bounds.ge,
            bounds.gt is None or value > bounds.gt,
            bounds.le is None or value <= bounds.le,
            bounds.lt is None or value < bounds.lt,
        )
    )


def _requirement(bounds: Interval) -> str:
    if bounds.ge is not None and bounds.le is not None:
        return f"lie in {_number(bounds.ge)} .. {_number(bounds.le)}"
    limits = (("at least", bounds.ge), ("above", bounds.gt), ("at most", bounds.le), ("below", bounds.lt))
    return "be " + " and ".join(f"{words} {_number(limit)}" for words, limit in limits if limit is not None)


def _number(number: Any) -> str:
    if isinstance(number, int) and number >= 2**31 - 1:
        for power, rest in ((number, ""), (number + 1, " - 1")):
            if power & (power - 1) == 0:
                return f"2^{power.bit_length() - 1}{rest}"
    return f"{number:.0e}" if number >= 1e9 else f"{number:,}"
