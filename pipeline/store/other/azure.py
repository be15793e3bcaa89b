"""Azure Blob Storage: adlfs (the extra `azure`) finds account and credentials; listing and reading are ours.

adlfs keeps what it lists, does not say of which version the bytes are, and leaves retries to Azure's library, which
pauses for 15 s and more. A path is `container/name of the blob`, and the account is that of the environment.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

from adlfs import AzureBlobFileSystem
from azure.core import MatchConditions
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    IncompleteReadError,
    ResourceModifiedError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.storage.blob.aio import BlobServiceClient
from yarl import URL

from pipeline.store.objects import DamagedError, TooManyBytesError
from pipeline.store.other.answer import Answer, Part, error_of
from pipeline.store.other.other_store import OtherObject, OtherStore

_OPTIONS: dict[str, Any] = {
    "retry_total": 0,  # by our policies
    "permit_redirects": False,
    "connection_timeout": 10,
    "read_timeout": 30,
}
_PAGE = 5_000  # Azure's limit


class AzureFileSystem(OtherStore, AzureBlobFileSystem):
    """The containers of one account. With `anon`, no credentials are sent, whatever the environment holds."""

    service_client: Any

    def __init__(self, **options: Any):
        super().__init__(use_listings_cache=False, **options)

    def do_connect(self) -> None:
        super().do_connect()
        if self.anon:
            bare = URL(self.service_client.url, encoded=True).with_query(None)
            self.service_client = BlobServiceClient(account_url=str(bare))

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        scheme, colon, rest = str(path).partition("://")
        return (rest if colon and scheme in cls.protocol else str(path)).strip("/")

    def check_folder(self, path: str) -> None:
        container, _, name = path.strip("/").partition("/")
        pages = self._pages(container, f"{name}/" if name else "", 1)
        if not self.repeated(_next_page, pages) and name:
            raise FileNotFoundError(f"abfs://{path} does not exist")

    def objects(self, path: str) -> Iterator[OtherObject]:
        container, _, name = path.strip("/").partition("/")
        pages, is_empty = self._pages(container, f"{name}/" if name else "", _PAGE), True
        while (page := self.repeated(_next_page, pages)) is not None:
            for blob in page:
                is_empty = False
                is_mark = blob.size == 0 and (
                    blob.name.endswith("/") or (blob.metadata or {}).get("hdi_isfolder") == "true"
                )
                if not is_mark:  # of a folder
                    yield OtherObject(f"{container}/{blob.name}", blob.etag.strip('"'), blob.size)
        if is_empty and name:
            yield self.object_at(path)

    async def ask(self, path: str, etag: str, part: Part | None, most_bytes: int) -> Answer:
        uri = f"abfs://{path}"
        wanted = {"etag": f'"{etag}"', "match_condition": MatchConditions.IfNotModified} if etag else {}
        place = {"offset": part[0], "length": part[1]} if part else {}
        try:
            with _as_os_errors(uri):
                stream = await self._blob(path).download_blob(**place, **wanted, **_OPTIONS, max_concurrency=1)
                found = stream.properties
                if part is None and found.size > most_bytes:
                    raise TooManyBytesError(f"{uri} has {found.size:,} bytes; the limit is {most_bytes:,}")
                data: bytes = await stream.readall()
        except (ResourceModifiedError, _NoSuchPartError):
            return await self.describe(path)
        md5 = found.content_settings.content_md5
        is_whole = part is not None or not md5 or bytes(md5) == hashlib.md5(data, usedforsecurity=False).digest()
        size = int(found.content_range.rpartition("/")[2]) if part else found.size
        return Answer(found.etag.strip('"'), size, data, is_whole)

    async def describe(self, path: str) -> Answer:
        with _as_os_errors(f"abfs://{path}"):
            found = await self._blob(path).get_blob_properties(**_OPTIONS)
        return Answer(found.etag.strip('"'), found.size, b"")

    def _blob(self, path: str) -> Any:
        container, _, name = path.partition("/")
        return self.service_client.get_blob_client(container=container, blob=name)

    def _pages(self, container: str, prefix: str, most: int) -> Any:
        # A folder of a hierarchical account is a blob that only its metadata tell from an empty one.
        listed = self.service_client.get_container_client(container).list_blobs(
            name_starts_with=prefix or None, include=["metadata"], results_per_page=most, **_OPTIONS
        )
        return listed.by_page()


class _NoSuchPartError(Exception):
    """The blob ends before the part begins."""


async def _next_page(pages: Any) -> list[Any] | None:
    """The blobs of the next page; None behind the last. If a request fails, the next call asks for the same page."""
    with _as_os_errors("the listing"):
        try:
            return [blob async for blob in await pages.__anext__()]
        except StopAsyncIteration:
            return None


@contextlib.contextmanager
def _as_os_errors(name: str) -> Iterator[None]:
    """Turn the errors of Azure's library into those of a store."""
    try:
        yield
    except ResourceModifiedError:
        raise
    except HttpResponseError as error:
        if error.status_code == 416:
            raise _NoSuchPartError from error
        if isinstance(error, ClientAuthenticationError) and error.status_code is None:  # there is no token to send
            raise PermissionError(f"{name}: {error.message}") from error
        if isinstance(error, IncompleteReadError) or error.status_code is None or error.status_code < 400:
            raise DamagedError(f"the body of {name} ends early: {error.message}") from error
        code = getattr(error, "error_code", None) or error.reason
        raise error_of(error.status_code, f"{name} is answered with {error.status_code} {code}") from error
    except (ServiceRequestError, ServiceResponseError) as error:
        raise ConnectionError(f"{name}: {error.message}") from error
    except AzureError as error:  # of the credentials
        raise PermissionError(f"{name}: {error.message}") from error
