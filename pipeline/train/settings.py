"""The training's settings: their names, types, defaults and help texts.

`jobs/` turns this dataclass into the command line, as it does with that of `pipeline/config.py`. Nothing heavy is
imported here, so that `--help` answers at once. Defaults are the paper's for COCO (appendix, and the original
`configs/coco`).
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from m2f_core.images.image_size import ImageSize
from pipeline.errors import RunError
from pipeline.telemetry.log_lines import LogFormat

# May differ between the command that started a training and the one that goes on with it.
_MAY_CHANGE = (
    *("log_every", "save_every", "evaluate_every", "workers", "cpus_per_worker", "device", "max_failures"),
    "log_format",
)

# Settings that are paths or URIs, and nothing else.
PLACES = ("images", "output", "panoptic_gt", "panoptic_pngs", "instances_gt", "val_images", "val_gt", "val_pngs")

_WHOLE = "whole"  # value of --crop-size
_OF_JITTER = ("min_scale", "max_scale")


@dataclass(frozen=True)
class FinetuneSettings:
    """Train a Mask2Former on data in COCO's formats and write a Hugging Face checkpoint to OUTPUT/model.

    Give --panoptic-gt or --instances-gt, and --model (weights to start from) or --architecture (from scratch). The same
    command goes on where a training stopped. Paths may be local folders or URIs (s3://bucket/prefix); on a cluster,
    OUTPUT must be a URI or a folder that all nodes share.
    """

    images: str
    """Folder or URI prefix of the training images."""
    output: str
    """Folder or URI prefix for checkpoints, log, loss plot and, at the end, the model."""
    panoptic_gt: str | None = None
    """COCO panoptic JSON of the training images."""
    panoptic_pngs: str | None = None
    """Folder of the PNGs of --panoptic-gt. Default: beside it, named as it is without its ending."""
    instances_gt: str | None = None
    """COCO instances JSON of the training images, instead of --panoptic-gt."""
    val_images: str | None = None
    """Folder or URI prefix of images to validate with."""
    val_gt: str | None = None
    """Their ground truth, of the same kind as that of the training images: gives PQ, or AP of masks."""
    val_pngs: str | None = None
    """Folder of the PNGs of --val-gt. Default: beside it, named as it is without its ending."""
    exif: bool = True
    """Turn images as their EXIF orientation says, as the main job does; --no-exif where the annotations do not."""
    model: str | None = None
    """Checkpoint to start from: a folder, a URI, a hub id or an original .pkl. Other labels get a new class head."""
    architecture: str | None = None
    """Start from random weights instead: swin-tiny, swin-small, swin-base, swin-large, or a config.json."""
    iterations: int = 368_750
    """Optimizer steps in all."""
    batch_size: int = 16
    """Images of a step, of all workers together."""
    learning_rate: float = 1e-4
    """Of AdamW, after warm-up."""
    backbone_multiplier: float = 0.1
    """Factor of the learning rate of the backbone; 1.0 suits a training from scratch."""
    weight_decay: float = 0.05
    """Of AdamW; norms, learned queries and position biases do not decay."""
    max_gradient_norm: float = 0.01
    """Gradients of the whole model are scaled down to this norm."""
    schedule: Literal["step", "poly"] = "step"
    """step: the learning rate falls to a tenth at 8/9 and 26/27 (COCO); poly: (1 - progress)^0.9 (the other sets)."""
    warmup_iterations: int = 10
    """Steps over which the learning rate rises."""
    crop_size: str = "1024x1024"
    """HEIGHTxWIDTH of a training image, in pixels. Or `whole`: no jitter, each image at its size in inference."""
    min_scale: float = 0.1
    """Large-scale jitter: an image is resized to fit the crop times a random factor, at least this ..."""
    max_scale: float = 2.0
    """... and at most this."""
    flip: bool = True
    """Mirror half of the images, left to right."""
    train_num_points: int | None = None
    """Points at which matching and losses read a mask; more for tiny things. Default: the model's, mostly 12,544."""
    importance_sample_ratio: float | None = None
    """Part of the points of the losses that is drawn where the mask is uncertain. Default: the model's, mostly 0.75."""
    image_size: str | None = None
    """SHORTEST:LONGEST edge or HEIGHTxWIDTH for validation and for users of the model. Default: --model's, 800:1333."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: matrix products in bfloat16 (autocast); weights, losses, sampling, softmax and norms stay in fp32.

    A CPU needs AMX for bf16."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto: a GPU for each worker where the cluster has any, else CPUs."""
    workers: int = 1
    """Processes that share each batch; gradients are averaged (distributed data parallel)."""
    cpus_per_worker: int | None = None
    """CPUs of a worker: loading processes beside a GPU, model threads without one. Default: 4, or what there is."""
    seed: int = 0
    """Decides initial weights, order, augmentation and sampled points."""
    log_every: int = 20
    """Steps between lines of the log and of the terminal."""
    save_every: int = 1000
    """Steps between checkpoints that a killed training goes on from."""
    evaluate_every: int | None = None
    """Steps between validations; a multiple of --save-every. Default: --save-every. The last step validates always."""
    max_failures: int = 3
    """How often workers that died are started again from the last checkpoint before the training gives up."""
    log_format: LogFormat = "text"
    """json: each line on standard error is a JSON object."""

    def __post_init__(self) -> None:
        self._check_places()
        for name, low, high in (
            ("iterations", 1, 100_000_000),
            ("batch_size", 1, 65_536),
            ("learning_rate", 1e-12, 10.0),
            ("backbone_multiplier", 0.0, 1000.0),
            ("weight_decay", 0.0, 10.0),
            ("max_gradient_norm", 1e-12, 1e12),
            ("warmup_iterations", 0, 10_000_000),
            ("min_scale", 0.01, 100.0),
            ("max_scale", 0.01, 100.0),
            ("train_num_points", 1, 16_777_216),
            ("importance_sample_ratio", 0.0, 1.0),
            ("workers", 1, 1024),
            ("cpus_per_worker", 1, 1024),
            ("seed", 0, 2**31 - 1),
            ("log_every", 1, 10_000_000),
            ("save_every", 1, 10_000_000),
            ("evaluate_every", 1, 10_000_000),
            ("max_failures", 0, 1000),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise RunError(f"{_flag(name)} is {value}; it must lie in {low} .. {high}")
        if self.min_scale > self.max_scale:
            raise RunError(f"--min-scale {self.min_scale} is above --max-scale {self.max_scale}")
        if self.batch_size % self.workers:
            raise RunError(f"--batch-size {self.batch_size} cannot be shared equally by {self.workers} --workers")
        if self.evaluate_every is not None and self.val_gt is None:
            raise RunError("--evaluate-every needs images to validate with: give --val-images and --val-gt")
        if self.evaluate_every is not None and self.evaluate_every % self.save_every:
            raise RunError(f"--evaluate-every {self.evaluate_every} is no multiple of --save-every {self.save_every}")
        if self.crop_size != _WHOLE and self.crop_hw() is None:
            raise RunError(f"--crop-size is {self.crop_size!r}; write HEIGHTxWIDTH, such as 1024x1024, or {_WHOLE}")
        for f in fields(self):
            if self.crop_size == _WHOLE and f.name in _OF_JITTER and getattr(self, f.name) != f.default:
                raise RunError(f"{_flag(f.name)} belongs to the jitter, which --crop-size {_WHOLE} leaves out")
        self.parsed_image_size()

    def _check_places(self) -> None:
        for name in PLACES:
            value = getattr(self, name)
            if value is not None and not value.strip():
                raise RunError(f"{_flag(name)} is empty")
        for one, other in (("panoptic_gt", "instances_gt"), ("model", "architecture")):
            if (getattr(self, one) is None) == (getattr(self, other) is None):
                raise RunError(f"give either {_flag(one)} or {_flag(other)}")
        if (self.val_images is None) != (self.val_gt is None):
            raise RunError("--val-images and --val-gt belong together: give both or neither")
        for pngs, needed in (("panoptic_pngs", self.panoptic_gt), ("val_pngs", self.panoptic_gt and self.val_gt)):
            if getattr(self, pngs) is not None and needed is None:
                raise RunError(f"{_flag(pngs)} belongs to panoptic ground truth, which is not given")

    def crop_hw(self) -> tuple[int, int] | None:
        """--crop-size as (height, width) in pixels; None for whole images."""
        try:
            return ImageSize.parse(self.crop_size).fixed_hw
        except ValueError:
            return None

    def parsed_image_size(self) -> ImageSize | None:
        """--image-size as sizes in pixels, or None where it was not given."""
        if self.image_size is None:
            return None
        try:
            return ImageSize.parse(self.image_size)
        except ValueError as error:
            raise RunError(f"--image-size: {error}") from None

    def identity(self) -> dict[str, Any]:
        """What two commands must have in common for the second to go on with the first one's training."""
        return {name: value for name, value in asdict(self).items() if name not in _MAY_CHANGE}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
