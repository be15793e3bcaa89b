"""Dataclass -> command line: the same for every job. Bad arguments give one line on stderr and exit code 2."""

import contextlib
import io
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro

from pipeline.errors import RunError
from pipeline.telemetry.log_lines import last_line

T = TypeVar("T")


def parse(settings_class: type[T], args: Sequence[str], *, prog: str) -> T:
    """Settings from flags and, with `--config FILE`, from a YAML file of the same names; flags win.

    `--help` prints and exits 0. Anything wrong prints one line and exits 2.
    """
    try:
        args = with_config_file(settings_class, list(args))
    except RunError as error:
        fail(prog, str(error))
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return tyro.cli(
                settings_class,
                prog=prog,
                args=args,
                description=f"{settings_class.__doc__}\n\n--config FILE reads any of these from YAML; flags win.",
            )
    except RunError as error:
        fail(prog, str(error))
    except SystemExit as stop:
        if stop.code:
            fail(prog, _one_line(message.getvalue()))
        raise


def fail(prog: str, message: str) -> NoReturn:
    """One line on stderr, exit code 2."""
    last_line(prog, message)
    raise SystemExit(2)


def with_config_file(settings_class: type, args: list[str]) -> list[str]:
    """`args` with `--config FILE` replaced by what the file holds, put first so that flags win."""
    rest: list[str] = []
    config: Path | None = None
    iterator = iter(args)
    for arg in iterator:
        if arg == "--config" or arg.startswith("--config="):
            value = arg.partition("=")[2] if "=" in arg else next(iterator, "")
            if not value:
                raise RunError("--config needs a file")
            if config is not None:
                raise RunError(f"--config is given twice, {config} and {value}")
            config = Path(value)
        else:
            rest.append(arg)
    return rest if config is None else [*_flags_in_file(settings_class, config), *rest]


def flags_of(settings: Any) -> list[str]:
    """The flags that give these settings again: the inverse of `parse`. Defaults are left out."""
    return [
        flag
        for field in fields(settings)
        if (value := getattr(settings, field.name)) != field.default
        for flag in ([f"--{field.name.replace('_', '-')}", "None"] if value is None else _flag(field.name, value))
    ]


def _flags_in_file(settings_class: type, config: Path) -> list[str]:
    import yaml  # here, because --help should not wait for it

    try:
        values = yaml.load(config.read_text(), Loader=_plain_loader()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunError(f"--config {config}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise RunError(f"--config {config}: the file must hold names and values, not a {type(values).__name__}")
    values = {str(name).replace("-", "_"): value for name, value in values.items()}
    known = {field.name for field in fields(settings_class)}
    if unknown := sorted(set(values) - known):
        raise RunError(f"--config {config}: unknown names {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    for field in fields(settings_class):
        if isinstance(field.default, bool) and not isinstance(values.get(field.name, True), bool):
            raise RunError(f"--config {config}: {field.name} is {values[field.name]!r}; write true or false")
    return [flag for name, value in values.items() for flag in _flag(name, value)]


def _plain_loader() -> type:
    """YAML in which only null and true/false are special: `1:8` is no number in base 60, a date is its text."""
    import yaml

    class PlainLoader(yaml.SafeLoader):
        yaml_implicit_resolvers = {  # noqa: RUF012
            first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":bool"))]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    return PlainLoader


def _flag(name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if value is None:
        return []
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    if isinstance(value, list | tuple):
        return [flag, *map(str, value)]
    return [f"{flag}={value}"]


def _one_line(box: str) -> str:
    """The text of tyro's framed message."""
    lines = [line for line in box.splitlines() if not line.startswith("╭")]  # that one is a title
    text = " ".join("".join(" " if c in "╰╯│─" else c for c in line) for line in lines)
    text = " ".join(re.sub("-{4,}", " ", text).split())
    return re.split(" For full helptext| Argument helptext:", text)[0]
