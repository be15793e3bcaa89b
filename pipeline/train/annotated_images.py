"""The images of a training with their annotations: COCO's formats, label PNGs, maps of instances.

Memory: the ground truth, shared with the loading processes (40 bytes per panoptic segment; polygons take as much as in
the JSON; a label PNG is a name), and four times the JSON while it is read.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m2f_core.config.class_names import read_id2label
from m2f_core.config.labels import Category, LabelMap
from m2f_core.masks.panoptic_png import PANOPTIC_VOID
from m2f_core.training.targets import panoptic_map
from pipeline.coco.ground_truth import (
    GroundTruth,
    GtImage,
    read_instances,
    read_panoptic,
    read_semantic,
    without_ending,
)
from pipeline.coco.ground_truth_png import (
    IGNORED,
    png_size,
    read_instance_map,
    read_label_png,
    read_panoptic_pixels,
)
from pipeline.decoding.decode import decode_image
from pipeline.errors import ImageError, RunError
from pipeline.segment.checkpoint import stage_model
from pipeline.store.filesystem import one_line, open_filesystem, store_errors_as, uri_of
from pipeline.store.json_records import parse_json_object
from pipeline.store.objects import read_uri
from pipeline.train.packed_sequence import PackedSequence
from pipeline.train.settings import FinetuneSettings

logger = logging.getLogger(__name__)

Kind = Literal["panoptic", "instances", "semantic", "instance-maps"]
MAPS: tuple[Kind, ...] = ("semantic", "instance-maps")  # folders of PNGs, without a JSON
MAX_IMAGE_PIXELS = 2**31 - 1  # no limit: users know their training data
_PNGS_LOOKED_AT = 16  # before a training starts


@dataclass(frozen=True)
class AnnotatedImages:
    """Images in a folder and their annotations."""

    folder: str
    images: PackedSequence[GtImage]
    categories: tuple[dict[str, Any], ...]  # as in the JSON
    where: str  # the flag and the path of the ground truth, for messages
    kind: Kind
    exif: bool  # turn images by their EXIF orientation, as segment_bucket.py does
    ignored_label: int = 255  # in maps
    reduce_zero_label: bool = False  # in maps

    @classmethod
    def read(
        cls, folder: str, gt: str, pngs: str | None, kind: Kind, flag: str, exif: bool = True
    ) -> "AnnotatedImages":
        """Read ground truth in COCO's formats. RunError if it cannot be used; messages name it by `flag`."""
        truth = read_panoptic(gt, pngs, flag) if kind == "panoptic" else read_instances(gt, flag)
        where = f"{flag} {gt}"
        return cls(folder.rstrip("/"), PackedSequence(truth.images), truth.categories, where, kind, exif)

    @classmethod
    def of_maps(
        cls, settings: FinetuneSettings, folder: str, gt: str, flag: str, labels: LabelMap
    ) -> "AnnotatedImages":
        """Find the image of each PNG. RunError if there is none for any, or two for one."""
        kind: Kind = "semantic" if settings.semantic_gt is not None else "instance-maps"
        categories = tuple(labels.to_list())
        truth = read_semantic(gt, categories, flag)
        images = PackedSequence(_with_image_names(truth, folder))
        return cls(
            folder.rstrip("/"),
            images,
            categories,
            f"{flag} {gt}",
            kind,
            settings.exif,
            settings.ignore_label,
            settings.reduce_zero_label,
        )

    def check_first(self) -> None:
        """Raise RunError if the first image or its PNG cannot be used, most likely because a folder is wrong.

        Warn if the first maps hold so little that a training would learn nothing.
        """
        self.image(0)
        if self.kind == "panoptic":
            read_panoptic_pixels(self.images[0])
        if self.kind in MAPS:
            self._check_maps()
        else:
            self._check_objects()

    def most_objects(self) -> int:
        """The most objects of one image; 0 for maps, which would have to be read for this."""
        return 0 if self.kind in MAPS else max(len(_objects(image)) for image in self.images)

    def _check_objects(self) -> None:
        """RunError if crowds or anything else leave no object. Warn of classes without one."""
        left = Counter(entry["category_id"] for image in self.images for entry in _objects(image))
        if not left:
            number = sum(len(image.annotations) for image in self.images)
            why = f"all {number:,} annotations are crowds (iscrowd 1)" if number else "there are no annotations"
            raise RunError(f"{self.where}: no object is left to learn from, because {why}")
        without = [category["name"] for category in self.categories if category["id"] not in left]
        if without:
            names = ", ".join(without[:3]) + (", ..." if len(without) > 3 else "")
            logger.warning(
                f"{self.where}: {len(without)} of {len(self.categories)} classes have no object: {names}; a model "
                "cannot learn them, and no figure counts them"
            )

    def _check_maps(self) -> None:
        number = min(_PNGS_LOOKED_AT, len(self.images))
        found: set[int] = set()
        ignored = 0
        for index in range(number):
            ids_HW, class_ids, _ = self.map(index, {})
            values = set(np.unique(ids_HW).tolist())
            ignored += IGNORED in values
            found |= {class_ids[value] if class_ids is not None else value for value in values - {IGNORED}}
        left_out = f"pixels of {self.ignored_label}" + (" and 0" if self.reduce_zero_label else "")
        names = [self.categories[class_id]["name"] for class_id in sorted(found)]
        if not found:
            raise RunError(
                f"{self.where}: the first {number} PNGs hold no class, because {left_out} are ignored; are "
                "--ignore-label and --reduce-zero-label right?"
            )
        if len(found) == 1 and len(self.categories) > 1:
            also = f"; {left_out} are ignored, in {ignored} of them" if ignored else ""
            logger.warning(f"{self.where}: the first {number} PNGs hold one class only, {names[0]!r}{also}")

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image, by its ground truth."""
        annotated = self.images[index]
        return annotated.size if annotated.size is not None else png_size(annotated)

    def map(
        self, index: int, class_id_of_category: Mapping[int, int]
    ) -> tuple[NDArray[np.int32], dict[int, int] | None, int]:
        """A map of segments [H, W], the class id of each segment (None: the values are class ids), and the value of
        pixels that count as nothing. RunError or ValueError if the PNG cannot be used.
        """
        annotated = self.images[index]
        if self.kind == "panoptic":
            pixels_HW3 = read_panoptic_pixels(annotated)
            return *panoptic_map(pixels_HW3, annotated.annotations, class_id_of_category), PANOPTIC_VOID
        values = (len(self.categories), self.reduce_zero_label, self.ignored_label)
        if self.kind == "semantic":
            return read_label_png(annotated, *values), None, IGNORED
        return *read_instance_map(annotated, *values), IGNORED

    def image(self, index: int) -> Image.Image:
        """Read an RGB image. RunError if it cannot be read or has another size than its ground truth."""
        annotated = self.images[index]
        path = f"{self.folder}/{annotated.name}"
        data = read_uri(path, "image")
        try:
            image = decode_image(data, max_pixels=MAX_IMAGE_PIXELS, apply_exif=self.exif)
        except ImageError as error:
            raise RunError(f"image {path} cannot be used: {error}") from None
        size, expected = (image.height, image.width), self.size(index)
        if size != expected:
            hint = f"; is --{'no-' if self.exif else ''}exif right?" if size[::-1] == expected else ""
            found = f"{image.height} x {image.width} (height x width)"
            raise RunError(f"image {path} is {found}, but its ground truth says {expected}{hint}")
        return image


def _objects(image: GtImage) -> list[dict[str, Any]]:
    return [entry for entry in image.annotations if not entry["iscrowd"]]


def training_data(settings: FinetuneSettings) -> AnnotatedImages:
    """The training data of the settings. RunError if the ground truth cannot be used."""
    for kind, name in _KINDS.items():
        gt = getattr(settings, name)
        if gt is not None:
            return _read(settings, kind, settings.images, gt, settings.panoptic_pngs, "--" + name.replace("_", "-"))
    raise AssertionError("the settings have checked that one is given")


def validation_data(settings: FinetuneSettings) -> AnnotatedImages | None:
    """The validation data of the settings, or None. RunError if the data cannot be used."""
    if settings.val_images is None or settings.val_gt is None:
        return None
    [kind] = [kind for kind, name in _KINDS.items() if getattr(settings, name) is not None]
    return _read(settings, kind, settings.val_images, settings.val_gt, settings.val_pngs, "--val-gt")


_KINDS: dict[Kind, str] = {  # kind -> setting
    "panoptic": "panoptic_gt",
    "instances": "instances_gt",
    "semantic": "semantic_gt",
    "instance-maps": "instance_maps",
}


def _read(settings: FinetuneSettings, kind: Kind, folder: str, gt: str, pngs: str | None, flag: str) -> AnnotatedImages:
    if kind in MAPS:
        return AnnotatedImages.of_maps(settings, folder, gt, flag, _labels_of_maps(settings, kind))
    return AnnotatedImages.read(folder, gt, pngs, kind, flag, settings.exif)


def labels_of(data: AnnotatedImages) -> LabelMap:
    """The classes of a model for `data`. RunError if the categories are not in COCO's format."""
    if data.kind in MAPS:  # their values are class ids
        return LabelMap(
            tuple(
                Category(class_id, entry["id"], entry["name"], bool(entry["isthing"]))
                for class_id, entry in enumerate(data.categories)
            )
        )
    try:
        return LabelMap.from_coco_categories(list(data.categories))
    except ValueError as error:
        raise RunError(f"{data.where}: {one_line(error)}") from None


def _labels_of_maps(settings: FinetuneSettings, kind: Kind) -> LabelMap:
    """The classes of maps: those of --model if --id2label is not given or has the same names, else of --id2label.

    Classes of a semantic map are stuff, those of an instance map things, unless the model knows.
    """
    of_model = None if settings.model is None else stage_model(settings.model).labels
    if settings.id2label is None:
        if of_model is None:
            raise RunError(
                '--architecture needs --id2label with maps: a JSON file with class names, such as {"0": "road", "1": '
                '"sky"}'
            )
        return of_model
    content = parse_json_object(read_uri(settings.id2label, "--id2label"), settings.id2label, "--id2label")
    try:
        names = read_id2label(content if "id2label" in content else {"id2label": content})
    except ValueError as error:
        raise RunError(f"--id2label {settings.id2label}: {one_line(error)}") from None
    if of_model is not None and [c.name for c in of_model.categories] == list(names.values()):
        return of_model
    is_thing = kind == "instance-maps"
    return LabelMap(tuple(Category(class_id, class_id, name, is_thing) for class_id, name in names.items()))


def _with_image_names(truth: GroundTruth, folder: str) -> Iterator[GtImage]:
    """The images of the PNGs that have one, with its path below `folder` as name; a warning counts what is left out."""
    filesystem, root = open_filesystem(folder)
    with store_errors_as(RunError, f"the images in {folder} cannot be listed"):
        paths = sorted(filesystem.find(root))
    pngs = {image.png for image in truth.images}
    by_name: dict[str, str] = {}
    for path in paths:
        if uri_of(filesystem, path) in pngs:  # images and maps may lie in one folder
            continue
        name = path.removeprefix(root).lstrip("/")
        other = by_name.setdefault(without_ending(name), name)
        if other != name:
            raise RunError(f"{truth.flag}: {other} and {name} in {folder} are both the image of one PNG; rename one")
    found = [image for image in truth.images if image.name in by_name]
    if not found:
        example = next(iter(by_name.values()), "nothing")
        raise RunError(
            f"{truth.flag} {truth.place}: no PNG is named as an image in {folder}; there are "
            f"{truth.images[0].name}.png and {example}"
        )
    for number, what, names in (
        (len(truth.images) - len(found), "PNGs have no image", [i.name for i in truth.images if i.name not in by_name]),
        (len(by_name) - len(found), "images have no PNG", sorted(by_name.keys() - {i.name for i in found})),
    ):
        if number:
            logger.warning(f"{truth.flag} {truth.place}: {number:,} {what} and are left out, for example {names[0]}")
    return (replace(image, name=by_name[image.name]) for image in found)
