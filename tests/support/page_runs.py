"""Finished runs over images that are there, for the report page: drawn ones with hostile names, and photographs."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.commit.journal import Journal
from pipeline.layout import Output
from pipeline.store.filesystem import local_etag
from pipeline.tables.publish import Publisher
from tests.support.evaluation_runs import MadeImage, Place, Segment, write_run
from tests.support.places import SHARED_DATA
from tests.support.run_records import report

PHOTOGRAPHS = SHARED_DATA / "coco_things"
LABEL_MAP = SHARED_DATA / "panoptic_coco_categories.json"

# Names that would run as scripts, close elements or turn text around where a page does not escape them.
HOSTILE_IMAGES = (
    "<script>alert(1)</script>.jpg",
    '"><img src=x onerror=alert(2)>.png',
    "{{ 7 * 7 }} ${alert(3)} %3Cscript%3E.png",
    "\u202egnp.exe\u2028.png",
)
HOSTILE_CATEGORIES = (
    {"id": 7, "name": '"><img src=x onerror=alert(4)>', "isthing": 1},
    {"id": 3, "name": "</script><script>alert(5)</script>", "isthing": 1},
    {"id": 92, "name": "sky & 'sea' {{ 7 * 7 }} %s", "isthing": 0},
    {"id": 40, "name": "road", "isthing": 0},
)
HOSTILE_ERROR = "</script><script>alert(6)</script><!-- broken"
TURNED = "turned.jpg"  # 80 rows of 120 pixels in the file, upright 120 of 80, red at the top


def page_run(
    root: Path,
    folder: Path,
    images: Sequence[MadeImage],
    run_id: str,
    day: int,
    categories: Sequence[dict[str, Any]] = HOSTILE_CATEGORIES,
    **run_record: Any,
) -> None:
    """A finished, published run of images of `folder`, below `root`/tables. `run_record`: fields of run.json."""
    place = Place(str(root), categories)
    finished = f"2026-11-{day:02d}T10:00:00+00:00"

    def etag_of(name: str) -> str:
        return local_etag((folder / name).stat()) if (folder / name).exists() else "e"

    write_run(
        place,
        images,
        run_id=run_id,
        finished_at=finished,
        prefix=f"file://{folder}/",
        etag_of=etag_of,
        started=time.time() - 20,
    )
    path = root / "tables" / "_runs" / run_id
    record = json.loads((path / "run.json").read_text())
    settings = {"input": [str(folder)], "output": place.tables, "task": "panoptic"}
    record |= {"input": [f"file://{folder}"], "settings": settings, **run_record}
    (path / "run.json").write_text(json.dumps(record))
    num_removed = sum(image.removed for image in images)
    codes = Counter(image.code for image in images if image.found is None and not image.removed)
    num_failed = codes.total()
    done = report(
        run_id,
        finished_at=finished,
        counts={"new": len(images) - num_removed, "unchanged": 5, **({"removed": num_removed} if num_removed else {})},
        failed_by_code=dict(codes),
        step_ms={"read": 1.2, "decode": 8.0, "resize": 3.1, "model": 61.0, "reduce": 12.5, "encode": 2.0, "write": 1.1},
        device_busy={"gpu-node-1:4711": 0.91, "gpu-node-2:815": 0.87},
        num_images=len(images),
        num_ok=len(images) - num_failed - num_removed,
        num_failed=num_failed,
        num_removed=num_removed,
        num_segments=sum(len(image.found or ()) for image in images),
    )
    (path / "report.json").write_text(json.dumps(asdict(done)))
    output = Output.open(place.tables)
    num_shards = record["plan"]["num_shards"]
    Publisher(output, run_id, lambda: num_shards, Journal(output.run(run_id))).publish()


def drawn_images(folder: Path, number: int = 40, seed: int = 0) -> list[MadeImage]:
    """Images of one colour, written to `folder`, with blocks as segments; some have hostile names, EXIF turns one."""
    rng = np.random.default_rng(seed)
    names = [TURNED, *HOSTILE_IMAGES, *(f"plain-{n:03d}.png" for n in range(number))]
    made = []
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (120, 80) if name == TURNED else (int(rng.integers(80, 160)), int(rng.integers(120, 220)))
        _draw(path, size, rng)
        made.append(MadeImage(name, size, (), _blocks(rng, size)))
    return made


def worsened(rng: np.random.Generator, images: Sequence[MadeImage]) -> list[MadeImage]:
    """The images as a worse model would find them: some segments are missing, some of another category."""
    ids = [category["id"] for category in HOSTILE_CATEGORIES]
    return [
        replace(
            image,
            found=[
                replace(segment, category_id=int(rng.choice(ids)) if rng.random() < 0.3 else segment.category_id)
                for segment in image.found or ()
                if rng.random() > 0.2
            ],
        )
        for image in images
    ]


def photographs() -> list[MadeImage]:
    """The 13 photographs of the shared data with the segments of their ground truth, each with a score below 1."""
    content = json.loads((PHOTOGRAPHS / "panoptic.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    rng = np.random.default_rng(0)
    found = []
    for entry in content["annotations"]:
        with Image.open(PHOTOGRAPHS / "panoptic" / entry["file_name"]) as opened:
            pixels = np.asarray(opened.convert("RGB")).astype(np.int64)
        ids_HW = pixels @ np.array([1, 256, 65536])
        segments = [
            Segment(ids_HW == one["id"], one["category_id"], round(float(rng.uniform(0.8, 1)), 3))
            for one in entry["segments_info"]
        ]
        found.append(MadeImage(names[entry["image_id"]], ids_HW.shape, (), [s for s in segments if s.mask.any()]))
    return found


def label_map() -> list[dict[str, Any]]:
    """COCO's 133 panoptic categories, from the shared data."""
    content = json.loads(LABEL_MAP.read_text())
    return [{"id": one["id"], "name": one["name"], "isthing": one["isthing"]} for one in content]


def _draw(path: Path, size: tuple[int, int], rng: np.random.Generator) -> None:
    height, width = size
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = rng.integers(40, 220, 3)
    if path.name == TURNED:
        pixels[: height // 2] = (230, 20, 20)
        pixels[height // 2 :] = (20, 20, 230)
        exif = Image.Exif()
        exif[0x0112] = 6  # upright after a quarter turn to the right
        Image.fromarray(np.rot90(pixels)).save(path, "JPEG", quality=95, exif=exif.tobytes())
    else:
        Image.fromarray(pixels).save(path, "JPEG" if path.suffix == ".jpg" else "PNG")


def _blocks(rng: np.random.Generator, size: tuple[int, int]) -> list[Segment]:
    """Disjoint columns of blocks: two stuff classes and up to three things."""
    height, width = size
    edges = np.sort(rng.choice(np.arange(10, width - 8, 9), 4, replace=False))
    ids = [92, 7, 3, 7, 40]
    found = []
    for category_id, left, right in zip(ids, [0, *edges], [*edges, width], strict=True):
        mask_HW = np.zeros(size, bool)
        mask_HW[: int(rng.integers(height // 3, height + 1)), left:right] = True
        if rng.random() < 0.85:
            found.append(Segment(mask_HW, category_id, round(float(rng.uniform(0.3, 1)), 3)))
    return found
