"""docs/command-line.md is made from the settings dataclasses: `python -m tests.support.command_line_page` writes it."""

import dataclasses
import inspect
from typing import get_args, get_origin

from jobs.common.command_line import COMMANDS
from pipeline.calibration.settings import PlanSettings
from pipeline.config import SelfCheckSettings, Settings
from pipeline.drill.settings import DrillSettings
from pipeline.evaluate.settings import EvaluationSettings
from pipeline.export.settings import ExportSettings
from pipeline.export_model.settings import ExportModelSettings
from pipeline.nights.settings import NightsSettings
from pipeline.page.settings import ReportSettings
from pipeline.recut.settings import RecutSettings
from pipeline.runs.settings import PublishSettings, RollBackSettings, TidySettings
from pipeline.scenes.settings import ScenesSettings
from pipeline.setting_fields import Section, bounds_in_words, help_texts, marker, plain_type
from pipeline.store_check.settings import StoreCheckSettings
from pipeline.train.settings import FinetuneSettings
from pipeline.verify.settings import VerifySettings
from tests.support.places import ROOT

PAGE = ROOT / "docs" / "command-line.md"

HEAD = """# Command line

Made from the settings classes of `pipeline/`; do not edit (`python -m tests.support.command_line_page` writes it, a
test compares).

`pip install` gives each job a command, which takes the same flags:

{commands}

`--version` prints the version of the program. Every flag may stand in a YAML file, without its dashes, and be given as
`--config FILE`; flags win.

```yaml
input: s3://my-bucket/photographs
output: s3://my-bucket/segments
model: s3://my-bucket/models/swin-large
image_size: "800:1333"
gpu_actors: "1:16"
```
"""
COMMANDS_HEAD = """| command | job |
|---|---|
"""

JOBS = {
    "segment_bucket.py": Settings,
    "plan_bucket.py": PlanSettings,
    "selfcheck.py": SelfCheckSettings,
    "drill.py": DrillSettings,
    "check_store.py": StoreCheckSettings,
    "nights.py": NightsSettings,
    "finetune.py": FinetuneSettings,
    "evaluate.py": EvaluationSettings,
    "roll_back.py": RollBackSettings,
    "tidy.py": TidySettings,
    "verify.py": VerifySettings,
    "recut.py": RecutSettings,
    "publish.py": PublishSettings,
    "make_scenes.py": ScenesSettings,
    "export.py": ExportSettings,
    "export_model.py": ExportModelSettings,
    "report.py": ReportSettings,
}
TABLE_HEAD = """
## jobs/{job}
{inherited}"""
SECTION_HEAD = """
{title}

| flag | values | default | |
|---|---|---|---|
"""


def values_of(field: dataclasses.Field) -> str:
    annotation = plain_type(field)
    options = [o for o in get_args(annotation) if o is not type(None)]
    if get_origin(annotation) is not None and "Literal" in str(get_origin(annotation)):
        return " \\| ".join(f"`{option}`" for option in options)
    if annotation is bool:
        return "on, off"
    if "tuple" in str(annotation):
        return "texts" if "str" in str(annotation) else "numbers"
    bounds = bounds_in_words(field)
    return (options[0] if options else annotation).__name__ + (f", {bounds}" if bounds else "")


def default_of(field: dataclasses.Field) -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    if isinstance(field.default, bool):
        return "on" if field.default else "off"
    return "" if field.default in (None, ()) else str(field.default)


def table(settings_class: type) -> str:
    """A table a section, a row a flag; without those of the main job in another job that takes them too."""
    texts = help_texts(settings_class)
    sections: dict[str, list[str]] = {}
    for field in dataclasses.fields(settings_class):
        if inherits(settings_class) and field.name not in inspect.get_annotations(settings_class):
            continue
        name = field.name.replace("_", "-")
        flag = f"`--{name}`, `--no-{name}`" if plain_type(field) is bool else f"`--{name}`"
        row = f"| {flag} | {values_of(field)} | {default_of(field)} | {texts[field.name]} |"
        section = marker(field, Section)
        assert section is not None
        title = f"**{section.title.capitalize()} options.** {section.note}".strip()
        sections.setdefault(title, []).append(row)
    return "".join(
        SECTION_HEAD.format(title=title) + "".join(f"{row}\n" for row in rows) for title, rows in sections.items()
    )


def inherits(settings_class: type) -> bool:
    return settings_class is not Settings and issubclass(settings_class, Settings)


def page() -> str:
    """The whole page."""
    commands = "\n".join(f"| `{command}` | `jobs/{file}` |" for file, command in COMMANDS.items())
    parts = [HEAD.format(commands=f"{COMMANDS_HEAD}{commands}")]
    for job, settings_class in JOBS.items():
        inherited = "\nAll flags of segment_bucket.py; these are its own:\n" if inherits(settings_class) else ""
        parts += [TABLE_HEAD.format(job=job, inherited=inherited), table(settings_class)]
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
