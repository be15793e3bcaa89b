"""What tests of the model actor share: images made on the spot, and the settings of a small, quick Segmenter."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from m2f_core.checkpoints.checkpoint import Checkpoint
from m2f_core.images.image_size import ImageSize
from m2f_core.inference.settings import PanopticSettings
from pipeline.segment.spec import SegmentSpec


def encoded(height: int = 60, width: int = 80, seed: int = 0, image_format: str = "PNG") -> bytes:
    """An image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format)
    return buffer.getvalue()


def small_spec(checkpoint: Path, **changes) -> SegmentSpec:
    """Images of at most 128 pixels a side in batches of two, on one thread."""
    settings = {
        "model": str(checkpoint),
        "weights_sha256": Checkpoint(checkpoint).sha256,
        "preprocess": "reference",
        "image_size": ImageSize.parse("64:128"),
        "exif": True,
        "max_image_pixels": 1_000_000,
        "inference": PanopticSettings.defaults("reference"),
        "precision": "fp32",
        "device": "cpu",
        "threads": 1,
        "batch_size": 2,
        "max_batch_pixels": 1_000_000,
    }
    return SegmentSpec(**{**settings, **changes})
