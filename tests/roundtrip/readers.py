"""Read an export with the tool that owns its format, in the environment of `make test-roundtrip`, without this project.

    python tests/roundtrip/readers.py FORMAT FOLDER FOUND.npz

FOUND.npz gets a mask [H, W] for each object, by the name `<image>|<number in the image>|<category>`.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

Found = Iterator[tuple[str, str, np.ndarray]]  # image, category, mask


def yolo(folder: Path) -> Found:
    """Images lie at images/, as trainers expect."""
    import supervision

    for images in sorted({path.parent for path in (folder / "images").rglob("*.png")}):
        labels = folder / "labels" / images.relative_to(folder / "images")
        data = supervision.DetectionDataset.from_yolo(
            str(images), str(labels), str(folder / "data.yaml"), force_masks=True
        )
        for path, _, found in data:
            name = Path(path).relative_to(folder / "images").with_suffix("").as_posix()
            for n in range(len(found)):
                yield name, data.classes[found.class_id[n]], found.mask[n]


def label_studio(folder: Path) -> Found:
    import json

    from label_studio_sdk.converter.brush import decode_rle, encode_rle
    from label_studio_sdk.label_interface import LabelInterface

    config = LabelInterface((folder / "labeling.xml").read_text())
    for task in json.loads((folder / "tasks.json").read_text()):
        for prediction in task["predictions"]:
            assert config.validate_prediction(prediction, return_errors=True) == [], prediction
            for result in prediction["result"]:
                values = decode_rle(result["value"]["rle"])
                assert encode_rle(values) == result["value"]["rle"], "the encoder of the SDK gives other bytes"
                pixels = values.reshape(result["original_height"], result["original_width"], 4)
                yield task["data"]["image_key"], result["value"]["brushlabels"][0], pixels[..., 3] > 0


def hf(folder: Path) -> Found:
    import datasets

    for row in datasets.load_dataset(str(folder), split="train", cache_dir=str(folder.with_name("cache"))):
        for mask, category in zip(row["masks"], row["category"], strict=True):
            yield row["image_key"], category, np.asarray(mask) > 0


def fiftyone(folder: Path) -> Found:
    """FiftyOne keeps a data set in a MongoDB, which it starts in a folder of its own."""
    import os

    os.environ |= {
        "FIFTYONE_DO_NOT_TRACK": "true",
        "FIFTYONE_DATABASE_VALIDATION": "false",
        "FIFTYONE_DATABASE_DIR": str(folder.with_name("database")),
        "FIFTYONE_DEFAULT_DATASET_DIR": str(folder.with_name("data sets")),
        "FIFTYONE_CONFIG_PATH": str(folder.with_name("no config.json")),
    }
    from fiftyone import Dataset, types

    for sample in Dataset.from_dir(dataset_dir=str(folder), dataset_type=types.FiftyOneDataset):
        size = sample.metadata.width, sample.metadata.height
        for detection in sample.segments.detections:
            yield sample.image_key, detection.label, detection.to_segmentation(frame_size=size).mask > 0


def _datumaro(folder: str, form: str) -> Found:
    from datumaro.components.annotation import AnnotationType
    from datumaro.components.dataset import Dataset

    data = Dataset.import_from(folder, form)
    labels = data.categories()[AnnotationType.label]
    for item in data:
        for annotation in item.annotations:
            if annotation.type == AnnotationType.mask:
                yield item.id, labels[annotation.label].name, np.asarray(annotation.image).astype(bool)


def cvat(folder: Path) -> Found:
    yield from _datumaro(str(folder), "cvat")


def coco_panoptic(folder: Path) -> Found:
    yield from _datumaro(str(folder), "coco_panoptic")


def main() -> None:
    form, folder, found = sys.argv[1:]
    numbers: dict[str, int] = defaultdict(int)
    masks = {}
    for image, category, mask in globals()[form.replace("-", "_")](Path(folder)):
        masks[f"{image}|{numbers[image]}|{category}"] = mask
        numbers[image] += 1
    np.savez(found, **masks)


if __name__ == "__main__":
    main()
