"""Encoded bytes -> images for the network: measured by their headers first, then decoded and resized by threads."""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from PIL import Image

from m2f_core.images.geometry import ImageGeometry
from m2f_core.images.quality import measure_quality
from pipeline.decoding.decode import decode_image, measure_image, open_image, read_georeference
from pipeline.decoding.regions import Regions
from pipeline.errors import ErrorCode, ImageError
from pipeline.guard import planted_faults
from pipeline.guard.watchdog import watch
from pipeline.segment.cut_images import CutImage
from pipeline.segment.device_model import Network, PreparedImage
from pipeline.segment.spec import SegmentSpec
from pipeline.store.filesystem import one_line
from pipeline.telemetry.costs import Costs

# In multiples of the network's input size. With 1 no resize remains, and the pixels differ by up to 30 levels; with
# 1.25 they differ by a third of that.
_LEAST_DECODED = 1.25


@dataclass(frozen=True)
class Measured:
    """What the header of an image says."""

    image: ImageGeometry | CutImage
    georeference: dict[str, Any] | None


class Preparation:
    """Prepares images for one network. Thread safe."""

    def __init__(self, spec: SegmentSpec, network: Network):
        self.spec = spec
        self.network = network
        measure_quality(Image.new("RGB", (8, 8)))  # compiles the kernel before a shard comes

    def measure(self, data: bytes | None, name: str, costs: Costs) -> Measured | ImageError | None:
        """Read the size from the header alone, so that images can be grouped before any image is decoded."""
        if data is None:
            return None
        spec, geometry = self.spec, self.network.processor.geometry
        try:
            with watch("reading the header of", name), costs.of_thread("decode"):
                height, width = measure_image(data, max_pixels=spec.max_image_pixels, apply_exif=spec.exif)
                place = read_georeference(data)
            if spec.tiling is None or not spec.tiling.cuts(height, width):
                return Measured(geometry(height, width), place)
            of_tile = geometry(*spec.tiling.tile_hw(height, width))
            return Measured(CutImage(name, (height, width), spec.tiling, of_tile, partial(self._open, data)), place)
        except ImageError as error:
            return error
        except ValueError as error:  # pad_size is smaller than the image, or there would be too many windows
            return ImageError(ErrorCode.TOO_LARGE, one_line(error))

    def _open(self, data: bytes) -> Regions:
        if self.spec.planted_faults:
            planted_faults.trip(data)
        return open_image(data, max_pixels=self.spec.max_image_pixels, apply_exif=self.spec.exif)

    def prepare(self, data: bytes, geometry: ImageGeometry, name: str, costs: Costs) -> PreparedImage | ImageError:
        """Decode and resize a whole image, of the size that `measure` has found."""
        at_least_hw = least_decoded(geometry) if self.spec.scaled_jpeg else None
        try:
            with watch("decoding", name):
                if self.spec.planted_faults:
                    planted_faults.trip(data)
                with costs.of_thread("decode"):
                    image = decode_image(
                        data,
                        max_pixels=self.spec.max_image_pixels,
                        apply_exif=self.spec.exif,
                        at_least_hw=at_least_hw,
                    )
                    quality = measure_quality(image)
                with costs.of_thread("resize"):
                    return replace(self.network.prepare(image, geometry, name), quality=quality)
        except ImageError as error:
            return error
        except MemoryError:
            return ImageError(ErrorCode.TOO_LARGE, "the machine has too little memory to decode the image")

    def prepare_tile(self, image: CutImage, index: int, costs: Costs) -> PreparedImage | ImageError:
        """Read and resize one tile; the first one opens the image."""
        try:
            with watch("decoding", image.name):
                with costs.of_thread("decode"):
                    tile = Image.fromarray(image.read(index))
                with costs.of_thread("resize"):
                    return self.network.prepare(tile, image.geometry, image.name)
        except ImageError as error:
            return error
        except MemoryError:
            return ImageError(ErrorCode.TOO_LARGE, "the machine has too little memory to decode the image")


def least_decoded(geometry: ImageGeometry) -> tuple[int, int]:
    """The smallest (height, width) at which a JPEG may be decoded."""
    height, width = geometry.resized_hw
    return math.ceil(_LEAST_DECODED * height), math.ceil(_LEAST_DECODED * width)
