"""The settings of a run: the only source of their names, types, defaults and help texts.

`jobs/` turns this dataclass into the command line; a YAML file given with `--config` holds the same names. Nothing
heavy is imported here, so that `--help` answers at once.
"""

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal

from annotated_types import Interval

from m2f_core.config.labels import TASKS, Task
from m2f_core.images.image_size import ImageSize
from m2f_core.inference.tiling import Tiling
from pipeline.budget.deadline import check_deadline, time_zone
from pipeline.errors import RunError
from pipeline.input_spec import Access, InputFormat, InputSpec, Source, check_patterns
from pipeline.node_labels import NodeChoice, parse_flag
from pipeline.setting_fields import (
    IN_AND_OUT,
    LEASE_SECONDS,
    RESOURCES,
    RUN_CONTROL,
    LeaseSeconds,
    Section,
    check_fields,
    flag,
    marker,
)

# Increase this when the same weights and settings give different rows than before, for example after a bug fix.
RESULTS_VERSION = 1


@dataclass(frozen=True)
class ChangesResults:
    """Marks a setting that changes the rows of an image. With a task that is not in `tasks`, the setting is refused.

    These settings and the weights make up the fingerprint. Two runs with equal fingerprints give equal tables (except
    for float rounding that depends on the batch size). A setting that came later is `only_if_given`: while it is not
    given, it is no part of the fingerprint, which stays that of earlier versions.
    """

    tasks: tuple[Task, ...] = TASKS
    only_if_given: bool = False


CHANGES_RESULTS = ChangesResults()


@dataclass(frozen=True)
class SelectsImages:
    """Marks a setting that says which objects of an input are images, and how they are named."""


SELECTS_IMAGES = SelectsImages()

# Names that Windows, and stores that are served to it, keep for devices; also with an ending: nul.txt.
_NAMES_OF_WINDOWS = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}

# An image takes 6 to 7 bytes of a pixel while it is segmented, of a cut image only the decoded pixels: 4 bytes.
_MAX_IMAGE_PIXELS, _MAX_CUT_IMAGE_PIXELS = 64_000_000, 500_000_000

_MODEL = Section("model and task", "After a change of one of these, the next run processes all images again.")
INPUT = Section("input selection")
_RESULTS = Section("result", "After a change of one of these, the next run processes all images again.")
_LIMITS = Section(
    "time and money",
    "At a limit the run stops between shards with exit code 3; the same command continues it.",
)
_PUBLISHING = Section("publishing")


@dataclass(frozen=True)
class Settings:
    """Segment every image below INPUT and write the tables below OUTPUT.

    Paths may be local folders or URIs (s3://bucket/prefix). Credentials come from the usual AWS chain, not from flags.
    """

    input: Annotated[tuple[str, ...], IN_AND_OUT]
    """Read images from these folders, URI prefixes, objects, tars or patterns (s3://bucket/2026-*/**/*.jpg)."""
    output: Annotated[str, IN_AND_OUT]
    """Write tables and run records below this folder or URI prefix, which must not lie inside --input."""
    model: Annotated[str, _MODEL, CHANGES_RESULTS] = "synthetic-scenes"
    """Use this checkpoint: a folder, an original .pkl file, a URI of either, or a hub id (needs the extra `hub`). The
    default was trained on synthetic scenes, for a first try."""
    task: Annotated[Task, _MODEL, CHANGES_RESULTS] = "panoptic"
    """panoptic: find things and stuff without overlap; instance: find things, which may overlap; semantic: give each
    pixel one class."""
    limit: Annotated[int | None, IN_AND_OUT, Interval(ge=1, le=2**62)] = None
    """Process only the first N images of the listing."""
    input_format: Annotated[InputFormat, INPUT, SELECTS_IMAGES] = "auto"
    """auto: objects named *.tar or *.parquet hold images, and each other object is an image; images, tar, parquet: all
    inputs are of this kind; manifest: files that name the images (Parquet, CSV, JSON lines, text); inventory: an S3
    Inventory."""
    include: Annotated[tuple[str, ...], INPUT, SELECTS_IMAGES] = ()
    """Take only images that one of these patterns matches: *.jpg is a name in any folder, train/** a path below the
    input."""
    exclude: Annotated[tuple[str, ...], INPUT, SELECTS_IMAGES] = ()
    """Leave out objects and images that one of these patterns matches. Names such as .DS_Store and Thumbs.db are always
    left out."""
    allow_scheme: Annotated[tuple[str, ...], INPUT] = ()
    """Let a manifest name objects of these schemes too: http, https; file in a manifest that lies in a bucket."""
    image_column: Annotated[str | None, INPUT, SELECTS_IMAGES] = None
    """Parquet: take images from this column; a dot leads into a struct. Default: the only column of bytes, or of a
    struct of bytes and path as of Hugging Face."""
    key_column: Annotated[str | None, INPUT, SELECTS_IMAGES] = None
    """Parquet: name each image by this column. Default: the path beside the bytes; a row without one is named by its
    number in the file."""
    keep_columns: Annotated[tuple[str, ...], INPUT, SELECTS_IMAGES] = ()
    """Parquet: keep these columns of each row, as JSON in the column `attributes` of the table `images`."""
    anonymous: Annotated[bool, INPUT] = False
    """Read --input without credentials, as from a public bucket."""
    requester_pays: Annotated[bool, INPUT] = False
    """Pay for the requests to an --input on S3 or Google Cloud Storage whose owner asks for this."""
    preprocess: Annotated[Literal["reference", "hf"], _RESULTS, CHANGES_RESULTS] = "reference"
    """reference: resize and zero-pad as the model's authors do; hf: give the pixels of transformers' Pillow
    processor."""
    postprocess: Annotated[Literal["reference", "hf"], _RESULTS, CHANGES_RESULTS] = "reference"
    """reference: derive segments as the model's authors do; hf: derive the segments that transformers derives from
    the same logits and fused ids."""
    image_size: Annotated[str | None, _RESULTS, CHANGES_RESULTS] = None
    """Resize images to SHORTEST:LONGEST edge (800:1333) or HEIGHTxWIDTH (384x384). Default: the size in the
    checkpoint's files."""
    score_threshold: Annotated[
        float | None, _RESULTS, Interval(ge=0.0, le=1.0), ChangesResults(("panoptic", "instance"))
    ] = None
    """panoptic, instance: drop queries (instances) that score lower. Default for reference/hf: panoptic 0.8/0.5
    (classes of Mapillary Vistas: 0.0/0.5), instance 0.0/0.5."""
    overlap_threshold: Annotated[float | None, _RESULTS, Interval(ge=0.0, le=1.0), ChangesResults(("panoptic",))] = None
    """panoptic: drop a segment if other segments leave less than this share of its mask visible. Default: 0.8."""
    mask_threshold: Annotated[float | None, _RESULTS, Interval(gt=0.0, lt=1.0), ChangesResults(("panoptic",))] = None
    """panoptic: a mask contains the pixels whose probability is at least this. Default: 0.5."""
    label_ids_to_fuse: Annotated[tuple[int, ...] | None, _RESULTS, ChangesResults(("panoptic",))] = None
    """panoptic: merge all segments of each of these class ids into one per image. Default: the stuff classes of the
    checkpoint's label map."""
    classes: Annotated[tuple[str, ...], _RESULTS, ChangesResults(only_if_given=True)] = ()
    """Write the segments of these classes alone, as a run of all classes finds them (--classes person car, as
    id2label in config.json spells them). Default: all classes."""
    top_k: Annotated[int | None, _RESULTS, Interval(ge=1, le=1_000_000), ChangesResults(("instance",))] = None
    """instance: keep the N best (query, class) pairs of each image. Default: reference 100, hf as many as queries."""
    exif: Annotated[bool, _RESULTS, CHANGES_RESULTS] = True
    """Turn each image as its EXIF orientation says; masks fit the turned image."""
    scaled_jpeg: Annotated[bool, _RESULTS, CHANGES_RESULTS] = False
    """Decode a JPEG at 1/2, 1/4 or 1/8 of its size if the network's input is smaller still: faster, with nearly the
    same pixels."""
    embeddings: Annotated[bool, _RESULTS, ChangesResults(("panoptic", "instance"), only_if_given=True)] = False
    """panoptic, instance: write the last state of each segment's query into the column `embedding` of `segments`, so
    that one query finds segments that look alike."""
    # Run lengths have 32 bits.
    max_image_pixels: Annotated[int | None, _RESULTS, Interval(ge=1, le=2**31 - 1), CHANGES_RESULTS] = None
    """Do not decode an image with more than N pixels; its row gets the error code `too_large`. Default: 64,000,000;
    with --tile 500,000,000, of which a JPEG or PNG takes 2 GB of memory."""
    tile: Annotated[str | None, _RESULTS, ChangesResults(only_if_given=True)] = None
    """Cut an image whose longer side has more than SIZE pixels into tiles of SIZE:OVERLAP pixels (2048:256), segment
    each tile as an image of its own, and merge the segments; see docs/huge-images.md."""
    precision: Annotated[Literal["fp32", "bf16", "int8"], _RESULTS, CHANGES_RESULTS] = "fp32"
    """bf16: compute matrix products in bfloat16; sampling, softmax and norms stay in fp32. A CPU needs AMX for bf16.
    int8 (CPUs with VNNI): the wide layers before the transformer decoder compute with 8 bits."""
    device: Annotated[Literal["auto", "cuda", "cpu"], RESOURCES] = "auto"
    """auto: use GPUs if the cluster has any or can start any, else CPUs; cuda: use GPUs; cpu: use CPUs."""
    gpu_actors: Annotated[str | None, RESOURCES] = None
    """Run MIN:MAX model actors, each with --gpus-per-actor of a GPU (without GPUs: with --cpus-per-actor CPUs).
    Default: as many as the cluster allows."""
    gpus_per_actor: Annotated[float | None, RESOURCES, Interval(ge=0.05, le=1.0)] = None
    """Reserve this part of a GPU, and of its memory, for each model actor: 0.5 puts two actors on each GPU. Default:
    1."""
    cpus_per_actor: Annotated[int | None, RESOURCES, Interval(ge=1, le=1024)] = None
    """Reserve N CPUs for each model actor: they decode images beside a GPU, or run the model. Default: up to 4."""
    model_nodes: Annotated[str | None, RESOURCES] = None
    """Run model actors only on nodes of Ray with this label: KEY=VALUE, KEY=!VALUE, or KEY=VALUE,FALLBACK,... in order
    of preference (market=spot,on-demand). Default: any node with room."""
    helper_nodes: Annotated[str | None, RESOURCES] = None
    """Run the actors that read and write only on nodes with this label, as --model-nodes. Default: any node with room;
    Ray prefers nodes without GPUs."""
    batch_size: Annotated[int | None, RESOURCES, Interval(ge=1, le=4096)] = None
    """Put at most N images into one forward pass; they must have the same padded size. Default: 64 on a GPU, 1 on a
    CPU."""
    max_batch_pixels: Annotated[int | None, RESOURCES, Interval(ge=1, le=2**40)] = None
    """Put at most N padded pixels into one forward pass; an actor that runs out of memory lowers N. Default: no limit
    if --batch-size is given, else 16 images of 800x1344."""
    images_per_shard: Annotated[int | None, RESOURCES, Interval(ge=1, le=1_000_000)] = None
    """Put at most N images into one shard, the unit of retry and commit. Default: 512 on GPUs, 16 on CPUs."""
    # An Arrow list of binaries and a worker's memory both reach their limits not far above this bound.
    shard_mib: Annotated[int, RESOURCES, Interval(ge=1, le=1024)] = 128
    """Put at most N MiB of encoded images into one shard; a larger image gets a shard of its own."""
    mode: Annotated[Literal["incremental", "overwrite", "retry-failed"], RUN_CONTROL] = "incremental"
    """incremental: process images that are new, changed or failed for a passing reason, and all images after a change
    of model or result options; overwrite: process all images; retry-failed: process only images that failed."""
    tombstone_removed: Annotated[bool, RUN_CONTROL] = False
    """Write a row with status `removed` for each image of earlier runs that is gone from the input."""
    run_id: Annotated[str | None, RUN_CONTROL] = None
    """Name the run. Default: continue an unfinished run with the same settings, else make a new name from the time."""
    max_failure_rate: Annotated[float, RUN_CONTROL, Interval(ge=0.0, le=1.0)] = 0.01
    """Exit with code 1 if a larger share of the images failed."""
    max_failures: Annotated[int | None, RUN_CONTROL, Interval(ge=0, le=2**62)] = None
    """Stop the run as soon as more than N images have failed; finished shards are kept."""
    step_timeout: Annotated[float, RUN_CONTROL, Interval(ge=1.0, le=86400.0)] = 600.0
    """End a process if it spends more than N seconds on one step of an image or batch, and retry the shard."""
    lease_seconds: LeaseSeconds = LEASE_SECONDS
    """Keep other drivers off --output for N seconds after the last sign of life of this driver."""
    allow_unsafe_store: Annotated[bool, RUN_CONTROL] = False
    """Run although the store of --output accepts conditional writes and ignores them, or has none that this program
    knows. Other jobs are kept away less surely; see docs/stores.md."""
    progress_seconds: Annotated[float, RUN_CONTROL, Interval(ge=0.1, le=86400.0)] = 10.0
    """Print a progress line every N seconds if stderr is not a terminal."""
    deadline: Annotated[str | None, _LIMITS] = None
    """Be done by this time, such as 06:00 (at most 12 h ahead) or 2026-12-01T06:00+01:00: take as few model actors as
    are fast enough, and begin no shard that would not be done in time."""
    time_zone: Annotated[str, _LIMITS] = "UTC"
    """Read the time of day of --deadline in this zone, such as Europe/Berlin."""
    max_cost: Annotated[float | None, _LIMITS, Interval(gt=0.0, le=1e9)] = None
    """Spend at most N US dollars on the devices of model actors in one command: begin no shard that would cost more."""
    forecast: Annotated[str | None, _LIMITS] = None
    """Take the speed for --deadline and --max-cost from this file, which plan_bucket.py --calibrate writes. Default:
    the first shards measure it."""
    prices: Annotated[str | None, _LIMITS] = None
    """Read what an hour of a device costs from this YAML file. Default: the table of the program
    (pipeline/budget/prices.yaml)."""
    otlp_endpoint: Annotated[str | None, RUN_CONTROL] = None
    """Send a trace of the run, with spans for shards, stages and steps, to this OTLP/HTTP collector (needs the extra
    `otel`). Default: that of OTEL_EXPORTER_OTLP_ENDPOINT, if set."""
    log_format: Annotated[Literal["text", "json"], RUN_CONTROL] = "text"
    """json: write each line on stderr as a JSON object, progress included; a terminal has no live line then."""
    publish_every: Annotated[float | None, _PUBLISHING, Interval(ge=0.0, le=10_000.0)] = None
    """Publish finished shards every N minutes. Default: publish once, at the end of the run."""
    gate: Annotated[str | None, _PUBLISHING] = None
    """Publish the run only if its results are like those of the runs before, within the bounds of this YAML file; else
    the run ends with exit code 3, and jobs/publish.py publishes it after a look. The file may also name golden images,
    which a run has to pass before it begins."""
    compact: Annotated[bool, _PUBLISHING] = False
    """Merge small files of the tables into large ones after publishing."""
    keep_logits: Annotated[float | None, _PUBLISHING, Interval(ge=0.001, le=0.5)] = None
    """Keep, in the table `logits`, the class logits and masks of queries whose best class has at least this
    probability (such as 0.05): jobs/recut.py then applies other thresholds or another task without a GPU."""
    page: Annotated[bool, _PUBLISHING] = True
    """Write a page that shows the finished run, as report.py does (needs the extra `report`); see docs/results.md. The
    page holds small copies of images: --page-images."""
    page_images: Annotated[Literal["embed", "folder", "none"], _PUBLISHING] = "embed"
    """embed: the page holds small copies of some images; folder: they lie beside it, larger; none: --output gets no
    pixels, and the page shows masks alone."""

    def __post_init__(self) -> None:
        if isinstance(self.input, str):  # as a caller of the library, or a --config file, may spell one input
            object.__setattr__(self, "input", (self.input,))
        check_fields(self)
        if not self.input:
            raise RunError("--input names nothing; give a folder or a URI")
        if self.run_id is not None:
            _check_run_id(self.run_id)
        if any(class_id < 0 for class_id in self.label_ids_to_fuse or ()):
            raise RunError(f"--label-ids-to-fuse holds a negative id: {sorted(self.label_ids_to_fuse or ())}")
        if self.tombstone_removed and (self.limit is not None or self.mode == "retry-failed"):
            raise RunError("--tombstone-removed needs the whole listing; leave out --limit and --mode retry-failed")
        if self.tombstone_removed and self.input_spec(()).names_its_images:
            raise RunError(
                f"--tombstone-removed is not for --input-format {self.input_format}: a list does not say of which "
                "images it is the whole"
            )
        if self.gate is not None and self.publish_every is not None:
            raise RunError("--publish-every publishes before --gate sees the whole run; leave out one of the two")
        check_patterns("--include", self.include)
        check_patterns("--exclude", self.exclude)
        self._check_columns()
        self._check_flags_of_task()
        time_zone(self.time_zone)
        if self.deadline is not None:
            check_deadline(self.deadline)
        self.gpu_actors_range()
        self.node_choices()
        self.parsed_image_size()
        if self.parsed_tile() is not None and (self.task, self.postprocess) == ("panoptic", "hf"):
            raise RunError(
                "--tile cannot merge what --task panoptic --postprocess hf gives: as in transformers, one segment id "
                "may stand for several classes there; leave out --postprocess hf"
            )

    def _check_columns(self) -> None:
        named = {"image_column": self.image_column, "key_column": self.key_column, "keep_columns": self.keep_columns}
        for name, value in named.items():
            if value and self.input_format in ("images", "tar"):
                raise RunError(f"{flag(name)} is for Parquet files; --input-format {self.input_format} has no columns")
        if twice := [name for name in self.keep_columns if self.keep_columns.count(name) > 1]:
            raise RunError(f"--keep-columns names {twice[0]} twice")

    def _check_flags_of_task(self) -> None:
        for f in fields(self):
            changes = marker(f, ChangesResults)
            if changes and self.task not in changes.tasks and getattr(self, f.name) != f.default:
                raise RunError(f"{flag(f.name)} belongs to --task {' and '.join(changes.tasks)}, not {self.task}")

    def gpu_actors_range(self) -> tuple[int, int] | None:
        """(min, max) of --gpu-actors, or None if the flag was not given."""
        if self.gpu_actors is None:
            return None
        match = re.fullmatch(r"(\d+)(?::(\d+))?", self.gpu_actors)
        if match is None:
            raise RunError(f"--gpu-actors is {self.gpu_actors!r}; write MIN:MAX, for example 1:8")
        low, high = int(match[1]), int(match[2] or match[1])
        if not 1 <= low <= high:
            raise RunError(f"--gpu-actors is {self.gpu_actors!r}; it needs 1 <= MIN <= MAX")
        return low, high

    def actors_per_gpu(self) -> int:
        """How many model actors share a GPU."""
        return actors_on_a_gpu(self.gpus_per_actor or 1.0)

    def node_choices(self) -> tuple[NodeChoice, NodeChoice]:
        """Nodes for model actors, and nodes for the actors that read and write."""
        return parse_flag("--model-nodes", self.model_nodes), parse_flag("--helper-nodes", self.helper_nodes)

    def label_keys(self) -> frozenset[str]:
        """Labels of nodes that --model-nodes and --helper-nodes name."""
        return frozenset(choice.key for choice in self.node_choices() if choice.key)

    def of_own_run(self, **changes: Any) -> "Settings":
        """The settings with which another job makes a run of its own: changed, and without limits of time and money,
        gate and page.
        """
        given = {field.name: getattr(self, field.name) for field in fields(Settings)}
        own = {"deadline": None, "max_cost": None, "forecast": None, "gate": None, "page": False}
        return Settings(**{**given, **own, **changes})

    def input_spec(self, sources: tuple[Source, ...]) -> InputSpec:
        """What the run reads; `sources` are the inputs."""
        return InputSpec(
            sources=sources,
            format=self.input_format,
            include=self.include,
            exclude=self.exclude,
            allow_schemes=self.allow_scheme,
            image_column=self.image_column,
            key_column=self.key_column,
            keep_columns=self.keep_columns,
            access=Access(self.anonymous, self.requester_pays),
        )

    def parsed_image_size(self) -> ImageSize | None:
        """--image-size as sizes in pixels, or None if the flag was not given."""
        if self.image_size is None:
            return None
        try:
            return ImageSize.parse(self.image_size)
        except ValueError as error:
            raise RunError(f"--image-size: {error}") from None

    def parsed_tile(self) -> Tiling | None:
        """--tile as lengths in pixels, or None if the flag was not given."""
        if self.tile is None:
            return None
        try:
            return Tiling.parse(self.tile)
        except ValueError as error:
            raise RunError(f"--tile: {error}") from None

    def most_image_pixels(self) -> int:
        """--max-image-pixels, or its default."""
        if self.max_image_pixels is not None:
            return self.max_image_pixels
        return _MAX_IMAGE_PIXELS if self.tile is None else _MAX_CUT_IMAGE_PIXELS

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, as run.json stores them."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {**plain, "label_ids_to_fuse": _list_or_none(self.label_ids_to_fuse)}

    def selection_dict(self) -> dict[str, Any]:
        """The settings that say which objects of the inputs are images, by name, without those that are defaults."""
        chosen = {f.name for f in fields(self) if marker(f, SelectsImages) and getattr(self, f.name) != f.default}
        return {name: value for name, value in self.to_dict().items() if name in chosen}

    def results_dict(self) -> dict[str, Any]:
        """The settings that change the results of this task, by name. Equal settings have equal values."""
        names = {
            f.name
            for f in fields(self)
            if (changes := marker(f, ChangesResults)) is not None
            and self.task in changes.tasks
            and not (changes.only_if_given and getattr(self, f.name) == f.default)
        }
        values = {
            **self.to_dict(),
            "max_image_pixels": self.most_image_pixels(),
            "tile": str(self.parsed_tile()),
            "classes": sorted(set(self.classes)),
        }
        return {name: value for name, value in values.items() if name in names}


def actors_on_a_gpu(gpus: float) -> int:
    """How many actors that reserve this part of a GPU fit on one: an actor's part lies on a single GPU."""
    return math.floor(1 / gpus + 1e-9)


def is_run_id(text: str) -> bool:
    """Whether a run may have this name."""
    try:
        _check_run_id(text)
    except RunError:
        return False
    return True


def _check_run_id(run_id: str) -> None:
    """Raise RunError unless `run_id` can name a folder below `_runs` in every store.

    `_runs` also holds objects of all runs: `format.json`, `lease.json`, and on disks a `.lock` beside each. A run of
    such a name would take their place, or would not be found again.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", run_id):
        raise RunError(
            f"--run-id {run_id!r} may hold letters of ASCII, digits, '.', '_', '-' only, at most 64, and must begin "
            "with a letter or digit"
        )
    name = run_id.casefold()
    if name.endswith((".json", ".lock", ".")) or name.partition(".")[0] in _NAMES_OF_WINDOWS:
        raise RunError(
            f"--run-id {run_id} cannot name a folder of a run: the name must not end in .json, .lock or a dot, nor be "
            "a device of Windows (con, nul, com1, ...); give another one"
        )


@dataclass(frozen=True)
class SelfCheckSettings(Settings):
    """Compare what the device computes for a few images with plain PyTorch on a CPU, and time one model actor.

    The flags are those of segment_bucket.py, so that both jobs can share a --config file. Nothing is written.
    """

    limit: Annotated[int, IN_AND_OUT, Interval(ge=1, le=10_000)] = 8
    """Compare and time with the first N images of the listing; a CPU takes seconds for each."""


def fingerprint(results: dict[str, Any], weights_sha256: str) -> str:
    """Identify everything that determines the rows of an image: 16 hex digits of a sha256 over settings and weights.

    `results` is `Settings.results_dict()` with defaults resolved. The model enters by its weights, not by its name.
    """
    facts = {**results, "model": weights_sha256, "version": RESULTS_VERSION}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _list_or_none(values: tuple[int, ...] | None) -> list[int] | None:
    return None if values is None else sorted(set(values))
