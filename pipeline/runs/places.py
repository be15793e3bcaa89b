"""Check the places of input and output, before anything heavy is loaded. Nothing is written or listed."""

from dataclasses import replace

from pipeline.commit.run_record import VERSIONED
from pipeline.config import Settings
from pipeline.errors import RunError
from pipeline.layout import RUNS, Output
from pipeline.schema import ALL_TABLES, SCHEMA_VERSION
from pipeline.store.filesystem import canonical, is_local, whole_path
from pipeline.text.patterns import without_wildcards


def with_whole_places(settings: Settings) -> Settings:
    """The settings with absolute paths of inputs and output, if these are local."""
    return replace(settings, input=tuple(map(whole_path, settings.input)), output=whole_path(settings.output))


def usable_output(settings: Settings) -> Output:
    """The output of these settings.

    RunError if the output lies inside an input, is a file, cannot be read or belongs to another schema version.
    """
    target = canonical(settings.output)
    for given in settings.input:
        source = canonical(without_wildcards(given)[0])
        for written in (target, *(f"{target}/{name}" for name in (*ALL_TABLES, RUNS))):
            if f"{written}/".startswith(f"{source}/"):
                raise RunError(
                    f"--output {settings.output} has {written} inside --input {given}; the next run would list them as "
                    "images"
                )
    output = Output.open(settings.output)
    if is_local(output.filesystem) and output.filesystem.isfile(output.root):
        raise RunError(f"--output {settings.output} is a file; name a folder")
    check_format(output)
    return output


def check_format(output: Output) -> None:
    """RunError if the output belongs to another schema version."""
    with output.errors():
        format_json = output.read_record(VERSIONED, output.format_json)
    if format_json is not None and format_json["schema_version"] != SCHEMA_VERSION:
        raise RunError(
            f"--output holds tables of schema version {format_json['schema_version']}, but this program writes "
            f"version {SCHEMA_VERSION}; choose another --output"
        )
