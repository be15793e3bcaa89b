"""The run's settings: the only source of their names, types, defaults and help texts.

`jobs/` turns this dataclass into the command line; a YAML file given with `--config` holds the same names. Nothing
heavy is imported here, so that `--help` answers at once.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from m2f_core.config.labels import TASKS, Task
from m2f_core.images.image_size import ImageSize
from pipeline.errors import RunError

# Settings that change what is written for an image, and in which tasks. Together with the weights they make the
# fingerprint; two runs with equal fingerprints give equal tables (to float rounding of the batch size).
CHANGES_RESULTS = {"changes_results": TASKS}

# Goes up when the same weights and settings give other rows than before, after a repair for example.
RESULTS_VERSION = 1


def changes_results_of(*tasks: Task) -> dict[str, tuple[Task, ...]]:
    """Metadata of a setting that only these tasks know; given with another, it is refused rather than ignored."""
    return {"changes_results": tasks}


@dataclass(frozen=True)
class Settings:
    """Segment every image below INPUT and write the tables below OUTPUT.

    Paths may be local folders or URIs (s3://bucket/prefix). Credentials come from the usual AWS chain, never from here.
    """

    input: str
    """Folder or URI prefix; every object below it is an image of the run."""
    output: str
    """Folder or URI prefix for the tables and the run's journal; must not lie inside the input."""
    model: str = field(default="synthetic-scenes", metadata=CHANGES_RESULTS)
    """Checkpoint: a folder, an original .pkl, a URI of either, a hub id (extra `hub`). Default: one to try it with."""
    task: Task = field(default="panoptic", metadata=CHANGES_RESULTS)
    """Things and stuff without overlap (panoptic), things that may overlap, or one class for every pixel."""
    preprocess: Literal["reference", "hf"] = field(default="reference", metadata=CHANGES_RESULTS)
    """reference: the paper's resize and zero padding; hf: the pixels of transformers' Pillow processor, exactly."""
    postprocess: Literal["reference", "hf"] = field(default="reference", metadata=CHANGES_RESULTS)
    """reference: the paper's inference; hf: what transformers makes of the same logits and ids to fuse, exactly."""
    score_threshold: float | None = field(default=None, metadata=changes_results_of("panoptic", "instance"))
    """Score that a query (panoptic) or an instance needs. Default, reference/hf: panoptic 0.8/0.5
    (classes of Mapillary Vistas: 0.0/0.5), instance 0.0/0.5."""
    overlap_threshold: float | None = field(default=None, metadata=changes_results_of("panoptic"))
    """panoptic: drop a segment of which less than this share is left visible. Default: 0.8."""
    mask_threshold: float | None = field(default=None, metadata=changes_results_of("panoptic"))
    """panoptic: a pixel belongs to a mask from this probability on. Default: 0.5."""
    label_ids_to_fuse: tuple[int, ...] | None = field(default=None, metadata=changes_results_of("panoptic"))
    """panoptic: class ids whose segments become one in each image. Default: the stuff of the checkpoint's label map."""
    top_k: int | None = field(default=None, metadata=changes_results_of("instance"))
    """instance: look at so many pairs of query and class, the best. Default: reference 100, hf as many as queries."""
    image_size: str | None = field(default=None, metadata=CHANGES_RESULTS)
    """SHORTEST:LONGEST edge (800:1333) or HEIGHTxWIDTH (384x384). Default: what the checkpoint's files say."""
    exif: bool = field(default=True, metadata=CHANGES_RESULTS)
    """Turn images as their EXIF orientation says; masks are in the turned frame."""
    scaled_jpeg: bool = field(default=False, metadata=CHANGES_RESULTS)
    """Decode JPEGs at 1/2, 1/4 or 1/8 of their size where the network's input is smaller still. Nearly the same."""
    max_image_pixels: int = field(default=64_000_000, metadata=CHANGES_RESULTS)
    """Images with more pixels get a row `too_large`; checked before a pixel is decoded."""
    precision: Literal["fp32", "bf16"] = field(default="fp32", metadata=CHANGES_RESULTS)
    """bf16: matrix products in bfloat16 (sampling, softmax and norms stay in fp32). A CPU needs AMX for bf16."""
    mode: Literal["incremental", "overwrite", "retry-failed"] = "incremental"
    """incremental: new, changed, or done with another model or settings; overwrite: all; retry-failed: those only."""
    tombstone_removed: bool = False
    """Write a row `removed` for each image of earlier runs that is gone from the input."""
    images_per_shard: int | None = None
    """Images of a shard, the unit of retry and commit, at most. Default: 512 on GPUs, 16 on CPUs."""
    shard_mib: int = 128
    """Encoded MiB of a shard at most (one larger image is a shard of its own)."""
    batch_size: int | None = None
    """Images of a forward pass at most; only equal padded sizes share one. Default: 64 on a GPU, 1 on a CPU."""
    max_batch_pixels: int | None = None
    """Padded pixels of a forward pass at most; fewer where memory runs out. Default: --batch-size or 16 of 800x1344."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto: GPUs where the cluster has them or can start them, else CPUs."""
    gpu_actors: str | None = None
    """MIN:MAX model actors (a GPU each; without GPUs, --cpus-per-actor each). Default: what the cluster allows."""
    cpus_per_actor: int | None = None
    """CPUs of a model actor: decode threads beside a GPU, model threads without one. Default: up to 4."""
    limit: int | None = None
    """Only the first N images of the listing."""
    selfcheck: bool = False
    """Write nothing: compare the device's results for 8 (--limit) images with plain PyTorch on a CPU, and time it."""
    run_id: str | None = None
    """Name of the run. Default: an unfinished run of the same settings is resumed, else a new name from the time."""
    max_failure_rate: float = 0.01
    """Exit code 1 when a larger share of the images failed."""
    max_failures: int | None = None
    """Stop as soon as more images than this have failed; what is done is kept."""
    step_timeout: float = 600.0
    """Seconds that one step of one image or batch may take; then its process ends and the shard is tried again."""
    publish_every: float | None = None
    """Minutes between publications of what is done so far. Default: the run is published once, when it is done."""
    compact: bool = False
    """After publishing, merge small files of the tables into large ones."""
    lease_seconds: float = 60.0
    """How long a driver that died keeps others off the output."""
    progress_seconds: float = 10.0
    """Seconds between progress lines where there is no terminal."""
    log_format: Literal["text", "json"] = "text"
    """json: each line on standard error is a JSON object, progress included, and a terminal has no live line."""

    def __post_init__(self) -> None:
        for name in ("input", "output", "model"):
            if not str(getattr(self, name)).strip():
                raise RunError(f"--{name} is empty")
        for name, low, high in (
            ("score_threshold", 0.0, 1.0),
            ("overlap_threshold", 0.0, 1.0),
            ("max_failure_rate", 0.0, 1.0),
            ("images_per_shard", 1, 1_000_000),
            ("shard_mib", 1, 1024),  # an Arrow list of binaries and a worker's memory both end not far above
            ("batch_size", 1, 4096),
            ("max_batch_pixels", 1, 2**40),
            ("cpus_per_actor", 1, 1024),
            ("max_image_pixels", 1, 2**31 - 1),  # run lengths are 32 bit
            ("top_k", 1, 1_000_000),
            ("limit", 1, 2**62),
            ("progress_seconds", 0.1, 86400.0),
            ("max_failures", 0, 2**62),
            ("step_timeout", 1.0, 86400.0),
            ("publish_every", 0.0, 10_000.0),
            ("lease_seconds", 1.0, 86400.0),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise RunError(f"--{name.replace('_', '-')} is {value}; it must lie in {low} .. {high}")
        if self.mask_threshold is not None and not 0.0 < self.mask_threshold < 1.0:
            raise RunError(f"--mask-threshold is {self.mask_threshold}; it must lie between 0 and 1, both excluded")
        if self.run_id is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.run_id):
            raise RunError(f"--run-id {self.run_id!r} may hold letters, digits, '.', '_', '-' only, at most 64")
        if any(class_id < 0 for class_id in self.label_ids_to_fuse or ()):
            raise RunError(f"--label-ids-to-fuse holds a negative id: {sorted(self.label_ids_to_fuse or ())}")
        if self.tombstone_removed and (self.limit is not None or self.mode == "retry-failed"):
            raise RunError("--tombstone-removed needs the whole listing; leave out --limit and --mode retry-failed")
        self._check_flags_of_task()
        self.gpu_actors_range()
        self.parsed_image_size()

    def _check_flags_of_task(self) -> None:
        for f in fields(self):
            tasks = f.metadata.get("changes_results", TASKS)
            if self.task not in tasks and getattr(self, f.name) is not None:
                raise RunError(f"--{f.name.replace('_', '-')} belongs to --task {' and '.join(tasks)}, not {self.task}")

    def gpu_actors_range(self) -> tuple[int, int] | None:
        """(min, max) of --gpu-actors, or None where it was not given."""
        if self.gpu_actors is None:
            return None
        match = re.fullmatch(r"(\d+)(?::(\d+))?", self.gpu_actors)
        if match is None:
            raise RunError(f"--gpu-actors is {self.gpu_actors!r}; write MIN:MAX, for example 1:8")
        low, high = int(match[1]), int(match[2] or match[1])
        if not 1 <= low <= high:
            raise RunError(f"--gpu-actors is {self.gpu_actors!r}; it needs 1 <= MIN <= MAX")
        return low, high

    def parsed_image_size(self) -> ImageSize | None:
        """--image-size as sizes in pixels, or None where it was not given."""
        if self.image_size is None:
            return None
        try:
            return ImageSize.parse(self.image_size)
        except ValueError as error:
            raise RunError(f"--image-size: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they stand in run.json."""
        return {**asdict(self), "label_ids_to_fuse": _list_or_none(self.label_ids_to_fuse)}

    def results_dict(self) -> dict[str, Any]:
        """The settings that change the results of this task, by name."""
        names = {f.name for f in fields(self) if self.task in f.metadata.get("changes_results", ())}
        return {name: value for name, value in self.to_dict().items() if name in names}


def fingerprint(results: dict[str, Any], weights_sha256: str) -> str:
    """Identity of what determines an image's rows: 16 hex digits of sha256 over settings and weights.

    `results` is `Settings.results_dict()` with defaults resolved; the model counts by its weights, not by its name.
    """
    facts = {**results, "model": weights_sha256, "version": RESULTS_VERSION}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _list_or_none(values: tuple[int, ...] | None) -> list[int] | None:
    return None if values is None else sorted(set(values))
