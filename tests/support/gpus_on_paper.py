"""segment_bucket.py on a cluster whose GPUs stand in Ray's books only: `python -m tests.support.gpus_on_paper FLAGS`.

Actors are allotted as on real GPUs, and then compute on the CPU. With SHARD_SECONDS in the environment, each shard
takes a model actor at least so long, as shards of 512 images do. With HOLD, which is SHARD:PATH, one shard is not done
before that file exists.
"""

import os
import sys
import time
from dataclasses import replace
from typing import Any

import pyarrow as pa

from jobs import segment_bucket

SHARD_SECONDS, HOLD = "M2F_TEST_SHARD_SECONDS", "M2F_TEST_HOLD"


def main() -> int:
    from pipeline import run
    from pipeline.cluster import allotment
    from pipeline.schema import unpack_shard
    from pipeline.segment import actor

    allot, seconds = allotment.allot, float(os.environ.get(SHARD_SECONDS, "0"))
    held, _, until = os.environ.get(HOLD, "").partition(":")

    def on_cpus(*args: Any) -> Any:
        return replace(allot(*args), device="cpu")

    class SegmentImages(actor.SegmentImages):
        """As slow as asked for. Pickled by value, with the seconds, because the class is defined in a function."""

        def __call__(self, row: pa.Table) -> pa.Table:
            began = time.monotonic()
            result = super().__call__(row)
            time.sleep(max(0.0, began + seconds - time.monotonic()))
            while str(unpack_shard(result)[0]) == held and not os.path.exists(until):
                time.sleep(0.1)
            return result

    allotment.allot, run.SegmentImages = on_cpus, SegmentImages  # type: ignore[misc]
    return segment_bucket.main([*sys.argv[1:], "--no-page"])


if __name__ == "__main__":
    sys.exit(main())
