"""docs/command-line.md is made from the settings dataclasses: `python -m tests.support.command_line_page` writes it."""

import dataclasses
from typing import Any, get_args, get_origin

import docstring_parser

from pipeline.config import Settings
from pipeline.drill.settings import DrillSettings
from pipeline.evaluate.settings import EvaluationSettings
from pipeline.scenes.settings import ScenesSettings
from pipeline.train.settings import FinetuneSettings
from tests.support.places import ROOT

PAGE = ROOT / "docs" / "command-line.md"

HEAD = """# Command line

Made from the settings classes of `pipeline/`; do not edit (`python -m tests.support.command_line_page` writes it, a
test compares).

Every flag may stand in a YAML file, without its dashes, and be given as `--config FILE`; flags win.

```yaml
input: s3://my-bucket/photographs
output: s3://my-bucket/segments
model: s3://my-bucket/models/swin-large
image_size: "800:1333"
gpu_actors: "1:16"
```
"""

JOBS = {
    "segment_bucket.py": Settings,
    "drill.py": DrillSettings,
    "finetune.py": FinetuneSettings,
    "evaluate.py": EvaluationSettings,
    "make_scenes.py": ScenesSettings,
}
TABLE_HEAD = """
## jobs/{job}
{inherited}
| flag | values | default | |
|---|---|---|---|
"""


def field_help(settings_class: type) -> dict[str, str]:
    """The docstring below each field."""
    parsed = docstring_parser.parse_from_object(settings_class)
    return {p.arg_name: " ".join((p.description or "").split()) for p in parsed.params}


def values_of(annotation: Any) -> str:
    options = [o for o in get_args(annotation) if o is not type(None)]
    if get_origin(annotation) is not None and "Literal" in str(get_origin(annotation)):
        return " \\| ".join(f"`{option}`" for option in options)
    if annotation is bool:
        return "on, off"
    if "tuple" in str(annotation):
        return "numbers"
    return (options[0] if options else annotation).__name__


def default_of(field: dataclasses.Field) -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    if isinstance(field.default, bool):
        return "on" if field.default else "off"
    return "" if field.default is None else str(field.default)


def table(settings_class: type) -> str:
    """One row a flag, without those of the main job in another job that takes them too."""
    help_texts = field_help(settings_class)
    rows = []
    for field in dataclasses.fields(settings_class):
        if inherits(settings_class) and field.name in Settings.__dataclass_fields__:
            continue
        name = field.name.replace("_", "-")
        flag = f"`--{name}`, `--no-{name}`" if field.type is bool else f"`--{name}`"
        rows.append(f"| {flag} | {values_of(field.type)} | {default_of(field)} | {help_texts[field.name]} |")
    return "\n".join(rows) + "\n"


def inherits(settings_class: type) -> bool:
    return settings_class is not Settings and issubclass(settings_class, Settings)


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for job, settings_class in JOBS.items():
        inherited = "\nAll flags of segment_bucket.py, and these:\n" if inherits(settings_class) else ""
        parts += [TABLE_HEAD.format(job=job, inherited=inherited), table(settings_class)]
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
