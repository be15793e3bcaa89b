"""The settings of a recut: their names, types, defaults and help texts.

`jobs/` turns this dataclass into the command line, as it does with `pipeline/config.py`. Nothing heavy is imported
here, so that `--help` answers at once.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Interval

from m2f_core.config.labels import Task
from pipeline.config import Settings
from pipeline.errors import RunError
from pipeline.setting_fields import (
    IN_AND_OUT,
    LEASE_SECONDS,
    RESOURCES,
    RUN_CONTROL,
    LeaseSeconds,
    Section,
    check_fields,
)

_RESULTS = Section("result", "Without these flags, the settings of the runs that kept the logits hold.")
_PUBLISHING = Section("publishing")
# Settings of the run that a recut has by the same names.
_OF_THE_RUN = (
    "output",
    "gpu_actors",
    "cpus_per_actor",
    "images_per_shard",
    "run_id",
    "max_failure_rate",
    "step_timeout",
    "lease_seconds",
    "allow_unsafe_store",
    "progress_seconds",
    "log_format",
    "compact",
)


@dataclass(frozen=True)
class RecutSettings:
    """Apply other thresholds, another label map or another task to a finished run, on CPUs and without the images.

    The run must have kept what its model said (segment_bucket.py --keep-logits). The result is a run of its own, in an
    output of its own: the same images, with new segments. If the job is stopped or killed, the same command goes on
    where it was.
    """

    tables: Annotated[str, IN_AND_OUT]
    """Read the current rows of the tables below this folder or URI, the --output of runs with --keep-logits."""
    output: Annotated[str, IN_AND_OUT]
    """Write tables and run records below this folder or URI prefix; not the one of --tables."""
    of_run: Annotated[str | None, IN_AND_OUT] = None
    """Recut the rows of this run. Default: the current row of each image, from whatever run."""
    task: Annotated[Task | None, _RESULTS] = None
    """Find segments for this task."""
    postprocess: Annotated[Literal["reference", "hf"] | None, _RESULTS] = None
    """reference: derive segments as the model's authors do; hf: as transformers does."""
    score_threshold: Annotated[float | None, _RESULTS, Interval(ge=0.0, le=1.0)] = None
    """panoptic, instance: drop queries (instances) that score lower; not below the --keep-logits of the runs."""
    overlap_threshold: Annotated[float | None, _RESULTS, Interval(ge=0.0, le=1.0)] = None
    """panoptic: drop a segment if other segments leave less than this share of its mask visible."""
    mask_threshold: Annotated[float | None, _RESULTS, Interval(gt=0.0, lt=1.0)] = None
    """panoptic: a mask contains the pixels whose probability is at least this."""
    label_ids_to_fuse: Annotated[tuple[int, ...] | None, _RESULTS] = None
    """panoptic: merge all segments of each of these class ids into one per image."""
    classes: Annotated[tuple[str, ...] | None, _RESULTS] = None
    """Write the segments of these classes alone, as a run of all classes finds them."""
    top_k: Annotated[int | None, _RESULTS, Interval(ge=1, le=1_000_000)] = None
    """instance: keep the N best (query, class) pairs of each image."""
    labels: Annotated[str | None, _RESULTS] = None
    """Take the categories from this JSON file: a list of {"id", "name", "isthing"}, one for each class of the model in
    its order."""
    gpu_actors: Annotated[str | None, RESOURCES] = None
    """Run MIN:MAX actors, each with --cpus-per-actor CPUs. Default: as many as the cluster allows."""
    cpus_per_actor: Annotated[int, RESOURCES, Interval(ge=1, le=1024)] = 1
    """Reserve N CPUs for each actor."""
    images_per_shard: Annotated[int, RESOURCES, Interval(ge=1, le=1_000_000)] = 256
    """Put at most N images into one shard, the unit of retry and commit."""
    run_id: Annotated[str | None, RUN_CONTROL] = None
    """Name the new run. Default: continue an unfinished run with the same settings, else make a new name."""
    max_failure_rate: Annotated[float, RUN_CONTROL, Interval(ge=0.0, le=1.0)] = 0.01
    """Exit with code 1 if a larger share of the images failed. Images that failed in --tables fail again."""
    step_timeout: Annotated[float, RUN_CONTROL, Interval(ge=1.0, le=86400.0)] = 600.0
    """End a process if it spends more than N seconds on one image, and retry the shard."""
    lease_seconds: LeaseSeconds = LEASE_SECONDS
    """Keep other drivers off --output for N seconds after the last sign of life of this driver."""
    allow_unsafe_store: Annotated[bool, RUN_CONTROL] = False
    """Run although the store of --output does not keep other jobs away; see docs/stores.md."""
    progress_seconds: Annotated[float, RUN_CONTROL, Interval(ge=0.1, le=86400.0)] = 10.0
    """Print a progress line every N seconds if stderr is not a terminal."""
    log_format: Annotated[Literal["text", "json"], RUN_CONTROL] = "text"
    """json: write each line on stderr as a JSON object, progress included; a terminal has no live line then."""
    compact: Annotated[bool, _PUBLISHING] = False
    """Merge small files of the tables into large ones after publishing."""

    def __post_init__(self) -> None:
        # Imported only now: --help should not wait for the libraries of stores.
        from pipeline.store.filesystem import canonical

        check_fields(self)
        tables, target = (f"{canonical(place)}/" for place in (self.tables, self.output))
        if target.startswith(tables) or tables.startswith(target):
            raise RunError(f"--output {self.output} and --tables {self.tables} must not lie in each other")

    def of_night(self) -> Settings:
        """The settings of the run, as far as they do not depend on the tables."""
        values = {name: getattr(self, name) for name in _OF_THE_RUN}
        return Settings(input=(self.tables,), device="cpu", page=False, **values)

    def given(self, *names: str) -> dict[str, Any]:
        """The settings of these names that are given."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}
