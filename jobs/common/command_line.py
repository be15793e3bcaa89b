"""Dataclass -> command line, for every job. Wrong arguments give one line on stderr and exit code 2."""

import contextlib
import inspect
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields, make_dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_origin

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from jobs.common.ends import fail, unread_output_ends
from m2f_core import __version__
from pipeline.errors import RunError
from pipeline.setting_fields import Section, bounds_in_words, flag, help_texts, marker, plain_type, refuse_secrets
from pipeline.text.plain_yaml import read_plain_yaml

T = TypeVar("T")

# The file of each job, which a checkout has and `ray job submit` runs, and the command that pip installs for it.
COMMANDS = {
    "segment_bucket.py": "m2f-segment",
    "plan_bucket.py": "m2f-plan",
    "selfcheck.py": "m2f-selfcheck",
    "drill.py": "m2f-drill",
    "nights.py": "m2f-nights",
    "roll_back.py": "m2f-roll-back",
    "tidy.py": "m2f-tidy",
    "check_store.py": "m2f-check-store",
    "evaluate.py": "m2f-evaluate",
    "verify.py": "m2f-verify",
    "publish.py": "m2f-publish",
    "finetune.py": "m2f-finetune",
    "make_scenes.py": "m2f-scenes",
    "demo.py": "m2f-demo",
    "export.py": "m2f-export",
    "export_model.py": "m2f-export-model",
    "recut.py": "m2f-recut",
    "report.py": "m2f-report",
}

_COMMON_FLAGS = (
    "--config FILE reads settings from a YAML file with the same names; flags win. --version prints the version."
)
_OTHER = Section("other")
_KINDS: dict[type, tuple[str, str]] = {
    int: ("INT", "a whole number"),
    float: ("FLOAT", "a number"),
    str: ("STR", "a text"),
}


def program(file: str) -> str:
    """The name of a job in its messages: its command if this process was started as a command, else its file."""
    return COMMANDS.get(file, file) if Path(sys.argv[0]).name in COMMANDS.values() else file


def as_called(text: str) -> str:
    """`text` with the files of jobs replaced by their commands, if this process was started as a command."""

    def named(match: re.Match[str]) -> str:
        return match[0] if program(match[1]) == match[1] else program(match[1])

    return re.sub(r"(?:jobs/)?\b(\w+\.py)", named, text)


def parse(settings_class: type[T], args: Sequence[str], *, prog: str, summary: str | None = None) -> T:
    """Settings from flags and, with `--config FILE`, from a YAML file of the same names; flags win.

    `--help` prints `summary`, or the docstring of the class, and the flags; `--version` prints the version; exit code 0
    both times. Wrong arguments get one line on stderr and exit code 2.
    """
    if "--version" in args:
        with unread_output_ends():
            print(f"{prog} {__version__}")
        raise SystemExit(0)
    try:
        args = _gathered(settings_class, with_config_file(settings_class, list(args)))
        _refuse_secrets(args)
    except RunError as error:
        fail(prog, str(error))
    message = io.StringIO()
    try:
        with unread_output_ends(), contextlib.redirect_stderr(message):
            sections = tyro.cli(
                _boxes(settings_class),
                prog=prog,
                args=args,
                description=as_called(f"{summary or inspect.getdoc(settings_class)}\n\n{_COMMON_FLAGS}"),
            )
        return settings_class(**{name: value for box in vars(sections).values() for name, value in vars(box).items()})
    except RunError as error:
        fail(prog, str(error))
    except SystemExit as stop:
        if stop.code == 2:
            fail(prog, _one_line(message.getvalue()))
        raise


def with_config_file(settings_class: type, args: list[str]) -> list[str]:
    """`args` with `--config FILE` replaced by the settings in the file, which come first so that flags win."""
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
    given = {word.partition("=")[0] for word in rest}
    return rest if config is None else [*_flags_in_file(settings_class, config, without=given), *rest]


def _gathered(settings_class: type, args: list[str]) -> list[str]:
    """`args` with the values of a flag for many values in one place: `--input a --input b` is `--input a b`."""
    many = {flag(field.name) for field in fields(settings_class) if _is_many(field)}
    gathered: dict[str, list[str]] = {}
    rest: list[str] = []
    values = rest
    for word in args:
        if word.startswith("--"):
            name, _, value = word.partition("=")
            values = gathered.setdefault(name, []) if name in many else rest
            values += ([value] if "=" in word else []) if name in many else [word]
        else:
            values.append(word)
    return [*rest, *(word for name, words in gathered.items() for word in _of_many(name, words))]


def _of_many(name: str, values: list[str]) -> list[str]:
    """The words that give a flag these values. One value may begin with a dash."""
    return [f"{name}={values[0]}"] if len(values) == 1 else [name, *values]


def _is_many(field: "Field[Any]") -> bool:
    kind = plain_type(field)
    return tuple in (get_origin(kind), *map(get_origin, get_args(kind)))


def _refuse_secrets(args: Sequence[str]) -> None:
    """Raise RunError if a word holds a secret, before tyro can repeat the word in a message, in pieces."""
    before = ""
    for word in args:
        name, _, value = word.partition("=") if word.startswith("--") else (before, "", word)
        refuse_secrets(name if name.startswith("--") else "the argument", value)
        before = word


def flags_of(settings: Any) -> list[str]:
    """The flags that give these settings again: the inverse of `parse`. Defaults are left out."""
    return [
        word
        for field in fields(settings)
        if (value := getattr(settings, field.name)) != field.default
        for word in ([flag(field.name), "None"] if value is None else _words(field.name, value))
    ]


def _boxes(settings_class: type) -> Any:
    """A dataclass of dataclasses, one for each section: tyro draws a box for each.

    The settings class itself stays flat. The title of a box is the name of its field, which tyro would also put before
    each flag; `prefix_name=False` leaves the flags as they are.
    """
    texts = help_texts(settings_class)
    boxes: dict[Section, list[Any]] = {}
    for field in fields(settings_class):
        boxes.setdefault(marker(field, Section) or _OTHER, []).append(_argument(field, texts[field.name]))
    return make_dataclass(
        settings_class.__name__,
        [
            (f"box_{number}", Annotated[_box(section, arguments), tyro.conf.arg(name=section.title)])
            for number, (section, arguments) in enumerate(boxes.items())
        ],
    )


def _box(section: Section, arguments: list[Any]) -> Any:
    box = make_dataclass("Box", arguments)
    box.__doc__ = section.note
    return box


def _argument(field: "Field[Any]", text: str) -> tuple[Any, ...]:
    """Name, annotated type and, if the setting has one, default."""
    required = field.default is MISSING
    arg = tyro.conf.arg(prefix_name=False, help=as_called(text), help_behavior_hint=None if required else _hint(field))
    annotation: Any = Annotated[plain_type(field), arg]
    if (spec := _spec(plain_type(field))) is not None:
        annotation = Annotated[annotation, spec]
    return (field.name, annotation) if required else (field.name, annotation, field.default)


def _hint(field: "Field[Any]") -> str:
    """The end of a help text: `(default: 128; 1 .. 1,024)`."""
    default = ("off", "on")[field.default] if isinstance(field.default, bool) else field.default
    parts = [] if default in (None, ()) else [f"default: {default}"]
    parts += [bounds] if (bounds := bounds_in_words(field)) else []
    return f"({'; '.join(parts)})" if parts else ""


def _spec(annotation: Any) -> PrimitiveConstructorSpec[Any] | None:
    """How tyro reads numbers, texts and settings that may be None. Returns None for switches and choices.

    tyro reads switches and choices well by itself. For the others, tyro would show `{None}|INT`, and name Python's
    types and functions in its messages.
    """
    may_be_none = NoneType in get_args(annotation)
    [kind] = [one for one in get_args(annotation) if one is not NoneType] if may_be_none else [annotation]
    many = get_origin(kind) is tuple
    if many:
        kind = get_args(kind)[0]
    if kind not in _KINDS:
        return None
    metavar, name = _KINDS[kind]

    def read_one(word: str) -> Any:
        try:
            return kind(word)
        except ValueError:
            raise ValueError(f"{word!r} is not {name}") from None

    def read(words: list[str]) -> Any:
        if may_be_none and words == ["None"]:
            return None
        return tuple(map(read_one, words)) if many else read_one(words[0])

    return PrimitiveConstructorSpec(
        nargs="*" if many else 1,
        metavar=f"[{metavar} ...]" if many else metavar,
        instance_from_str=read,
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    )


def _flags_in_file(settings_class: type, config: Path, without: set[str]) -> list[str]:
    """The settings in the file as flags, but for those that are given as flags."""
    try:
        values = read_plain_yaml(config)
    except ValueError as error:
        raise RunError(f"--config {config}: {error}") from None
    for name, value in values.items():
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, str | int | float | None):
                wanted = "must be one value or a list of values"
                raise RunError(f"--config {config}: {flag(str(name))} {wanted}, not {one!r:.60}")
    values = {str(name).replace("-", "_"): value for name, value in values.items()}
    known = {field.name for field in fields(settings_class)}
    if unknown := sorted(set(values) - known):
        raise RunError(
            f"--config {config}: unknown names {', '.join(unknown)}; known names are {', '.join(sorted(known))}"
        )
    for field in fields(settings_class):
        if isinstance(field.default, bool) and not isinstance(values.get(field.name, True), bool):
            raise RunError(f"--config {config}: {field.name} is {values[field.name]!r}; write true or false")
    return [word for name, value in values.items() if flag(name) not in without for word in _words(name, value)]


def _words(name: str, value: Any) -> list[str]:
    """The words of a command line that give a setting this value."""
    if value is None:
        return []
    if isinstance(value, bool):
        return [flag(name) if value else flag(f"no_{name}")]
    if isinstance(value, list | tuple):
        return _of_many(flag(name), list(map(str, value)))
    return [f"{flag(name)}={value}"]


def _one_line(box: str) -> str:
    """The text of tyro's framed message."""
    lines = [line for line in box.splitlines() if not line.startswith("╭")]  # the line with the title
    text = " ".join("".join(" " if c in "╰╯│─" else c for c in line) for line in lines)
    text = " ".join(re.sub("-{4,}", " ", text).split())
    return re.split(" For full helptext| Argument helptext:", text)[0]
