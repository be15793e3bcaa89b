"""What people see of an export."""

from pipeline.export.export import Exported
from pipeline.export.settings import ExportSettings
from pipeline.telemetry.console import hms, say


def print_exported(settings: ExportSettings, exported: Exported) -> None:
    """A line with the figures, then what was left out or lost."""
    rate = exported.num_segments / max(exported.seconds, 1e-9)
    say(
        f"{settings.format}: {exported.num_segments:,} segments of {exported.num_images:,} images in "
        f"{hms(exported.seconds)} ({rate:,.0f} segments/s): {settings.to}"
    )
    if exported.num_failed:
        say(f"{exported.num_failed:,} images have no result and are left out: their status is failed")
    if exported.num_left_out:
        say(f"{exported.num_left_out:,} images are left out by --where")
    if exported.num_done_before:
        say(f"went on after {exported.num_done_before:,} batches of images that an earlier attempt had converted")
    for note in exported.notes:
        say(note)
