"""The pages of a PagedStore over HTTP, as S3 writes them, from a process of its own.

    python tests/benchmarks/page_server.py KEYS PREFIXES SECONDS

The port is the first line of its output. It answers any number of requests at a time, each SECONDS after it has come.
"""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

sys.path.insert(0, str(Path(__file__).parents[2]))

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.store.s3_pages import objects_of
from tests.benchmarks.paged_store import PagedStore

_ASKED = {
    "prefix": "Prefix",
    "delimiter": "Delimiter",
    "start-after": "StartAfter",
    "continuation-token": "ContinuationToken",
    "max-keys": "MaxKeys",
}
_HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    "<Name>bucket</Name><EncodingType>url</EncodingType>"
)


@contextlib.contextmanager
def serving(num_keys: int, num_prefixes: int, seconds: float) -> Iterator[str]:
    """The URL of a server."""
    command = [sys.executable, __file__, *map(str, (num_keys, num_prefixes, seconds))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


class _Connection(asyncio.Protocol):
    def __init__(self, store: PagedStore, seconds: float):
        self.store, self.seconds, self.received = store, seconds, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        while b"\r\n\r\n" in self.received:
            head, _, self.received = self.received.partition(b"\r\n\r\n")
            target = head.split(b" ", 2)[1].decode()
            asyncio.get_running_loop().call_later(self.seconds, self.answer, target)

    def answer(self, target: str) -> None:
        given = {name: values[0] for name, values in parse_qs(urlsplit(target).query).items()}
        asked = {ours: given[theirs] for theirs, ours in _ASKED.items() if theirs in given}
        page = self.store.call_s3("list_objects_v2", **{**asked, "MaxKeys": int(asked.get("MaxKeys", 1000))})
        objects = objects_of(page)
        # Of one array the text is one buffer: a server that formats one key after the other would be the bound.
        rows = pc.binary_join_element_wise(
            "<Contents><Key>",
            objects.keys,
            "</Key><LastModified>2026-11-29T01:02:03.000Z</LastModified><ETag>&quot;",
            objects.etags,
            "&quot;</ETag><ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm><ChecksumType>FULL_OBJECT</ChecksumType><Size>",
            objects.sizes.cast(pa.string()),
            "</Size><StorageClass>STANDARD</StorageClass></Contents>",
            "",
        )
        token = page.get("NextContinuationToken")
        parts = [
            _HEAD,
            "".join(
                f"<CommonPrefixes><Prefix>{one['Prefix']}</Prefix></CommonPrefixes>" for one in page["CommonPrefixes"]
            ),
            f"<NextContinuationToken>{token}</NextContinuationToken>" if token else "",
            f"<IsTruncated>{'true' if page['IsTruncated'] else 'false'}</IsTruncated>",
        ]
        body = b"".join(["".join(parts).encode(), _text(rows), b"</ListBucketResult>"])
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)


def _text(rows: pa.StringArray) -> memoryview:
    """All rows behind each other."""
    return memoryview(rows.buffers()[2] or b"")[: pc.sum(pc.binary_length(rows)).as_py() or 0]


async def serve(store: PagedStore, seconds: float) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(store, seconds), "127.0.0.1")
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(PagedStore(int(sys.argv[1]), int(sys.argv[2])), float(sys.argv[3])))
