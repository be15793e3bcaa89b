"""The settings of a drill: those of the job that it tries, and its own. Nothing heavy is imported here."""

from dataclasses import dataclass, fields, replace
from typing import Any

from pipeline.config import Settings
from pipeline.errors import RunError

# Shards of the sample at least, so that there is always something done and something to do when a process dies.
_SHARDS = 16


@dataclass(frozen=True)
class DrillSettings(Settings):
    """Try these settings on a sample of INPUT while everything breaks; --output itself is not touched.

    The sample is copied and segmented three times with a Ray of its own on this machine: undisturbed; while workers and
    the driver are killed and the store fails; with damaged and deadly images among the others. All other flags are
    those of segment_bucket.py. Exit code 0 says that every image ended in one row and that the rows are the same.
    """

    sample: int = 64
    """Images to try it with, chosen by lot among the first 10,000 of the listing."""
    scratch: str | None = None
    """Folder or URI prefix to work below. Default: beside --output. What the drill made there it removes."""
    keep: bool = False
    """Leave copies, tables and logs where they are."""
    seed: int = 0
    """Of the choices; the moments depend on the machine."""
    faults: bool = True
    """Break the store as well, where --input and --output are on S3 (through a proxy on this machine)."""
    deadly: bool = True
    """Plant images that kill, starve or stop the process that decodes them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.sample <= 10_000:
            raise RunError(f"--sample is {self.sample}; it must lie in 1 .. 10000")
        if self.scratch is not None and not self.scratch.strip():
            raise RunError("--scratch is empty")

    def of_run(self, source: str, output: str, **changes: Any) -> Settings:
        """The settings of one run of the drill.

        Batches hold one image, because the neighbours in a batch change an image's floats in their last bits, and the
        rows are to be the same to the last bit.
        """
        given = {field.name: getattr(self, field.name) for field in fields(Settings)}
        run = Settings(**{**given, "input": source, "output": output})
        most = max(1, self.sample // _SHARDS)
        return replace(
            run,
            images_per_shard=min(self.images_per_shard or most, most),
            batch_size=1,
            limit=None,
            selfcheck=False,
            mode="incremental",
            run_id="drill",
            **changes,
        )
