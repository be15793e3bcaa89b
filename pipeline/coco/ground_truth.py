"""Ground truth in COCO's formats: panoptic JSON + PNGs, instances JSON, folders of label PNGs.

An image of the ground truth matches an image of the run if the run's `image_key` ends, by whole path components, in the
image's name in the ground truth: `val/1.jpg` matches `s3://bucket/coco/val/1.jpg`, but not `.../train/1.jpg`. Label
PNGs are matched without file endings. If a name fits two images of either side, that is an error and not a guess.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from pipeline.coco.coco_file import area_and_box, read_instances_file, read_panoptic_file
from pipeline.errors import RunError
from pipeline.store.filesystem import open_filesystem, store_errors_as, uri_of

logger = logging.getLogger(__name__)

_SEMANTIC = "--semantic-gt"


@dataclass(frozen=True)
class GtImage:
    """An image of the ground truth."""

    number: int  # of the image in its ground truth; COCO's id in an instances file
    name: str  # the end of the image's key
    size: tuple[int, int] | None  # height, width in pixels; None: read from its label PNG
    png: str | None = None  # URI or path
    annotations: tuple[dict[str, Any], ...] = ()  # as in the JSON: segments_info, or the image's annotations


@dataclass(frozen=True)
class GroundTruth:
    """All images to be scored, and the categories in the order in which they are reported."""

    flag: str  # the flag that named the ground truth, for messages
    place: str
    images: tuple[GtImage, ...]
    categories: tuple[dict[str, Any], ...]  # id, name; with `isthing` where panoptic


def read_panoptic(place: str, pngs: str | None, flag: str = "--panoptic-gt") -> GroundTruth:
    """Read COCO panoptic: the images that have an entry in `annotations`, as in panopticapi."""
    content = read_panoptic_file(flag, place)
    folder = (place.removesuffix(".json") if pngs is None else pngs).rstrip("/")
    named = {image["id"]: image for image in content["images"]}
    images = []
    for number, entry in enumerate(content["annotations"]):
        image = named[entry["image_id"]]
        segments = tuple(
            {"id": segment["id"], "category_id": segment["category_id"], "iscrowd": segment.get("iscrowd", 0)}
            for segment in entry["segments_info"]
        )
        size = image["height"], image["width"]
        images.append(GtImage(number, _plain(image["file_name"]), size, f"{folder}/{entry['file_name']}", segments))
    return GroundTruth(flag, place, tuple(images), _plain_categories(content["categories"]))


def read_instances(place: str, flag: str = "--instances-gt") -> GroundTruth:
    """Read COCO instances: every image of the file, including images without annotations.

    Objects whose polygons all have fewer than three points are left out, as in detectron2; a warning counts them.
    """
    content = read_instances_file(flag, place)
    by_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    left_out = []
    for annotation in content["annotations"]:
        if annotation["segmentation"]:
            found = {"area", "bbox"} <= annotation.keys()
            missing = {} if found else area_and_box(annotation["segmentation"], *sizes[annotation["image_id"]])
            by_image[annotation["image_id"]].append({"iscrowd": 0, **missing, **annotation})
        else:
            left_out.append(annotation["id"])
    if left_out:
        logger.warning(
            f"{flag} {place}: {len(left_out):,} annotations have no polygon with three points or more and are left "
            f"out, for example annotation {left_out[0]}"
        )
    images = tuple(
        GtImage(i["id"], _plain(i["file_name"]), (i["height"], i["width"]), None, tuple(by_image[i["id"]]))
        for i in content["images"]
    )
    return GroundTruth(flag, place, images, _plain_categories(content["categories"]))


def _plain_categories(categories: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    return tuple(dict(category) for category in categories)


def read_semantic(place: str, categories: tuple[dict[str, Any], ...], flag: str = _SEMANTIC) -> GroundTruth:
    """Read every .png below a folder; a pixel is an index into `categories`, which are the model's."""
    filesystem, root = open_filesystem(place)
    with store_errors_as(RunError, f"{flag} {place} cannot be listed"):
        paths = sorted(path for path in filesystem.find(root) if path.lower().endswith(".png"))
    if not paths:
        raise RunError(f"{flag} {place} holds no .png files")
    names = [without_ending(path.removeprefix(root).lstrip("/")) for path in paths]
    images = tuple(
        GtImage(number, name, None, uri_of(filesystem, path))
        for number, (name, path) in enumerate(zip(names, paths, strict=True))
    )
    return GroundTruth(flag, place, images, categories)


@dataclass
class Census:
    """Matches images of a run with images of a ground truth. Memory grows with the ground truth, not with the run."""

    ground_truth: GroundTruth
    keys: dict[int, str] = field(default_factory=dict)  # image keys of the run, by number
    scored: set[int] = field(default_factory=set)  # numbers of the images with a result
    failed_by_code: Counter[str] = field(default_factory=Counter)
    num_ignored: int = 0  # images of the run that are not in the ground truth
    ignored_example: str = ""

    def __post_init__(self) -> None:
        self.by_name = {image.name: image for image in self.ground_truth.images}
        if len(self.by_name) != len(self.ground_truth.images):
            [(name, _)] = Counter(image.name for image in self.ground_truth.images).most_common(1)
            raise RunError(f"{self._where}: two images are called {name}")
        self.depths = sorted({name.count("/") + 1 for name in self.by_name})

    @property
    def _where(self) -> str:
        return f"{self.ground_truth.flag} {self.ground_truth.place}"

    def find(self, image_key: str) -> GtImage | None:
        """The image of the ground truth whose name `image_key` ends in. RunError if there are several."""
        parts = (without_ending(image_key) if self.ground_truth.flag == _SEMANTIC else image_key).split("/")
        names = ["/".join(parts[-depth:]) for depth in self.depths if depth <= len(parts)]
        found = [self.by_name[name] for name in names if name in self.by_name]
        if len(found) > 1:
            raise RunError(
                f"{image_key} may be {found[0].name} or {found[1].name} of {self._where}; "
                "put folders into these names to tell the images apart"
            )
        return found[0] if found else None

    def add(self, row: dict[str, Any]) -> GtImage | None:
        """Count a row of `images`; returns its ground truth image if the row has a result to score."""
        if row["status"] == "removed":  # no longer in the bucket, so not part of the run
            return None
        image = self.find(row["image_key"])
        if image is None:
            self.num_ignored += 1
            self.ignored_example = row["image_key"]
            return None
        other = self.keys.setdefault(image.number, row["image_key"])
        if other != row["image_key"]:
            raise RunError(
                f"{image.name} of {self._where} may be {other} or {row['image_key']} of the run: "
                "put folders into this name in the ground truth, or score a run over one of the folders"
            )
        if row["status"] != "ok":
            self.failed_by_code[row["error_code"]] += 1
            return None
        check_size(row["image_key"], (row["height"], row["width"]), image, image.size)
        self.scored.add(image.number)
        return image

    def without_result(self) -> list[GtImage]:
        """Images that are missing in the run or failed there; they are scored as if nothing had been found in them.

        RunError if no image is in both the run and the ground truth.
        """
        if not self.keys:
            raise RunError(
                f"no image of the run is in {self._where}: the ground truth names {self.ground_truth.images[0].name}, "
                f"the run has {self.ignored_example or 'no images'}"
            )
        return [image for image in self.ground_truth.images if image.number not in self.scored]

    def counts(self) -> dict[str, Any]:
        """The counts in the report's form."""
        num_failed = sum(self.failed_by_code.values())
        return {
            "in_ground_truth": len(self.ground_truth.images),
            "with_result": len(self.scored),
            "failed": num_failed,
            "failed_by_code": dict(sorted(self.failed_by_code.items())),
            "missing": len(self.ground_truth.images) - len(self.keys),
            "ignored": self.num_ignored,
        }


def check_size(image_key: str, size: tuple[int, int], image: GtImage, gt_size: tuple[int, int] | None) -> None:
    """Raise RunError if result and ground truth of an image differ in (height, width)."""
    if gt_size is None or size == gt_size:
        return
    turned = "; its EXIF orientation may have turned it: segment with --no-exif" if size == gt_size[::-1] else ""
    raise RunError(
        f"{image_key} is {size[0]} x {size[1]} (height x width) in the tables, but {image.name} is "
        f"{gt_size[0]} x {gt_size[1]} in the ground truth{turned}"
    )


def _plain(name: str) -> str:
    return PurePosixPath(name).as_posix().lstrip("/")


def without_ending(path: str) -> str:
    return os.path.splitext(path)[0]  # noqa: PTH122 - a key need not be a local path
