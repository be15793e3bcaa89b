"""The settings of a drill: all settings of segment_bucket.py, and a few more. Nothing heavy is imported here."""

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Interval

from pipeline.config import Settings
from pipeline.setting_fields import Section

# Least number of shards in the sample, so that at any kill some shards are done and some are not.
_SHARDS = 16
_DRILL = Section("drill")


@dataclass(frozen=True)
class DrillSettings(Settings):
    """Try the settings of segment_bucket.py on a sample of INPUT while everything breaks; --output is not touched.

    The drill copies the sample and segments the copy three times with a Ray of its own on this machine: undisturbed;
    while it kills workers and the driver and breaks the store; with damaged and deadly images among the others. Exit
    code 0 means that every image has exactly one row, the row of the undisturbed run.
    """

    sample: Annotated[int, _DRILL, Interval(ge=1, le=10_000)] = 64
    """Copy N images, drawn at random from the first 10,000 of the listing."""
    scratch: Annotated[str | None, _DRILL] = None
    """Work below this folder or URI prefix, and remove the files at the end. Default: a folder beside --output."""
    keep: Annotated[bool, _DRILL] = False
    """Keep the copies, tables and logs."""
    seed: Annotated[int, _DRILL] = 0
    """Seed the random choices; the moments of the kills still depend on the machine."""
    faults: Annotated[bool, _DRILL] = True
    """Break requests to the store too, if --input and --output are on S3 (through a proxy on this machine)."""
    deadly: Annotated[bool, _DRILL] = True
    """Add images to the sample that crash, starve or hang the process that decodes them."""

    def of_run(self, source: str, output: str, **changes: Any) -> Settings:
        """The settings of one run of the drill.

        Batches hold one image, because the neighbours in a batch change an image's floats in their last bits, and the
        rows must be equal to the last bit.
        """
        as_copied: dict[str, Any] = {
            "input": (source,),
            "input_format": "images",
            "include": (),
            "exclude": (),
            "allow_scheme": (),
            "anonymous": False,
            "requester_pays": False,
        }
        most = max(1, self.sample // _SHARDS)
        return self.of_own_run(
            **as_copied,
            output=output,
            images_per_shard=min(self.images_per_shard or most, most),
            batch_size=1,
            limit=None,
            mode="incremental",
            run_id="drill",
            **changes,
        )
