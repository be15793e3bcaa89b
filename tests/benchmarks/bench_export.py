"""Exports of a million segments: time, memory, and the ratio to how people write it, image by image.

    python tests/benchmarks/bench_export.py [--tables FOLDER] [--images 100000] [--by-hand 600] [--workers 2]

The tables are those of tests/benchmarks/large_tables.py (written to a temporary folder unless --tables names them).
Each format is exported by jobs/export.py in a process of its own, whose memory is the sum over its process tree (PSS,
every half second). By hand: for each of the first images, in as many processes, pycocotools decodes its masks, NumPy
paints them, panopticapi's id2rgb and Pillow write the PNG, json writes the records. Both sides start from the published
tables; rates by hand leave out reading them. The last line is one JSON document.
"""

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import psutil
from PIL import Image
from pycocotools import mask as coco_mask

from tests.benchmarks.large_tables import write_large_tables
from tests.benchmarks.scripts import ROOT

FORMATS = ("coco-panoptic", "coco-results", "label-png")


def tree_mib(process: psutil.Process) -> float:
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except psutil.Error:  # it has ended
            continue
    return total / 2**20


def by_job(tables: str, form: str, to: str, workers: int) -> dict[str, float]:
    """Seconds, CPU seconds and peak memory of the job."""
    began, before = time.monotonic(), os.times()
    command = [sys.executable, "jobs/export.py", "--tables", tables, "--format", form, "--to", to]
    job = subprocess.Popen([*command, f"--workers={workers}"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    peak, watched = 0.0, psutil.Process(job.pid)
    while job.poll() is None:
        peak = max(peak, tree_mib(watched))
        time.sleep(0.5)
    if job.returncode:
        sys.exit(f"{form}: the job ended with {job.returncode}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": time.monotonic() - began, "cpu_seconds": cpu, "peak_mib": peak}


# --- by hand ----------------------------------------------------------------------------------------------------------


def id2rgb(ids: np.ndarray) -> np.ndarray:
    """As in panopticapi/utils.py."""
    rest = ids.copy()
    rgb = np.zeros((*ids.shape, 3), np.uint8)
    for channel in range(3):
        rgb[..., channel] = rest % 256
        rest //= 256
    return rgb


def panoptic_by_hand(to: Path, image_id: int, rows: list[dict[str, Any]]) -> Any:
    ids = np.zeros(rows[0]["segmentation"]["size"], np.uint32)
    infos = []
    for row in rows:
        mask = coco_mask.decode(row["segmentation"]).astype(bool)
        ids[mask] = row["segment_id"]
        ys, xs = np.nonzero(mask)
        box = [int(xs.min()), int(ys.min()), int(xs.max() - xs.min() + 1), int(ys.max() - ys.min() + 1)]
        info = {"id": row["segment_id"], "category_id": row["category_id"], "iscrowd": 0}
        infos.append({**info, "area": int(mask.sum()), "bbox": box})
    Image.fromarray(id2rgb(ids)).save(to / f"{image_id}.png")
    return {"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": infos}


def results_by_hand(to: Path, image_id: int, rows: list[dict[str, Any]]) -> Any:
    results = []
    for row in rows:
        rle = coco_mask.encode(np.asfortranarray(coco_mask.decode(row["segmentation"])))
        rle["counts"] = rle["counts"].decode()
        box = coco_mask.toBbox(rle).tolist()
        found = {"image_id": image_id, "category_id": row["category_id"], "segmentation": rle}
        results.append({**found, "bbox": box, "score": float(row["score"])})
    return results


def labels_by_hand(to: Path, image_id: int, rows: list[dict[str, Any]]) -> Any:
    labels = np.full(rows[0]["segmentation"]["size"], 255, np.uint8)
    for row in rows:
        labels[coco_mask.decode(row["segmentation"]).astype(bool)] = row["category_id"]
    Image.fromarray(labels).save(to / f"{image_id}.png")


BY_HAND = {"coco-panoptic": panoptic_by_hand, "coco-results": results_by_hand, "label-png": labels_by_hand}


def part_by_hand(job: tuple[str, str, list[tuple[int, list[dict[str, Any]]]]]) -> float:
    """Convert some images; CPU seconds."""
    form, to, images = job
    began = time.process_time()
    records = [BY_HAND[form](Path(to), image_id, rows) for image_id, rows in images]
    (Path(to) / f"{images[0][0]}.json").write_text(json.dumps(records))
    return time.process_time() - began


def read_first_images(tables: str, count: int) -> list[tuple[int, list[dict[str, Any]]]]:
    import pyarrow.parquet as pq

    images: dict[str, list[dict[str, Any]]] = {}
    for part in sorted((Path(tables) / "segments").rglob("*.parquet")):
        for row in pq.read_table(part).to_pylist():
            images.setdefault(row["image_key"], []).append(row)
        if len(images) >= count:
            break
    return list(enumerate(list(images.values())[:count], 1))


def by_hand(images: list[tuple[int, list[dict[str, Any]]]], form: str, to: str, workers: int) -> dict[str, float]:
    Path(to).mkdir()
    parts = [(form, to, images[n::workers]) for n in range(workers)]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(len, [[]] * workers)  # the processes have started
        began = time.monotonic()
        cpu = sum(pool.map(part_by_hand, parts))
        return {"seconds": time.monotonic() - began, "cpu_seconds": cpu}


def compare(tables: str, form: str, folder: str, num_by_hand: int, workers: int, num_images: int) -> dict[str, Any]:
    """The job and, before and after it, the way by hand."""
    images = read_first_images(tables, num_by_hand)
    rows_by_hand = sum(len(rows) for _, rows in images)
    runs = [by_hand(images, form, f"{folder}/{form}-by-hand-0", workers)]
    job = by_job(tables, form, f"{folder}/{form}", workers)
    runs.append(by_hand(images, form, f"{folder}/{form}-by-hand-1", workers))
    num_rows = sum(len(rows) for _, rows in images) * num_images / len(images)
    fastest = min(runs, key=lambda run: run["cpu_seconds"])
    found = {
        "job": {name: round(value, 1) for name, value in job.items()},
        "rows_a_second": round(num_rows / job["seconds"]),
        "by_hand_rows_a_second": round(rows_by_hand / min(run["seconds"] for run in runs)),
        "ratio_of_cpu_time": round(fastest["cpu_seconds"] / rows_by_hand / (job["cpu_seconds"] / num_rows), 2),
    }
    found["ratio"] = round(found["rows_a_second"] / found["by_hand_rows_a_second"], 2)
    print(f"{form}: {found}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--by-hand", type=int, default=600)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--formats", nargs="*", default=FORMATS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tables = args.tables
        if tables is None:
            tables = f"{folder}/tables"
            write_large_tables(tables, args.images, 10 * args.images)
        of = {f: compare(tables, f, folder, args.by_hand, args.workers, args.images) for f in args.formats}
    document = {
        "benchmark": "export",
        "formats": of,
        "images": args.images,
        "workers": args.workers,
        "load": os.getloadavg(),
        "machine": {"cpu_count": os.cpu_count(), "platform": platform.platform()},
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
