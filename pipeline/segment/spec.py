"""The settings of a model actor, and the result for one image: values that travel between processes.

The driver, too, makes settings of actors, so nothing heavy is imported here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from m2f_core.images.image_size import ImageSize
from m2f_core.inference.tiling import Tiling
from pipeline.segment.inference_settings import InferenceSettings

if TYPE_CHECKING:
    from m2f_core.images.quality import Quality
    from pipeline.segment.kept_logits import KeptInput
    from pipeline.segment.postprocess import FoundSegment


@dataclass(frozen=True)
class SegmentSpec:
    """Everything a model actor needs; tiny, because large constructor arguments break actor restarts (ray#53727)."""

    model: str
    weights_sha256: str
    preprocess: str
    image_size: ImageSize | None
    exif: bool
    max_image_pixels: int
    inference: InferenceSettings
    precision: str  # fp32 | bf16
    device: str  # cuda | cpu
    threads: int  # decoding threads; on a CPU also those of the model
    batch_size: int  # most images in a batch
    max_batch_pixels: int  # most padded pixels in a batch; a single image may have more
    embeddings: bool = False  # give each segment the last state of its query
    keep_logits: float | None = None  # keep queries whose best class has at least this probability; None: none
    gpu_share: float = 1.0  # of the GPU, and of its memory, for this process
    shard_bytes: int = 512 * 2**20  # most encoded bytes in a shard
    step_timeout: float = 600.0  # seconds for one decode or one batch
    scaled_jpeg: bool = False  # decode large JPEGs at a fraction of their size, unless they are cut into tiles
    tiling: Tiling | None = None  # how large images are cut
    planted_faults: bool = False  # tests and drills: look for pipeline.guard.planted_faults in the images


@dataclass(frozen=True)
class RecutSpec:
    """Everything that an actor needs to reduce kept logits again."""

    tables: str  # the output that holds them
    inference: InferenceSettings
    num_classes: int
    tiling: Tiling | None  # how large images were cut
    step_timeout: float


@dataclass(frozen=True)
class SegmentedImage:
    """The result for one image, in the frame of the decoded (and EXIF-oriented) image."""

    height: int
    width: int
    segments: tuple[FoundSegment, ...]
    georeference: dict[str, Any] | None = None  # of a GeoTIFF, as decoding.geotiff.georeference
    quality: Quality | None = None  # None for an image that is cut into tiles
    kept: tuple[KeptInput, ...] | None = None  # of the image or of its tiles; None without --keep-logits
