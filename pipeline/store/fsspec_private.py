"""Every private name of fsspec and s3fs that the pipeline uses, written for their versions of 2026.

The public counterparts do not do: `call_s3` and `cat_file` block the thread and cannot be cancelled, `split_protocol`
leaves the rest of a URI as it is. tests/test_private_names.py names what a later version has taken away.
"""

from typing import Any

import fsspec


async def call_s3(filesystem: Any, method: str, **arguments: Any) -> Any:
    """The answer of S3 to one request of the client, with s3fs's retries and its errors as OSErrors."""
    return await filesystem._call_s3(method, **arguments)


async def cat_file(filesystem: Any, path: str) -> bytes:
    """The bytes at `path` of an asynchronous file system, to be awaited on its loop."""
    data: bytes = await filesystem._cat_file(path)
    return data


def strip_protocol(filesystem: fsspec.AbstractFileSystem, uri: str) -> str:
    """The path of `uri` as the methods of `filesystem` want it."""
    return str(filesystem._strip_protocol(uri))
