"""The pictures of the gallery: the images of the sample, read again and made small, with their masks at that size.

One image is decoded at a time. Pixels come through the decoder of the run, so they are upright where the masks are.

Legend: h, w pixels of a picture.
"""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from PIL import Image, features
from tenacity import retry_if_not_exception_type

from m2f_core.masks.rle import decode_counts, encode_counts
from pipeline.config import Settings
from pipeline.decoding.decode import decode_image
from pipeline.errors import ImageError, RunError
from pipeline.input_spec import InputSpec
from pipeline.inputs.reads import ImageReader, ListedImage, ReadImage
from pipeline.inputs.selection import Selection
from pipeline.inputs.sources import input_spec
from pipeline.inputs.verified import LASTING, ChangedError, CorruptError
from pipeline.look_ahead import look_ahead
from pipeline.page.figures.runs import ShownRun
from pipeline.page.figures.sample import SampledImage
from pipeline.plan.plan_files import is_below, read_plan_file
from pipeline.schema import LISTED
from pipeline.store.filesystem import STORE_ERRORS, one_line
from pipeline.store.objects import TooManyBytesError
from pipeline.store.retries import IMAGE
from pipeline.tables.run_rows import stream_run

SMALL, LARGE = 512, 1280  # longer side of a picture in the page, and of a file beside it
NOT_WANTED = "--images none copies no pixels"  # in place of a reader
MOST_SEGMENTS = 100  # drawn of an image; the rest have the lowest scores
_MOST_PIXELS = 100_000_000  # of an image that is decoded for a picture
_READ_THREADS, _READ_SECONDS = 8, 120.0
_SEGMENT_COLUMNS = ["image_key", "segment_id", "category_id", "score", "area", "segmentation"]
_READ_ERRORS = (ImageError, RunError, ChangedError, CorruptError, TooManyBytesError, *STORE_ERRORS)


@dataclass(frozen=True)
class Picture:
    """A small copy of an image, or why there is none. `mime` and `data`: the encoded copy."""

    width: int
    height: int
    mime: str = ""
    data: bytes = b""
    missing: str = ""

    @property
    def uri(self) -> str:
        return data_uri(self.mime, self.data) if self.data else ""


class SampleReader:
    """Reads images of a run again, as the run read them: by its records, its plan and its ETags."""

    def __init__(self, run: ShownRun, images: Sequence[SampledImage]):
        """`images` are all that will be read. RunError if the inputs of the run cannot be opened."""
        self.settings = _settings(run)
        self.spec: InputSpec = input_spec(self.settings)
        self.reader = ImageReader(self.spec)
        self.listed = self._listed(run, images)

    def _listed(self, run: ShownRun, images: Sequence[SampledImage]) -> dict[str, ListedImage]:
        """Where each image lies, from the plan. Where the plan is gone or of an older program, from the rows: they say
        it of objects that are one image each, and only those below the inputs are read.
        """
        try:
            with run.output.errors():
                if not run.folder.is_tidied():
                    return dict(self._planned(run, images))
        except RunError:
            pass
        below = [Selection(self.spec, source).below for source in self.spec.sources]
        return {
            image.image_key: ListedImage(image.image_key, image.etag, None)
            for image in images
            if "#" not in image.image_key and any(is_below(image.image_key, one) for one in below)
        }

    def _planned(self, run: ShownRun, images: Sequence[SampledImage]) -> Iterator[tuple[str, ListedImage]]:
        shards, keys = {image.shard for image in images}, {image.image_key for image in images}
        for file in run.record.plan.files:
            wanted = sorted(shard for shard in shards if 0 <= shard - file.first_shard < file.num_shards)
            for _, table in read_plan_file(run.output, self.spec, file, wanted) if wanted else ():
                rows = table.select(LISTED.names).to_pylist()
                yield from ((row["image_key"], ListedImage(**row)) for row in rows if row["image_key"] in keys)

    def read(self, image: SampledImage) -> bytes | str:
        """The encoded bytes, or why they cannot be read."""
        place = self.listed.get(image.image_key)
        if place is None:
            return "the plan of the run, which says where the image lies, cannot be read any more"
        try:
            for attempt in IMAGE.retrying(retry_if_not_exception_type((*LASTING, RunError, TooManyBytesError))):
                with attempt:
                    [found] = self.reader.read([place], attempt.retry_state.attempt_number, _READ_SECONDS)
        except _READ_ERRORS as error:
            return one_line(error)
        return found.data if isinstance(found, ReadImage) else one_line(found)

    def pixels(self, data: bytes, at_least_hw: tuple[int, int] | None = None) -> Image.Image | str:
        """The decoded image, or why there is none."""
        most = min(_MOST_PIXELS, self.settings.most_image_pixels())
        try:
            return decode_image(data, max_pixels=most, apply_exif=self.settings.exif, at_least_hw=at_least_hw)
        except ImageError as error:
            return one_line(error)

    def read_each(self, images: Sequence[SampledImage]) -> Iterator[bytes | str]:
        """`read` of each image, in order, ahead by threads."""
        with ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="pictures") as threads:
            yield from look_ahead(lambda image: threads.submit(self.read, image), images, _READ_THREADS)


def _settings(run: ShownRun) -> Settings:
    """The settings of the run, as far as this program knows them. RunError if they are none of a run."""
    known = {field.name for field in fields(Settings)}
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in run.record.settings.items()
        if name in known and value is not None
    }
    try:
        return Settings(**given)
    except TypeError:
        raise RunError(f"the settings in run.json of run {run.run_id} do not name --input and --output") from None


def open_reader(run: ShownRun, images: Sequence[SampledImage]) -> SampleReader | str:
    """A reader of these images, or why they cannot be read: then the page shows their masks alone."""
    try:
        return SampleReader(run, images)
    except RunError as error:
        return one_line(error)


def pictures(reader: SampleReader | str, images: Sequence[SampledImage], longest: int) -> Iterator[Picture]:
    """A picture of each image, in order, with a longer side of at most `longest`."""
    if isinstance(reader, str):
        yield from (Picture(*small_size(i.height, i.width, longest), missing=reader) for i in images)
        return
    for image, data in zip(images, reader.read_each(images), strict=True):
        yield _picture(reader, image, data, longest)


def _picture(reader: SampleReader, image: SampledImage, data: bytes | str, longest: int) -> Picture:
    width, height = small_size(image.height, image.width, longest)
    pixels = data if isinstance(data, str) else reader.pixels(data, (height, width))
    if isinstance(pixels, str):
        return Picture(width, height, missing=pixels)
    small = pixels.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return Picture(width, height, *encoded(small))


def data_uri(mime: str, data: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def encoded(picture: Image.Image) -> tuple[str, bytes]:
    """(MIME type, bytes) of a small picture: WebP, or JPEG where Pillow lacks WebP."""
    buffer = io.BytesIO()
    if features.check("webp"):
        picture.save(buffer, "WEBP", quality=78, method=4)
        return "image/webp", buffer.getvalue()
    picture.save(buffer, "JPEG", quality=82, optimize=True)
    return "image/jpeg", buffer.getvalue()


def small_size(height: int, width: int, longest: int) -> tuple[int, int]:
    """(width, height) of a picture; never larger than the image."""
    scale = min(1.0, longest / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def segments_of(run: ShownRun, shards: Mapping[str, int]) -> dict[str, list[dict[str, Any]]]:
    """The rows of `segments`, with masks, of images in a run, by image_key and by ascending score.

    `shards`: image_key -> the shard of the image in this run.
    """
    found: dict[str, list[dict[str, Any]]] = {key: [] for key in shards}
    for batch in stream_run(run.output, "segments", run.run_id, _SEGMENT_COLUMNS, set(shards.values()), found):
        for row in batch.to_pylist():
            found[row["image_key"]].append(row)
    return {key: sorted(rows, key=lambda r: (r["score"], -r["segment_id"])) for key, rows in found.items()}


def small_masks(rows: Sequence[Mapping[str, Any]], picture: Picture) -> list[dict[str, Any]]:
    """The segments as the page draws them: category, score, area, and COCO RLE at the size of the picture.

    A pixel of the picture is in the mask if the pixel of the image at its centre is. RunError if a mask is damaged.
    """
    drawn = rows[-MOST_SEGMENTS:]
    return [
        {
            "id": row["segment_id"],
            "c": row["category_id"],
            "s": round(row["score"], 4),
            "a": row["area"],
            "m": small_counts(row, picture.height, picture.width).decode(),
        }
        for row in drawn
    ]


def small_counts(row: Mapping[str, Any], height: int, width: int) -> bytes:
    """Compressed counts of the mask of a segment at a smaller size, computed from its runs: no mask is made."""
    try:
        of_height, of_width = row["segmentation"]["size"]
        ends = np.cumsum(decode_counts(row["segmentation"]["counts"].encode()))
        if of_height < height or of_width < width or ends[-1] != of_height * of_width:
            raise ValueError(f"its mask has {ends[-1]} pixels, but its size is {of_height} x {of_width}")
    except (ValueError, TypeError, AttributeError) as error:
        raise RunError(f"segment {row['segment_id']} of {row['image_key']} is damaged: {error}") from None
    rows_h, columns_w = (
        ((np.arange(to) + 0.5) * of / to).astype(np.int64) for to, of in ((height, of_height), (width, of_width))
    )
    # Where each run ends in the picture: after whole columns of the picture, and some rows of the column of its end.
    columns, rows = np.divmod(ends, of_height)
    whole = np.searchsorted(columns_w, columns)
    is_inside = columns_w[np.minimum(whole, width - 1)] == columns
    stops = whole * height + np.where(is_inside, np.searchsorted(rows_h, rows), 0)
    # Runs that have no pixel in the picture go, and their neighbours, which are of one kind, become one run.
    lengths = np.diff(stops, prepend=0)
    is_set = np.flatnonzero(lengths) % 2 == 1
    firsts = np.flatnonzero(np.diff(is_set, prepend=~is_set[:1]))
    merged = np.add.reduceat(lengths[lengths > 0], firsts)
    return encode_counts(np.concatenate([[0], merged]) if is_set[0] else merged)
