"""How many images a second the rest of the job can feed to devices, and whether more devices are as much faster.

    python tests/benchmarks/bench_devices.py [--images 2048] [--store folder s3] [--devices 1 2 4 8 16]

There is no GPU: see tests/benchmarks/simulated_device.py for what sleeps and what is real. First one device as fast as
an H100 (0.07 s for 32 images) beside 2 CPU cores, fed from a folder, from the same folder in shards of 4 images, which
shows what a shard costs, and from a SeaweedFS on this machine, which takes its CPU time from the same cores. Then ever
more devices, so slow that CPUs do not bind (6 s for 32 images). Steady rates are those while every device had work;
`of_linear` compares a device with the first row's. The last line is one JSON document.
"""

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.bench_steps import draw
from tests.benchmarks.scripts import run_script
from tests.support.s3_server import embedded_s3

DRAWN = 16  # scenes; the rest are copies
FAST, SLOW = 0.07, 6.0  # seconds for 32 images
SLOW_SHARD, SMALL_SHARD = 16, 4  # images


def copies(drawn: Path, folder: Path, number: int) -> Path:
    """A folder of `number` images, links to those that are drawn."""
    folder.mkdir()
    paths = sorted(drawn.iterdir())
    for index in range(number):
        path = paths[index % len(paths)]
        os.link(path, folder / f"{index:06d}{path.suffix}")
    return folder


@contextlib.contextmanager
def bucket_of(images: Path, temporary: Path) -> Iterator[str]:
    """A bucket with these images; while it is there the environment names its server."""
    (temporary / "s3").mkdir()
    with embedded_s3(temporary / "s3") as server:
        os.environ.update(server.environment)
        bucket = server.bucket("scenes")
        for path in images.iterdir():
            server.client.upload_file(str(path), "scenes", f"images/{path.name}")
        yield bucket


def simulate(source: str, output: str, **flags: object) -> dict:
    said = run_script("tests/benchmarks/simulated_device.py", input=source, output=output, **flags)
    return json.loads(said.splitlines()[-1])


def feed(images: int, stores: list[str], drawn: Path, temporary: Path) -> Iterator[dict]:
    """One fast device and two CPUs, from each kind of store."""
    folder = copies(drawn, temporary / "images", images)
    fast = {"devices": 1, "cpus": 2, "seconds": FAST}
    if "folder" in stores:
        yield {"store": "folder"} | simulate(str(folder), str(temporary / "output"), **fast)
        small = fast | {"images_per_shard": SMALL_SHARD}
        yield {"store": "folder"} | simulate(str(folder), str(temporary / "small"), **small)
    if "s3" in stores:
        with bucket_of(folder, temporary) as bucket:
            yield {"store": "s3"} | simulate(f"{bucket}/images", f"{bucket}/output", **fast)


def scale(devices: list[int], drawn: Path, temporary: Path) -> Iterator[dict]:
    """Slow devices, with shards enough that all have work at one time although they start one after the other."""
    first: float | None = None
    for number in devices:
        images = SLOW_SHARD * number * max(8, 3 * number // 2)
        folder = copies(drawn, temporary / f"images-{number}", images)
        slow = {"devices": number, "cpus": 2 * number, "seconds": SLOW, "images_per_shard": SLOW_SHARD}
        row = simulate(str(folder), str(temporary / f"output-{number}"), **slow)
        each = row["steady_images_per_second"] / number
        first = first or each
        yield row | {"of_linear": round(each / first, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2048, help="for the fast device")
    parser.add_argument("--store", nargs="*", choices=("folder", "s3"), default=["folder", "s3"])
    parser.add_argument("--devices", type=int, nargs="*", default=[1, 2, 4, 8, 16])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        drawn = draw(folder, DRAWN)
        feeding, scaling = [], []
        (folder / "feed").mkdir()
        for row in feed(args.images, args.store, drawn, folder / "feed"):
            feeding.append(row)
            show(row, "store", "images_per_shard", "images_per_second", "device_busy", "step_ms")
            show(row, "object_store_bytes_an_image", "shards", "driver_cpu_ms_a_shard", "seconds_to_first_shard")
        (folder / "scale").mkdir()
        for row in scale(args.devices, drawn, folder / "scale"):
            scaling.append(row)
            show(row, "devices", "actors", "steady_images_per_second", "of_linear", "device_busy")
            show(row, "shards", "driver_cpu_ms_a_shard", "seconds_to_first_shard")
    document = {
        "benchmark": "devices",
        "feeding": feeding,
        "scaling": scaling,
        "machine": {"cpu_count": os.cpu_count(), "platform": platform.platform()},
        "versions": {name: version(name) for name in ("ray", "pillow", "pyarrow")},
    }
    print(json.dumps(document))


def show(row: dict, *names: str) -> None:
    print("  ".join(f"{name} {row[name]}" for name in names), flush=True)


if __name__ == "__main__":
    main()
