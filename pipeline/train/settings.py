"""The training's settings: their names, types, defaults and help texts.

`jobs/` turns this dataclass into the command line, as it does with `pipeline/config.py`. Nothing heavy is imported
here, so that `--help` answers at once. Defaults are the paper's for COCO (appendix, and the original `configs/coco`).
"""

from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal

from annotated_types import Interval

from m2f_core.config.labels import Task
from m2f_core.images.image_size import ImageSize
from pipeline.errors import RunError
from pipeline.setting_fields import IN_AND_OUT, RESOURCES, RUN_CONTROL, Section, check_fields, flag

# These may differ between the command that started a training and the command that continues it.
_MAY_CHANGE = (
    *(
        "log_every",
        "save_every",
        "evaluate_every",
        "workers",
        "cpus_per_worker",
        "device",
        "max_failures",
        "recompute_activations",
    ),
    "log_format",
)

# Settings that must be paths or URIs.
GROUND_TRUTHS = ("panoptic_gt", "instances_gt", "semantic_gt", "instance_maps")
PLACES = ("images", "output", *GROUND_TRUTHS, "panoptic_pngs", "id2label", "val_images", "val_gt", "val_pngs")
_OF_MAPS = ("id2label", "ignore_label", "reduce_zero_label")

_WHOLE = "whole"  # value of --crop-size
_OF_JITTER = ("min_scale", "max_scale")

_VALIDATION = Section("validation")
_MODEL = Section("model")
_OPTIMIZATION = Section("optimization")
_AUGMENTATION = Section("augmentation")


@dataclass(frozen=True)
class FinetuneSettings:
    """Train a model and write a Hugging Face checkpoint to OUTPUT/model.

    Give --panoptic-gt or --instances-gt (COCO's formats), --semantic-gt or --instance-maps (PNGs), and --model (weights
    to start from) or --architecture (from scratch). The same command continues a training that was stopped. Paths may
    be local folders or URIs (s3://bucket/prefix); on a cluster, OUTPUT must be a URI or a folder that all nodes share.
    """

    images: Annotated[str, IN_AND_OUT]
    """Read training images from this folder or URI prefix."""
    output: Annotated[str, IN_AND_OUT]
    """Write checkpoints, log, loss plot and, at the end, the model below this folder or URI prefix."""
    panoptic_gt: Annotated[str | None, IN_AND_OUT] = None
    """Train on this COCO panoptic JSON."""
    panoptic_pngs: Annotated[str | None, IN_AND_OUT] = None
    """Read the PNGs of --panoptic-gt from this folder. Default: the path of the JSON file without `.json`."""
    instances_gt: Annotated[str | None, IN_AND_OUT] = None
    """Train on this COCO instances JSON, instead of --panoptic-gt."""
    semantic_gt: Annotated[str | None, IN_AND_OUT] = None
    """Train on the label PNGs in this folder, named as the images: a pixel is a class number. Instead of
    --panoptic-gt."""
    instance_maps: Annotated[str | None, IN_AND_OUT] = None
    """Train on the PNGs in this folder, named as the images: red is the class number, green tells objects of a class
    apart. Instead of --panoptic-gt."""
    id2label: Annotated[str | None, IN_AND_OUT] = None
    """Read the class names of --semantic-gt or --instance-maps from this JSON file: {"0": "road", "1": "sky"}.
    Default: those of --model."""
    ignore_label: Annotated[int, IN_AND_OUT, Interval(ge=0, le=65_535)] = 255
    """Ignore pixels of --semantic-gt (or red in --instance-maps) with this value."""
    reduce_zero_label: Annotated[bool, IN_AND_OUT] = False
    """Class numbers in --semantic-gt or --instance-maps begin at 1, and 0 is ignored, as in ADE20K's files."""
    exif: Annotated[bool, IN_AND_OUT] = True
    """Turn each image as its EXIF orientation says; use --no-exif if the annotations fit the stored pixels."""
    val_images: Annotated[str | None, _VALIDATION] = None
    """Validate with the images of this folder or URI prefix."""
    val_gt: Annotated[str | None, _VALIDATION] = None
    """Validate with this ground truth, of the same kind as the training's: gives PQ, AP of masks, or mIoU."""
    val_pngs: Annotated[str | None, _VALIDATION] = None
    """Read the PNGs of --val-gt from this folder. Default: the path of the JSON file without `.json`."""
    evaluate_every: Annotated[int | None, _VALIDATION, Interval(ge=1, le=10_000_000)] = None
    """Validate every N steps, a multiple of --save-every, and at the last step. Default: --save-every."""
    image_size: Annotated[str | None, _VALIDATION] = None
    """Resize images to SHORTEST:LONGEST edge or HEIGHTxWIDTH in validation, and write this size into the model's
    files. Default: the size of --model, else 800:1333."""
    model: Annotated[str | None, _MODEL] = None
    """Start from this checkpoint: a folder, a URI, a hub id or an original .pkl file. If its classes differ from the
    data's, the class head starts from random weights."""
    architecture: Annotated[str | None, _MODEL] = None
    """Start from random weights: swin-tiny, swin-small, swin-base, swin-large, a size of another family
    (docs/families.md), or a config.json."""
    iterations: Annotated[int, _OPTIMIZATION, Interval(ge=1, le=100_000_000)] = 368_750
    """Train for N optimizer steps."""
    batch_size: Annotated[int, _OPTIMIZATION, Interval(ge=1, le=65_536)] = 16
    """Put N images into one step, over all workers together."""
    learning_rate: Annotated[float, _OPTIMIZATION, Interval(ge=1e-12, le=10.0)] = 1e-4
    """Set AdamW's learning rate after warm-up."""
    backbone_multiplier: Annotated[float, _OPTIMIZATION, Interval(ge=0.0, le=1000.0)] = 0.1
    """Multiply the learning rate of the backbone (of a plain transformer: of its first block) by this; 1.0 suits a
    training from scratch."""
    weight_decay: Annotated[float, _OPTIMIZATION, Interval(ge=0.0, le=10.0)] = 0.05
    """Set AdamW's weight decay; norms, learned queries and position biases do not decay."""
    max_gradient_norm: Annotated[float, _OPTIMIZATION, Interval(ge=1e-12, le=1e12)] = 0.01
    """Scale the gradients of the whole model down to this norm if their norm is larger."""
    schedule: Annotated[Literal["step", "poly"], _OPTIMIZATION] = "step"
    """step: divide the learning rate by 10 at 8/9 and 26/27 of the steps (COCO); poly: multiply it by (1 -
    progress)^0.9 (other data sets)."""
    warmup_iterations: Annotated[int, _OPTIMIZATION, Interval(ge=0, le=10_000_000)] = 10
    """Raise the learning rate over the first N steps."""
    train_num_points: Annotated[int | None, _OPTIMIZATION, Interval(ge=1, le=16_777_216)] = None
    """Read each mask at N points in matching and losses; tiny things need more. Default: the model's, mostly 12,544."""
    importance_sample_ratio: Annotated[float | None, _OPTIMIZATION, Interval(ge=0.0, le=1.0)] = None
    """Draw this share of the loss points where the mask is uncertain. Default: the model's, mostly 0.75."""
    precision: Annotated[Literal["fp32", "bf16"], _OPTIMIZATION] = "fp32"
    """bf16: compute matrix products in bfloat16; weights, losses, sampling, softmax and norms stay in fp32.
    A CPU needs AMX for bf16."""
    recompute_activations: Annotated[bool, _OPTIMIZATION] = False
    """Keep less of each block for the backward pass and compute it again there: less memory, slower steps, the same
    result."""
    seed: Annotated[int, _OPTIMIZATION, Interval(ge=0, le=2**31 - 1)] = 0
    """Seed the initial weights, the order of images, the augmentation and the sampled points."""
    crop_size: Annotated[str, _AUGMENTATION] = "1024x1024"
    """Crop training images to HEIGHTxWIDTH pixels. `whole`: no jitter and no crop, each image at its size in
    inference."""
    min_scale: Annotated[float, _AUGMENTATION, Interval(ge=0.01, le=100.0)] = 0.1
    """Large-scale jitter: resize an image to fit the crop, times a random factor of at least this."""
    max_scale: Annotated[float, _AUGMENTATION, Interval(ge=0.01, le=100.0)] = 2.0
    """Large-scale jitter: resize an image to fit the crop, times a random factor of at most this."""
    flip: Annotated[bool, _AUGMENTATION] = True
    """Mirror half of the images, left to right."""
    device: Annotated[Literal["auto", "cuda", "cpu"], RESOURCES] = "auto"
    """auto: give each worker a GPU if the cluster has any, else CPUs; cuda: use GPUs; cpu: use CPUs."""
    workers: Annotated[int, RESOURCES, Interval(ge=1, le=1024)] = 1
    """Share each batch among N processes, which average their gradients (distributed data parallel)."""
    cpus_per_worker: Annotated[int | None, RESOURCES, Interval(ge=1, le=1024)] = None
    """Reserve N CPUs for each worker: they load images beside a GPU, or run the model. Default: 4, or fewer if the
    cluster has fewer."""
    log_every: Annotated[int, RUN_CONTROL, Interval(ge=1, le=10_000_000)] = 20
    """Write a line to the log and the terminal every N steps."""
    save_every: Annotated[int, RUN_CONTROL, Interval(ge=1, le=10_000_000)] = 1000
    """Save a checkpoint every N steps; a stopped training continues from the last one."""
    max_failures: Annotated[int, RUN_CONTROL, Interval(ge=0, le=1000)] = 3
    """Restart workers that died from the last checkpoint up to N times, then give up."""
    log_format: Annotated[Literal["text", "json"], RUN_CONTROL] = "text"
    """json: write each line on stderr as a JSON object."""

    def __post_init__(self) -> None:
        check_fields(self)
        self._check_places()
        if self.min_scale > self.max_scale:
            raise RunError(f"--min-scale {self.min_scale} is above --max-scale {self.max_scale}")
        if self.batch_size % self.workers:
            raise RunError(f"--batch-size {self.batch_size} cannot be shared equally by {self.workers} --workers")
        if self.evaluate_every is not None and self.val_gt is None:
            raise RunError("--evaluate-every needs images to validate with: give --val-images and --val-gt")
        if self.evaluate_every is not None and self.evaluate_every % self.save_every:
            raise RunError(
                f"--evaluate-every {self.evaluate_every} is not a multiple of --save-every {self.save_every}"
            )
        if self.crop_size != _WHOLE and self.crop_hw() is None:
            raise RunError(f"--crop-size is {self.crop_size!r}; write HEIGHTxWIDTH, such as 1024x1024, or {_WHOLE}")
        for f in fields(self):
            if self.crop_size == _WHOLE and f.name in _OF_JITTER and getattr(self, f.name) != f.default:
                raise RunError(
                    f"{flag(f.name)} sets the jitter, which --crop-size {_WHOLE} turns off; leave one of the two out"
                )
        self.parsed_image_size()

    def _check_places(self) -> None:
        if sum(getattr(self, name) is not None for name in GROUND_TRUTHS) != 1:
            raise RunError(f"give exactly one of {', '.join(map(flag, GROUND_TRUTHS))}")
        if (self.model is None) == (self.architecture is None):
            raise RunError("give either --model or --architecture")
        for f in fields(self):
            if f.name in _OF_MAPS and getattr(self, f.name) != f.default and not self.trains_on_maps():
                raise RunError(f"{flag(f.name)} needs --semantic-gt or --instance-maps, which is not given")
        if (self.val_images is None) != (self.val_gt is None):
            raise RunError("--val-images and --val-gt belong together: give both or neither")
        for pngs, needed in (("panoptic_pngs", self.panoptic_gt), ("val_pngs", self.panoptic_gt and self.val_gt)):
            if getattr(self, pngs) is not None and needed is None:
                raise RunError(f"{flag(pngs)} needs panoptic ground truth, which is not given")

    def trains_on_maps(self) -> bool:
        """Whether the ground truth is a folder of PNGs without a JSON."""
        return self.semantic_gt is not None or self.instance_maps is not None

    def task(self) -> Task:
        """What the ground truth is for."""
        if self.semantic_gt is not None:
            return "semantic"
        return "panoptic" if self.panoptic_gt is not None else "instance"

    def crop_hw(self) -> tuple[int, int] | None:
        """--crop-size as (height, width) in pixels; None for whole images."""
        try:
            return ImageSize.parse(self.crop_size).fixed_hw
        except ValueError:
            return None

    def parsed_image_size(self) -> ImageSize | None:
        """--image-size in pixels, or None if it was not given."""
        if self.image_size is None:
            return None
        try:
            return ImageSize.parse(self.image_size)
        except ValueError as error:
            raise RunError(f"--image-size: {error}") from None

    def identity(self) -> dict[str, Any]:
        """The settings that a command must share with a training to continue it."""
        return {name: value for name, value in asdict(self).items() if name not in _MAY_CHANGE}
