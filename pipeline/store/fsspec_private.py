"""Every private name of fsspec, s3fs and aiobotocore that the pipeline uses, written for their versions of 2026.

The public counterparts would not do: `call_s3` and `cat_file` block the thread and cannot be cancelled, and
`split_protocol` leaves the rest of a URI as it is. tests/test_private_names.py names the ones that a later version
lacks.
"""

from typing import Any

import fsspec
from aiobotocore.httpsession import AIOHTTPSession
from aiohttp import ClientSession


class SessionWithoutRedirects(AIOHTTPSession):
    """The HTTP session of an S3 client that takes a redirect for an answer, as botocore's own session does.

    aiohttp would follow a redirect to any host, so that whoever answers for a store could have the job fetch what only
    the job's machine reaches (the metadata of the cloud), and take it for an object. For a bucket in another region,
    botocore itself finds the address.
    """

    async def _get_session(self, proxy_url: str | None) -> Any:
        return _WithoutRedirects(await super()._get_session(proxy_url))


class _WithoutRedirects:
    def __init__(self, session: ClientSession):
        self.session = session

    async def request(self, method: str, **options: Any) -> Any:
        return await self.session.request(method, **options, allow_redirects=False)


async def call_s3(filesystem: Any, method: str, **arguments: Any) -> Any:
    """The answer of S3 to one request of the client, with s3fs's retries, and with errors as OSErrors."""
    return await filesystem._call_s3(method, **arguments)


async def cat_file(filesystem: Any, path: str, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes at `path` of an asynchronous file system, or a part of them. Await this on the file system's loop."""
    data: bytes = await filesystem._cat_file(path, start=start, end=end)
    return data


async def info_of(filesystem: Any, path: str) -> dict[str, Any]:
    """What an asynchronous file system says of the object at `path`. Await this on the file system's loop."""
    found: dict[str, Any] = await filesystem._info(path)
    return found


def strip_protocol(filesystem: fsspec.AbstractFileSystem, uri: str) -> str:
    """The path of `uri` in the form that the methods of `filesystem` take."""
    return str(filesystem._strip_protocol(uri))


def host_of(protocol: str, uri: str) -> str | None:
    """What a file system of this protocol takes from `uri` beside the path, such as a host; None if it is nothing.

    A name that ends in what some libraries take for a version is a name.
    """
    taken = set(fsspec.get_filesystem_class(protocol)._get_kwargs_from_urls(uri)) - {"version_aware"}
    return ", ".join(sorted(taken)) if taken else None
