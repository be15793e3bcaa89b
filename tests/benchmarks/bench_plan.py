"""Listing, comparing and planning at a size that no test bucket has, with a store that exists only as pages.

    python tests/benchmarks/bench_plan.py [--keys 1000000 3000000 10000000] [--only plan listing quiet_night]
        [--plot docs/scale.svg]

plan: N keys against a table of N known images; 1 % of them have changed, and 1 % more keys are new.
quiet_night: N keys against the same N known images: nothing to do.
first_batch: the first plan file of N keys against an empty table, at 50 ms a page.
first_batch_known: the same against the table of N known images.
listing: N keys in 32 prefixes at 50 ms a page, as a ratio to the bound by latency (pages / 32 x 50 ms).
listing_s3: the same with pages of XML, which a server in a process of its own sends to the S3 client.

Each case runs in a process of its own, whose largest resident memory is printed, with all its children. The table is
compacted: files of a million rows. The last line is one JSON document.
"""

import argparse
import contextlib
import json
import math
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.update(AWS_ACCESS_KEY_ID="none", AWS_SECRET_ACCESS_KEY="none", AWS_DEFAULT_REGION="us-east-1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.commit.run_record import NO_PLAN, PlanSummary
from pipeline.config import Settings
from pipeline.input_spec import InputSpec
from pipeline.inputs import listing as listing_room
from pipeline.layout import Output
from pipeline.plan.changes import comparing
from pipeline.plan.shards import group_into_shards, write_plan
from pipeline.plan.taper import ShardSize
from pipeline.schema import IMAGES
from pipeline.store.s3_pages import objects_of
from pipeline.tables.spill_database import MEMORY_MIB
from tests.benchmarks.page_server import serving
from tests.benchmarks.paged_store import PAGE, PagedStore
from tests.benchmarks.scripts import run_script
from tests.support.published_tables import image_row, publish

BUCKET, ROOT, PREFIXES = "bucket", "photographs", 32
SPEC = InputSpec.of(f"s3://{BUCKET}/{ROOT}")
ROWS = 1_000_000  # of a file of the table
SECONDS_A_PAGE = 0.05


def know(keys: int, output: str) -> None:
    """Publish a table of `keys` known images: those that PagedStore hands out, but for the ETag of every hundredth."""
    store, made = PagedStore(keys, PREFIXES, old=True), 0
    row = image_row("", "run0", 0, fingerprint="now")
    while made < keys:
        number = min(ROWS, keys - made)
        page = objects_of(store.call_s3("list_objects_v2", Prefix=ROOT, ContinuationToken=str(made), MaxKeys=number))
        columns = {f.name: pa.repeat(pa.scalar(row.get(f.name), f.type), number) for f in IMAGES}
        columns["image_key"] = pc.binary_join_element_wise(f"s3://{BUCKET}/", page.keys, "")
        columns["etag"], columns["size_bytes"] = page.etags, page.sizes
        publish(output, "images", f"run{made}", [pa.table(columns, schema=IMAGES)])
        made += number


def list_from(store: PagedStore) -> Iterator[pa.Table]:
    """The whole way from pages to tables, with the patterns that every listing is compared with."""
    listing_room.open_input = lambda uri, access: (store, uri.partition("://")[2])
    return listing_room.list_inputs(SPEC)


def plan(keys: int, output: str, case: str, memory_mib: int) -> dict[str, float]:
    """Plan as a run does, in batches; seconds until the first plan file is there, and until the last."""
    latency = SECONDS_A_PAGE if case.startswith("first_batch") else 0.0
    store = PagedStore(keys, PREFIXES, latency, more=keys // 100 if case == "plan" else 0, old=case == "quiet_night")
    settings, opened = Settings(SPEC.sources[0].uri, output), Output.open(output)
    made_with = {"fingerprint": "now", "weights_sha256": "w"}
    summary, first, began = NO_PLAN, math.inf, time.monotonic()

    def tell(_: PlanSummary) -> None:
        nonlocal first
        first = min(time.monotonic() - began, first)

    with comparing(list_from(store), SPEC, settings, opened, **made_with, memory_mib=memory_mib) as comparison:
        for changes in comparison.batches():
            shards = group_into_shards(changes.images(), ShardSize(max_images=512, max_bytes=128 * 2**20))
            summary = write_plan(shards, opened.filesystem, f"{output}/plan", before=summary, tell=tell)
            if case.startswith("first_batch") and summary.num_shards:
                break
        return {
            "seconds": time.monotonic() - began,
            "first_plan_file_seconds": first if summary.num_shards else 0.0,
            "planned": summary.num_images,
            **comparison.counts,
        }


def listing(tables: Iterator[pa.Table], keys: int) -> dict[str, float]:
    began, used = time.monotonic(), time.process_time()
    listed = sum(table.num_rows for table in tables)
    seconds, used = time.monotonic() - began, time.process_time() - used
    assert listed == keys, f"{listed} of {keys}"
    bound = keys / PAGE / PREFIXES * SECONDS_A_PAGE
    return {
        "seconds": seconds,
        "bound_seconds": bound,
        "ratio": seconds / bound,
        "cpu_ms_a_page": 1000 * used / (keys / PAGE),
    }


def run_case(case: str, keys: int, output: str, memory_mib: int) -> None:
    if case == "know":
        know(keys, output)
        result: dict[str, float] = {}
    elif case == "listing":
        result = listing(list_from(PagedStore(keys, PREFIXES, SECONDS_A_PAGE)), keys)
    elif case == "listing_s3":
        result = listing(listing_room.list_inputs(SPEC), keys)
    else:
        result = plan(keys, output, case, memory_mib)
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    result["peak_mib"] = sum(one.ru_maxrss for one in usage) / 1024
    result["cpu_seconds"] = sum(one.ru_utime + one.ru_stime for one in usage)
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, nargs="+", default=[1_000_000, 3_000_000, 10_000_000])
    parser.add_argument(
        "--only",
        nargs="+",
        default=["plan", "quiet_night", "listing", "listing_s3", "first_batch", "first_batch_known"],
    )
    parser.add_argument("--memory-mib", type=int, default=MEMORY_MIB, help="of DuckDB")
    parser.add_argument("--plot", type=Path, help="draw seconds and memory by keys, to 100 million; .svg or .png")
    parser.add_argument("--case", help="run this case in this process")
    parser.add_argument("--output", default="")
    args = parser.parse_args()
    if args.case:
        run_case(args.case, args.keys[0], args.output, args.memory_mib)
        return
    results = []
    for keys in args.keys:
        with tempfile.TemporaryDirectory(prefix="m2f-bench-plan-") as folder:
            if set(args.only) & {"plan", "quiet_night", "first_batch_known"}:
                run_script(__file__, case="know", keys=keys, output=folder)
            for case in args.only:
                output = f"{folder}-empty" if case == "first_batch" else folder
                with _server(case, keys):
                    found = json.loads(
                        run_script(__file__, case=case, keys=keys, output=output, memory_mib=args.memory_mib)
                    )
                shutil.rmtree(f"{output}/plan", ignore_errors=True)
                results.append({"case": case, "keys": keys, **found})
                print(
                    {
                        name: round(value, 1) if isinstance(value, float) else value
                        for name, value in results[-1].items()
                    },
                    flush=True,
                )
    if args.plot:
        draw(results, args.plot)
    print(json.dumps(results))


@contextlib.contextmanager
def _server(case: str, keys: int) -> Iterator[None]:
    """The server whose URL processes that are started in the body find in their environment, if the case needs one."""
    if case != "listing_s3":
        yield
        return
    with serving(keys, PREFIXES, SECONDS_A_PAGE) as os.environ["AWS_ENDPOINT_URL"]:
        yield
    del os.environ["AWS_ENDPOINT_URL"]


_EXTRAPOLATED = 100_000_000


def draw(results: list[dict[str, float | str]], path: Path) -> None:
    """Seconds and memory of each case by keys. The dashed line goes on from the two largest sizes, in proportion."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, name, label in zip(axes, ("seconds", "peak_mib"), ("seconds", "memory, MiB"), strict=True):
        for case in dict.fromkeys(str(one["case"]) for one in results):
            points = sorted((float(one["keys"]), float(one[name])) for one in results if one["case"] == case)
            keys, values = zip(*points, strict=True)
            [line] = axis.plot(keys, values, marker="o", label=case.replace("_", " "))
            if len(points) > 1:
                slope = (values[-1] - values[-2]) / (keys[-1] - keys[-2])
                most = values[-1] + slope * (_EXTRAPOLATED - keys[-1])
                axis.plot((keys[-1], _EXTRAPOLATED), (values[-1], most), "--", color=line.get_color())
        axis.set(xscale="log", yscale="log", xlabel="keys", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
