"""The report page of a large run: seconds, memory, bytes, and how long a browser takes to open and scroll it.

    python tests/benchmarks/bench_page.py --folder /tmp/page [--images 100000] [--segments 1000000]

Makes the tables of large_tables.py and, for the images that the gallery shows, a JPEG each; writes the page; opens it.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import pyarrow as pa
from PIL import Image

from tests.benchmarks import large_tables
from tests.support.browser import open_browser

ROOT = Path(__file__).parents[2]
NODES = "document.getElementsByTagName('*').length"
CHANGED_AT_NS = 1_700_000_000 * 10**9


def make_tables(folder: Path, images: int, segments: int) -> None:
    """The tables, whose keys are files of a folder that is empty as yet, and whose ETags are the ETag of `JPEG`."""
    inputs, tables = folder / "images", folder / "tables"
    inputs.mkdir(parents=True)
    jpeg = picture()
    (folder / "picture.jpg").write_bytes(jpeg)
    made = large_tables.shard_tables

    def with_etag(*args):  # type: ignore[no-untyped-def]
        of_shard = made(*args)
        rows = of_shard["images"]
        etags = pa.repeat(f"{CHANGED_AT_NS:x}-{len(jpeg):x}", len(rows))
        return {**of_shard, "images": rows.set_column(rows.schema.get_field_index("etag"), rows.field("etag"), etags)}

    large_tables.image_key = lambda number: f"file://{inputs}/{number:08d}.jpg"
    large_tables.shard_tables = with_etag
    large_tables.write_large_tables(str(tables), images, segments)
    path = tables / "_runs" / large_tables.RUN_ID / "run.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "settings": {"input": [str(inputs)], "output": str(tables)}}))


def picture() -> bytes:
    """A JPEG of 640x480 pixels."""
    small = np.random.default_rng(0).integers(0, 255, (180, 240, 3), dtype=np.uint8)
    path = Path(f"/tmp/picture-{os.getpid()}.jpg")
    Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
    data = path.read_bytes()
    path.unlink()
    return data


def make_pictures(folder: Path) -> None:
    """The files of the images that the page at `folder`/page shows."""
    data = (folder / "picture.jpg").read_bytes()
    for one in json.loads((folder / "page" / "report.json").read_text())["gallery"]["images"]:
        path = Path(one["image_key"].removeprefix("file://"))
        path.write_bytes(data)
        os.utime(path, ns=(CHANGED_AT_NS, CHANGED_AT_NS))


def write_page(folder: Path) -> None:
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "jobs.report", "--tables", str(folder / "tables"), "--to", str(folder / "page")]
    subprocess.run(command, cwd=ROOT, check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    print(
        f"page: {time.monotonic() - began:.1f} s, {cpu:.1f} s of CPU, {used.ru_maxrss / 2**10:.0f} MiB at most, "
        f"{(folder / 'page' / 'report.html').stat().st_size / 1e6:.1f} MB"
    )


def open_page(html: Path) -> None:
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        began = time.monotonic()
        page.goto(f"file://{html.absolute()}")
        page.wait_for_selector("#strip .pic")
        opened, first = time.monotonic() - began, page.evaluate(NODES)
        height, most, steps = page.evaluate("document.documentElement.scrollHeight"), 0, []
        for top in range(0, height, 600):
            began = time.monotonic()
            page.evaluate(
                "top => new Promise(done => { scrollTo(0, top); requestAnimationFrame(() => setTimeout(done)); })", top
            )
            steps.append(time.monotonic() - began)
            most = max(most, page.evaluate(NODES))
        median = sorted(steps)[len(steps) // 2]
        print(f"browser: opens in {opened:.2f} s with {first} nodes; at most {most} while scrolling {height:,} pixels")
        print(f"a step of 600 pixels: {median * 1000:.0f} ms, at most {max(steps) * 1000:.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--segments", type=int, default=1_000_000)
    args = parser.parse_args()
    folder = args.folder.absolute()
    if not folder.exists():
        make_tables(folder, args.images, args.segments)
    write_page(folder)  # without pictures
    make_pictures(folder)
    write_page(folder)
    open_page(folder / "page" / "report.html")


if __name__ == "__main__":
    main()
