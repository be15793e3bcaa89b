"""One GET of a whole object from an S3 server, as the job reads images, against obstore: CPU and requests an object.

    pip install obstore
    python tests/benchmarks/bench_store.py [--objects 200] [--rounds 10]

The server is SeaweedFS on loopback, a process of its own; 16 objects of 100 KB are in flight, each checked against the
MD5 of its ETag. CPU is that of this process, so that other load on the machine counts for little; the sides take turns,
least and median of the rounds. Requests are counted by the fault proxy. The last line is one JSON document.
"""

import argparse
import hashlib
import json
import os
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipeline.drill.fault_proxy import FaultProxy
from pipeline.inputs.verified import read_verified
from pipeline.store.filesystem import open_filesystem
from tests.support.s3_server import embedded_s3

OBJECT_BYTES, IN_FLIGHT, BUCKET = 100_000, 16, "bench"


def by_s3fs(etags: dict[str, str]) -> Callable[[str], bytes]:
    filesystem, root = open_filesystem(f"s3://{BUCKET}")
    return lambda key: read_verified(filesystem, f"{root}/{key}", etags[key], OBJECT_BYTES, 60.0)


def by_obstore(etags: dict[str, str]) -> Callable[[str], bytes]:
    import obstore
    from obstore.store import S3Store

    store: Any = S3Store(
        BUCKET,
        endpoint=os.environ["AWS_ENDPOINT_URL"],
        client_options={"allow_http": True, "timeout": "60s"},
        virtual_hosted_style_request=False,
    )

    def read(key: str) -> bytes:
        data = bytes(obstore.get(store, key, options={"if_match": f'"{etags[key]}"'}).bytes())
        assert hashlib.md5(data, usedforsecurity=False).hexdigest() == etags[key]
        return data

    return read


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def read_all(read: Callable[[str], bytes], keys: list[str]) -> float:
    """CPU milliseconds an object."""
    before = cpu_seconds()
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        assert sum(map(len, pool.map(read, keys))) == len(keys) * OBJECT_BYTES
    return 1e3 * (cpu_seconds() - before) / len(keys)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    figures: dict[str, Any] = {name: {"version": version(name)} for name in ("s3fs", "obstore")}
    with tempfile.TemporaryDirectory() as folder, embedded_s3(Path(folder)) as server:
        os.environ.update(server.environment)
        server.bucket(BUCKET)
        etags = {}
        for number in range(args.objects):
            put = server.client.put_object(Bucket=BUCKET, Key=f"{number:05d}", Body=os.urandom(OBJECT_BYTES))
            etags[f"{number:05d}"] = put["ETag"].strip('"')
        keys = list(etags)
        sides = {"s3fs": by_s3fs(etags), "obstore": by_obstore(etags)}
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(args.rounds + 1):
            for name, read in sides.items():
                taken[name] += [read_all(read, keys)] if number else []  # the first round connects
        for name, values in taken.items():
            figures[name] |= {"cpu_ms_least": min(values), "cpu_ms_median": statistics.median(values)}
        with FaultProxy(server.url) as proxy:
            os.environ["AWS_ENDPOINT_URL"] = proxy.url
            type(open_filesystem(f"s3://{BUCKET}")[0]).clear_instance_cache()  # it keeps the endpoint
            for name, connect in (("s3fs", by_s3fs), ("obstore", by_obstore)):
                before = proxy.num_requests
                read_all(connect(etags), keys)
                figures[name]["requests_an_object"] = (proxy.num_requests - before) / len(keys)
    for name, side in figures.items():
        cpu = f"{side['cpu_ms_least']:.2f} ms of CPU an object at least, {side['cpu_ms_median']:.2f} median"
        print(f"{name:8} {cpu}; {side['requests_an_object']:g} requests")
    print(json.dumps({**figures, "object_bytes": OBJECT_BYTES, "in_flight": IN_FLIGHT, "load": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
