"""The same images on S3 as loose objects and in containers: images a second of the job, and requests an image.

    python tests/benchmarks/bench_inputs.py [--images 2048] [--rounds 3] [--kinds loose tar parquet] [--latency-ms 0]

There is no GPU: see tests/benchmarks/simulated_device.py for what sleeps and what is real. One device as fast as an
H100 (0.07 s for 32 images) beside 2 CPU cores is fed from a SeaweedFS on this machine, which takes its CPU time from
the same cores. `--latency-ms` puts a proxy before the server that holds each answer back so long, as a real S3 does
(20-50 ms). The kinds take turns; medians of the rounds. Requests are counted by a proxy, in listing and reading alone.
The last line is one JSON document.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import pyarrow.parquet as pq

from pipeline.cluster.environment import set_ray_environment
from pipeline.drill.fault_proxy import FaultProxy, Rule
from pipeline.input_spec import InputSpec
from pipeline.inputs.fetch import FetchImages
from pipeline.inputs.listing import list_inputs
from pipeline.inputs.reads import ListedImage, ReadImage
from pipeline.store.filesystem import open_filesystem
from tests.benchmarks.bench_devices import simulate
from tests.benchmarks.bench_steps import draw
from tests.support.parquet_files import hugging_face
from tests.support.s3_server import S3Server, embedded_s3

DRAWN = 16  # scenes; the rest are copies
FAST = 0.07  # seconds for 32 images
PER_CONTAINER, PER_SHARD = 1024, 64  # images

Images = list[tuple[str, Path]]  # name and file


def loose(images: Images, server: S3Server, folder: Path) -> None:
    for name, path in images:
        server.client.upload_file(str(path), "inputs", f"loose/{name}")


def tar(images: Images, server: S3Server, folder: Path) -> None:
    """As WebDataset writes them: a label beside each image."""
    (folder / "label.json").write_text('{"caption": "a scene"}')
    for number, start in enumerate(range(0, len(images), PER_CONTAINER)):
        with tarfile.open(folder / "one.tar", "w") as file:
            for name, path in images[start : start + PER_CONTAINER]:
                file.add(path, name)
                file.add(folder / "label.json", f"{Path(name).stem}.json")
        server.client.upload_file(str(folder / "one.tar"), "inputs", f"tar/{number:06d}.tar")


def parquet(images: Images, server: S3Server, folder: Path) -> None:
    """As the library `datasets` writes images: 100 rows in a row group."""
    for number, start in enumerate(range(0, len(images), PER_CONTAINER)):
        some = images[start : start + PER_CONTAINER]
        table = hugging_face([path.read_bytes() for _, path in some], [name for name, _ in some])
        pq.write_table(table, folder / "one.parquet", row_group_size=100)
        server.client.upload_file(str(folder / "one.parquet"), "inputs", f"parquet/{number:06d}.parquet")


KINDS: dict[str, Callable[[Images, S3Server, Path], None]] = {"loose": loose, "tar": tar, "parquet": parquet}


def read_all(kind: str, number: int) -> float:
    """Images a second of listing and reading alone, in this process, shard by shard as the job does."""
    type(open_filesystem("s3://inputs")[0]).clear_instance_cache()  # it keeps the endpoint
    spec = InputSpec.of(f"s3://inputs/{kind}")
    began = time.perf_counter()
    listed = [ListedImage(**row) for table in list_inputs(spec) for row in table.to_pylist()]
    stage = FetchImages(spec)
    assert len(listed) == number
    for start in range(0, number, PER_SHARD):
        results = stage.fetch_all(listed[start : start + PER_SHARD])
        assert all(isinstance(result, ReadImage) for result in results)
    return number / (time.perf_counter() - began)


@contextlib.contextmanager
def endpoint(server: S3Server, latency_ms: int) -> Iterator[None]:
    """The environment names the server, behind a proxy if there is a latency."""
    with contextlib.ExitStack() as stack:
        url = server.url
        if latency_ms:
            held = Rule(f"^GET /inputs/({'|'.join(KINDS)})/", "latency", seconds=latency_ms / 1000)
            url = stack.enter_context(FaultProxy(url, [held])).url
        os.environ["AWS_ENDPOINT_URL"] = url
        yield


def requests_an_image(server: S3Server, kind: str, number: int) -> float:
    with FaultProxy(server.url) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.url
        read_all(kind, number)
        return proxy.num_requests / number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="*", choices=tuple(KINDS), default=list(KINDS))
    parser.add_argument("--latency-ms", type=int, default=0)
    args = parser.parse_args()
    set_ray_environment()  # the minutes that a Ray may take to start
    rows: dict[str, dict[str, Any]] = {kind: {} for kind in args.kinds}
    with tempfile.TemporaryDirectory() as temporary, embedded_s3(Path(temporary)) as server:
        os.environ.update(server.environment)
        server.bucket("inputs")
        drawn = sorted(draw(Path(temporary), DRAWN).iterdir())
        images = [(f"{n:06d}{path.suffix}", path) for n, path in enumerate(islice(cycle(drawn), args.images))]
        for kind in args.kinds:
            KINDS[kind](images, server, Path(temporary))
            rows[kind]["requests_an_image"] = round(requests_an_image(server, kind, args.images), 4)
        jobs: dict[str, list[float]] = {kind: [] for kind in args.kinds}
        alone: dict[str, list[float]] = {kind: [] for kind in args.kinds}
        with endpoint(server, args.latency_ms):
            for number in range(args.rounds):
                for kind in args.kinds:
                    alone[kind].append(read_all(kind, args.images))
                    output = f"s3://inputs/out-{kind}-{number}"
                    said = simulate(f"s3://inputs/{kind}", output, devices=1, cpus=2, seconds=FAST)
                    jobs[kind].append(said["steady_images_per_second"])
                    rows[kind] |= {"device_busy": said["device_busy"], "step_ms": said["step_ms"]}
    for kind, row in rows.items():
        row["images_per_second"] = statistics.median(jobs[kind])
        row["read_alone_per_second"] = round(statistics.median(alone[kind]), 1)
        first = rows[args.kinds[0]]
        row["ratio"] = round(row["images_per_second"] / first["images_per_second"], 2)
        row["ratio_alone"] = round(row["read_alone_per_second"] / first["read_alone_per_second"], 2)
        print(f"{kind:8}", "  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    document = {
        "benchmark": "inputs",
        "rows": rows,
        "all": jobs,
        **vars(args),
        "machine": {"cpu_count": os.cpu_count(), "platform": platform.platform(), "load": os.getloadavg()[0]},
        "versions": {name: version(name) for name in ("ray", "s3fs", "pyarrow")},
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
