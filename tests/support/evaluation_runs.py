"""Finished runs made from given masks, through the pipeline's own writer and journal, and ground truth files.

Legend: H, W pixels of an image.
"""

import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from m2f_core.masks.rle import counts_bbox_xywh, decode, encode_mask
from pipeline.commit.journal import Journal
from pipeline.commit.write import ShardWriter
from pipeline.layout import Output
from pipeline.schema import IMAGES, SCHEMA_VERSION, SEGMENTS
from pipeline.store.filesystem import open_filesystem, put_object
from tests.support.run_records import report, run_json
from tests.support.tables import latest_run, read_table

# Two things and two stuff classes; ids with gaps and not in order, as datasets have them.
CATEGORIES = (
    {"id": 7, "name": "cat", "isthing": 1},
    {"id": 3, "name": "dog", "isthing": 1},
    {"id": 92, "name": "sky", "isthing": 0},
    {"id": 40, "name": "road", "isthing": 0},
)


@dataclass(frozen=True)
class Segment:
    """A mask [H, W], of the ground truth or of a run."""

    mask: np.ndarray
    category_id: int
    score: float = 1.0
    iscrowd: int = 0
    segment_id: int | None = None  # in the tables; else its place in the list, from 1

    @property
    def rle(self) -> dict[str, Any]:
        return {"size": list(self.mask.shape), "counts": encode_mask(self.mask).decode()}

    @property
    def bbox(self) -> list[float]:
        return list(counts_bbox_xywh(encode_mask(self.mask), *self.mask.shape))

    @property
    def area(self) -> int:
        return int(self.mask.sum())


@dataclass(frozen=True)
class MadeImage:
    """An image: what is in it, and what a run found. `found` None: the run failed.

    Missing: the run had it not; removed: there is only a row that says so.
    """

    name: str
    size: tuple[int, int]
    truth: Sequence[Segment] = ()
    found: Sequence[Segment] | None = ()
    error: str = "broken"  # of a failed run
    code: str = "decode_failed"
    missing: bool = False
    removed: bool = False


@dataclass
class Place:
    """Where a run and its ground truth lie: a folder or a URI."""

    root: str
    categories: Sequence[dict[str, Any]] = CATEGORIES

    @property
    def tables(self) -> str:
        return f"{self.root}/tables"

    def put(self, name: str, data: bytes) -> str:
        filesystem, path = open_filesystem(f"{self.root}/{name}")
        put_object(filesystem, path, data)
        return f"{self.root}/{name}"


def write_run(
    place: Place,
    images: Sequence[MadeImage],
    *,
    task: str = "panoptic",
    run_id: str = "night",
    per_shard: int = 3,
    finished_at: str | None = "2026-11-23T10:00:00+00:00",
    prefix: str = "s3://photographs/",
    etag_of: Callable[[str], str] = lambda name: "e",
    started: float = 1.0,
    classes: Sequence[str] = (),
) -> None:
    """Tables, journal, run.json and (unless `finished_at` is None) report.json, as segment_bucket.py leaves them.

    `etag_of`: from the name of an image. `classes`: those of --classes.
    """
    present = [image for image in images if not image.missing]
    shards = [present[i : i + per_shard] for i in range(0, len(present), per_shard)]
    writer = ShardWriter(Output.open(place.tables), run_id)
    receipts = [
        writer.write(number, _tables(place, shard, number, run_id, prefix, etag_of), started=started)
        for number, shard in enumerate(shards)
    ]
    Journal(writer.output.run(run_id), attempt=1).append(receipts)
    results = {"task": task, **({"classes": list(classes)} if classes else {})}
    run = run_json(run_id, results=results, categories=place.categories, num_shards=len(shards))
    place.put("tables/_runs/format.json", json.dumps({"schema_version": SCHEMA_VERSION}).encode())
    place.put(f"tables/_runs/{run_id}/run.json", run.encode())
    if finished_at is not None:
        report(run_id, finished_at=finished_at).write(writer.output.run(run_id))


def _tables(
    place: Place,
    images: Sequence[MadeImage],
    shard: int,
    run_id: str,
    prefix: str,
    etag_of: Callable[[str], str],
) -> dict[str, pa.Table]:
    things = {category["id"]: category for category in place.categories}
    image_rows, segment_rows = [], []
    for image in images:
        of_run = {"image_key": prefix + image.name, "run_id": run_id, "shard": shard}
        failed = image.found is None and not image.removed
        found = image.found or ()
        image_rows.append(
            {
                **of_run,
                "status": "removed" if image.removed else "failed" if failed else "ok",
                "error_code": image.code if failed else None,
                "error_message": image.error if failed else None,
                "height": None if image.found is None else image.size[0],
                "width": None if image.found is None else image.size[1],
                "etag": etag_of(image.name),
                "size_bytes": 1,
                "num_segments": len(found),
                "fingerprint": "0123456789abcdef",
                "attempt": 1,
                "run_created": datetime(2026, 11, 23, tzinfo=UTC),
                "reason": "new",
            }
        )
        for number, segment in enumerate(found, 1):
            category = things.get(segment.category_id, {"name": "unheard of", "isthing": 1})
            segment_rows.append(
                {
                    **of_run,
                    "segment_id": segment.segment_id or number,
                    "category_id": segment.category_id,
                    "category_name": category["name"],
                    "isthing": bool(category["isthing"]),
                    "score": segment.score,
                    "area": segment.area,
                    "bbox": segment.bbox,
                    "segmentation": segment.rle,
                }
            )
    return {
        "images": pa.Table.from_pylist(image_rows, schema=IMAGES),
        "segments": pa.Table.from_pylist(segment_rows, schema=SEGMENTS),
    }


def found_by_run(output: Path, folder: Path) -> tuple[list[dict[str, Any]], list[MadeImage]]:
    """The categories of the latest run, and what it found in each image of `folder`, as its truth too."""
    found: dict[str, list[Segment]] = {}
    for row in read_table(output, "segments"):
        mask = decode(row["segmentation"]["counts"].encode(), *row["segmentation"]["size"])
        name = row["image_key"].removeprefix(f"file://{folder}/")
        found.setdefault(name, []).append(Segment(mask, row["category_id"], row["score"]))
    run_json = output / "_runs" / latest_run(output) / "run.json"
    categories = json.loads(run_json.read_text())["model"]["categories"]
    return categories, [MadeImage(name, segs[0].mask.shape, segs, segs) for name, segs in found.items()]


def bitten(rng: np.random.Generator, images: Iterable[MadeImage]) -> list[MadeImage]:
    """The images with a band of columns taken out of each segment of their truth."""
    return [
        replace(image, truth=[replace(s, mask=m) for s in image.truth if (m := s.mask & _bite(rng, s.mask)).any()])
        for image in images
    ]


def _bite(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """False in a band of columns."""
    keep = np.ones_like(mask)
    first = rng.integers(0, mask.shape[1])
    keep[:, first : first + mask.shape[1] // 3] = False
    return keep


# --- ground truth files -----------------------------------------------------------------------------------------------


def write_panoptic(place: Place, images: Sequence[MadeImage], name: str = "panoptic") -> str:
    """COCO panoptic JSON and PNGs; gives the path of the JSON. Segments of an image must be disjoint."""
    annotations = []
    for number, image in enumerate(images):
        ids_HW = np.zeros(image.size, np.int64)
        for index, segment in enumerate(image.truth):
            ids_HW[segment.mask] = _segment_id(index)
        png = f"{Path(image.name).stem}-{number}.png"
        place.put(f"{name}/{png}", png_bytes(np.stack([ids_HW >> shift & 255 for shift in (0, 8, 16)], axis=-1)))
        info = [
            {"id": _segment_id(i), "category_id": s.category_id, "iscrowd": s.iscrowd, "area": s.area, "bbox": s.bbox}
            for i, s in enumerate(image.truth)
        ]
        annotations.append({"image_id": f"i{number}", "file_name": png, "segments_info": info})
    content = {
        "images": _images(images, lambda number: f"i{number}"),
        "annotations": annotations,
        "categories": list(place.categories),
    }
    return place.put(f"{name}.json", json.dumps(content).encode())


def coco_instances(images: Sequence[MadeImage], categories: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """COCO instances, as its JSON holds them."""
    annotations = [
        {
            "id": 100 * number + index,
            "image_id": number,
            "category_id": segment.category_id,
            "iscrowd": segment.iscrowd,
            "area": segment.area,
            "bbox": segment.bbox,
            "segmentation": segment.rle,
        }
        for number, image in enumerate(images, 1)
        for index, segment in enumerate(image.truth)
    ]
    return {"images": _images(images, lambda n: n + 1), "annotations": annotations, "categories": list(categories)}


def write_labels(place: Place, images: Sequence[MadeImage], *, first: int = 0, name: str = "labels") -> str:
    """Label PNGs, 255 where no segment is; classes in the order of the categories, numbered from `first`."""
    classes = {category["id"]: index for index, category in enumerate(place.categories)}
    for image in images:
        labels_HW = np.full(image.size, 0 if first else 255)
        for segment in image.truth:
            labels_HW[segment.mask] = classes[segment.category_id] + first
        place.put(f"{name}/{Path(image.name).with_suffix('.png')}", png_bytes(labels_HW))
    return f"{place.root}/{name}"


def png_bytes(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _segment_id(index: int) -> int:
    return 1 + index * 70_001  # uses all three channels


def _images(images: Sequence[MadeImage], number_of: Any) -> list[dict[str, Any]]:
    return [
        {"id": number_of(number), "file_name": image.name, "height": image.size[0], "width": image.size[1]}
        for number, image in enumerate(images)
    ]
