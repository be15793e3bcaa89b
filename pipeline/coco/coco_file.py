"""A file in COCO's panoptic or instances format, read and checked: every field that training or evaluation uses.

Every mistake is a RunError of one line that names the file, the object and the field. Both jobs read through this
module, so that neither accepts what the other refuses.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired, TypeVar

import numpy as np
from annotated_types import Ge, Interval, Len
from pydantic import BeforeValidator, FailFast, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic wants this one below Python 3.12

from m2f_core.masks import rle
from m2f_core.masks.polygons import FEWEST_NUMBERS, fill_polygons
from pipeline.decoding.costs import MAX_SIDE
from pipeline.errors import RunError
from pipeline.store.json_records import STRICT, parse_record
from pipeline.store.objects import read_uri

MOST_PIXELS = 2**30  # of an image: its mask takes as many bytes
_FORM = "[[x0, y0, x1, y1, x2, y2, ...], ...]"


def _whole(value: Any) -> Any:
    """Some files contain 480.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Pixels = Annotated[int, BeforeValidator(_whole), Interval(ge=1, le=MAX_SIDE)]  # no larger image is decoded
Id = Annotated[int, BeforeValidator(_whole), Ge(0)]
Flag = Literal[0, 1]
Name = Annotated[str, Len(1)]


@with_config(STRICT)
class Image(TypedDict):
    """An image of the instances format."""

    id: Id
    file_name: Name
    height: Pixels
    width: Pixels


@with_config(STRICT)
class PanopticImage(TypedDict):
    """An image of the panoptic format; in Cityscapes' files, ids are names."""

    id: Id | Name
    file_name: Name
    height: Pixels
    width: Pixels


@with_config(STRICT)
class Category(TypedDict):
    """A category of either format."""

    id: Id
    name: Name
    isthing: NotRequired[Flag]


@with_config(STRICT)
class Segment(TypedDict):
    """An entry of `segments_info`."""

    id: Annotated[int, BeforeValidator(_whole), Ge(1)]
    category_id: Id
    iscrowd: NotRequired[Flag]


@with_config(STRICT)
class PanopticEntry(TypedDict):
    """An annotation of the panoptic format: the segments of one image."""

    image_id: Id | Name
    file_name: Name
    segments_info: list[Segment]


@with_config(STRICT)
class Annotation(TypedDict):
    """An annotation of the instances format: one object."""

    id: Id
    image_id: Id
    category_id: Id
    segmentation: Any  # checked by `usable_segmentation`
    iscrowd: NotRequired[Flag]
    area: NotRequired[Annotated[float, Ge(0)]]
    bbox: NotRequired[Annotated[list[float], Len(4, 4)]]


@with_config(STRICT)
class PanopticFile(TypedDict):
    images: Annotated[list[PanopticImage], Len(1), FailFast()]
    annotations: Annotated[list[PanopticEntry], Len(1), FailFast()]
    categories: Annotated[list[Category], Len(1), FailFast()]


@with_config(STRICT)
class InstancesFile(TypedDict):
    images: Annotated[list[Image], Len(1), FailFast()]
    annotations: Annotated[list[Annotation], FailFast()]
    categories: Annotated[list[Category], Len(1), FailFast()]


_FIELDS = frozenset(
    name
    for record in (PanopticFile, Image, Category, Segment, PanopticEntry, Annotation)
    for name in record.__annotations__
)
_PANOPTIC, _INSTANCES = TypeAdapter(PanopticFile), TypeAdapter(InstancesFile)


def read_panoptic_file(flag: str, place: str) -> PanopticFile:
    """Read a panoptic JSON. RunError if a field is wrong, an id occurs twice, or a reference leads nowhere."""
    content = _read(_PANOPTIC, flag, place)
    where = f"{flag} {place}"
    images, categories = _checked_ids(content, where)
    _refuse_twice((entry["image_id"] for entry in content["annotations"]), f"{where}: annotations", "image_id")
    for entry in content["annotations"]:
        of_image = f"{where}: the annotation of image {entry['image_id']}"
        if entry["image_id"] not in images:
            raise RunError(f"{of_image} names an image that is not in the file's images")
        _refuse_twice((segment["id"] for segment in entry["segments_info"]), f"{of_image}: segments_info", "id")
        for segment in entry["segments_info"]:
            _check_category(segment["category_id"], categories, f"{of_image}: segment {segment['id']}")
    for index, category in enumerate(content["categories"]):
        if "isthing" not in category:
            raise RunError(f"{where}: categories[{index}] has no 'isthing'; is it the right kind of COCO file?")
    return content


def read_instances_file(flag: str, place: str) -> InstancesFile:
    """Read an instances JSON. RunError as for a panoptic JSON, and for a segmentation that cannot be a mask."""
    content = _read(_INSTANCES, flag, place)
    where = f"{flag} {place}"
    images, categories = _checked_ids(content, where)
    for annotation in content["annotations"]:
        name = f"{where}: annotation {annotation['id']}"
        image = images.get(annotation["image_id"])
        if image is None:
            raise RunError(f"{name} is of image {annotation['image_id']}, which is not in the file's images")
        _check_category(annotation["category_id"], categories, name)
        try:
            annotation["segmentation"] = usable_segmentation(
                annotation["segmentation"], image["height"], image["width"]
            )
        except ValueError as error:
            raise RunError(f"{name} cannot be used: {error}") from None
    return content


def usable_segmentation(segmentation: Any, height: int, width: int) -> Any:
    """The segmentation without polygons of fewer than three points; an empty list if there is no other.

    ValueError if it is not a list of polygons or an RLE of the image's size.
    """
    if isinstance(segmentation, list):
        if segmentation and not any(isinstance(polygon, list) for polygon in segmentation):
            raise ValueError(f"segmentation is one list of numbers; write a list of polygons, {_FORM}")
        for polygon in segmentation:
            if not isinstance(polygon, list) or len(polygon) % 2 or not all(map(_is_number, polygon)):
                raise ValueError(f"a polygon must be a list of pairs of numbers, as in {_FORM}, not {polygon!r:.60}")
        polygons = [polygon for polygon in segmentation if len(polygon) >= FEWEST_NUMBERS]
        fill_polygons(polygons, 1, 1)  # raises if coordinates are out of range
        return polygons
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError(
            f"segmentation must be a list of polygons, {_FORM}, or an RLE, {{size: [height, width], counts: ...}}, not "
            f"{segmentation!r:.60}"
        )
    size, counts = segmentation["size"], segmentation["counts"]
    if size != [height, width]:
        raise ValueError(f"its RLE has the size {size!r:.60}, but its image [{height}, {width}] (height, width)")
    if isinstance(counts, list):
        if not all(isinstance(length, int) and not isinstance(length, bool) and length >= 0 for length in counts):
            raise ValueError("the counts of its RLE must be whole numbers of at least 0")
        total = sum(counts)
    elif isinstance(counts, str):
        if not counts.isascii():
            raise ValueError("the counts of its RLE hold characters that COCO's format does not have")
        total = int(rle.decode_counts(counts.encode()).sum())
    else:
        raise ValueError(f"the counts of its RLE must be a list or a string, not {counts!r:.60}")
    if total != height * width:
        raise ValueError(f"its RLE has {total} pixels, but its image {height * width}")
    return {"size": size, "counts": counts}


def area_and_box(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """`area` and `bbox` of a usable segmentation, for files without them."""
    if isinstance(segmentation, list):
        counts = rle.encode_mask(fill_polygons(segmentation, height, width))
    elif isinstance(segmentation["counts"], str):
        counts = segmentation["counts"].encode()
    else:
        counts = rle.encode_counts(np.array(segmentation["counts"], np.int64))
    return {"area": rle.counts_area(counts), "bbox": list(rle.counts_bbox_xywh(counts, height, width))}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


File = TypeVar("File", PanopticFile, InstancesFile)


def _read(adapter: TypeAdapter[File], flag: str, place: str) -> File:
    try:
        return parse_record(adapter, read_uri(place, flag), _one_line)
    except ValueError as error:
        raise RunError(f"{flag} {place}: {error}") from None


def _one_line(error: ValidationError) -> str:
    """One mistake: `annotations[3].bbox[0] is 'x'; input should be a valid number`."""
    mistakes = error.errors(include_url=False)
    # A field that is missing tells more than a wrong one: it may be the other kind of file.
    first = next((mistake for mistake in mistakes if mistake["type"] == "missing"), mistakes[0])
    # Where an id may be a number or a name, pydantic also says which of the two it tried.
    places = [part for part in first["loc"] if isinstance(part, int) or part in _FIELDS]
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in places]
    kind = "is it the right kind of COCO file?"
    if not first["loc"]:
        return f"it must hold a JSON object, not a {type(first['input']).__name__}"
    if first["type"] == "missing":
        owner = "".join(parts[:-1]).lstrip(".")
        return f"{owner} has no {first['loc'][-1]!r}; {kind}" if owner else f"{first['loc'][-1]} is not a list; {kind}"
    name = "".join(parts).lstrip(".")
    if first["type"] == "list_type" and len(parts) == 1:
        return f"{name} is not a list; {kind}"
    if first["type"] == "too_short" and len(parts) == 1:
        return f"it has no {name}"
    return f"{name} is {first['input']!r:.60}; {first['msg'][0].lower()}{first['msg'][1:]}"


def _checked_ids(content: PanopticFile | InstancesFile, where: str) -> tuple[dict[Any, Any], dict[int, Category]]:
    """Images and categories by id. RunError if two share an id, or two images a name, or an image is too large."""
    images: Sequence[Any] = content["images"]
    for index, image in enumerate(images):
        if image["height"] * image["width"] > MOST_PIXELS:
            size = f"{image['height']} x {image['width']}"
            raise RunError(f"{where}: images[{index}] has {size} pixels; at most {MOST_PIXELS:,} can be used")
    for name in ("id", "file_name"):
        _refuse_twice((image[name] for image in images), f"{where}: images", name)
    _refuse_twice((category["id"] for category in content["categories"]), f"{where}: categories", "id")
    return {i["id"]: i for i in images}, {c["id"]: c for c in content["categories"]}


def _refuse_twice(values: Iterable[Any], where: str, name: str) -> None:
    for value, number in Counter(values).items():
        if number > 1:
            raise RunError(f"{where} has {name} {value!r} {number} times; each must be there once")


def _check_category(category_id: int, categories: Mapping[int, Category], where: str) -> None:
    if category_id not in categories:
        raise RunError(f"{where} has category {category_id}, which is not in the file's categories")
