"""Google Cloud Storage by its JSON API. gcsfs (the extra `gcs`) finds credentials and endpoint; the requests are ours.

gcsfs would follow redirects to any host, repeat requests by rules of its own, keep what it lists, and not say of which
generation the bytes are. A generation changes with the content of an object only, and stands for its ETag.
https://cloud.google.com/storage/docs/json_api/v1/objects
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

from aiohttp import ClientResponse
from gcsfs.core import GCSFileSystem
from gcsfs.retry import HttpError, NonRetryableError
from google.auth.exceptions import GoogleAuthError, TransportError
from yarl import URL

from pipeline.store.objects import DamagedError
from pipeline.store.other.answer import Answer, Part, PassingError, error_of
from pipeline.store.other.http_client import (
    HttpClient,
    body_of,
    json_of,
    part_of,
    range_of,
    status_line,
    whole_of,
    whole_size,
)
from pipeline.store.other.other_store import OtherObject, OtherStore

_PAGE_SECONDS = 60.0
_MOST_PAGE_BYTES = 16 * 2**20
_MOST_ERROR_BYTES = 64 * 2**10
_PROJECT = "GOOGLE_CLOUD_PROJECT"

logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs errors with their stacks, and raises them as well


class GoogleFileSystem(OtherStore, GCSFileSystem):
    """Buckets of Google. With `requester_pays`, ValueError if the environment names no project that pays."""

    def __init__(self, requester_pays: bool = False, **options: Any):
        super().__init__(use_listings_cache=False, **options)
        self.client = HttpClient(self.loop)
        self.billed = (os.environ.get(_PROJECT) or self.project) if requester_pays else None
        if requester_pays and not self.billed:
            raise ValueError(f"--requester-pays needs a project that pays; set {_PROJECT}")

    def check_folder(self, path: str) -> None:
        bucket, _, key = path.rstrip("/").partition("/")
        if not self.repeated(self._page, bucket, f"{key}/" if key else "", None, 1).get("items") and key:
            raise FileNotFoundError(f"gs://{path} does not exist")

    def objects(self, path: str) -> Iterator[OtherObject]:
        bucket, _, prefix = path.rstrip("/").partition("/")
        prefix, token, is_empty = f"{prefix}/" if prefix else "", None, True
        while True:
            page = self.repeated(self._page, bucket, prefix, token, 1000)
            for item in page.get("items", ()):
                is_empty = False
                size = int(item["size"])
                if size or not item["name"].endswith("/"):  # an empty object may stand for a folder
                    yield OtherObject(f"{bucket}/{item['name']}", str(item["generation"]), size)
            following = page.get("nextPageToken")
            if following is None:
                break
            if following == token:
                raise OSError("the store says that there are more objects, but not where its listing goes on")
            token = following
        if is_empty and prefix:
            yield self.object_at(path)

    async def ask(self, path: str, etag: str, part: Part | None, most_bytes: int) -> Answer:
        name = f"gs://{path}"
        condition = {"ifGenerationMatch": etag} if etag.isdigit() else {}
        url = self._url(_place_of(path), alt="media", **condition)
        async with self.client.answer("GET", url, await self._signed(range_of(part)), name) as answer:
            if answer.status == 412:
                return await self.describe(path)  # another generation
            if answer.status != 416 or part is None:  # 416: the object ends before the part begins
                await _check(answer, name)
            generation = answer.headers.get("x-goog-generation") or (etag if condition else "")
            if generation:
                return await _answered(answer, name, generation, etag, part, most_bytes)
        # An emulator does not say what it sends, but sends what it is asked for.
        described = await self.describe(path)
        return described if etag else await self.ask(path, described.etag, part, most_bytes)

    async def describe(self, path: str) -> Answer:
        found = await self._json(self._url(_place_of(path), fields="generation,size"), f"gs://{path}")
        return Answer(str(found["generation"]), int(found["size"]), b"")

    async def _page(self, bucket: str, prefix: str, token: str | None, most: int) -> dict[str, Any]:
        given: dict[str, Any] = {"prefix": prefix, "maxResults": most, "pageToken": token}
        fields = "nextPageToken,items(name,generation,size)"
        return await self._json(self._url(_place_of(bucket), fields=fields, **given), f"gs://{bucket}")

    async def _json(self, url: URL, name: str) -> dict[str, Any]:
        async with self.client.answer("GET", url, await self._signed({}), name, _PAGE_SECONDS) as answer:
            await _check(answer, name)
            found = await json_of(answer, name, _MOST_PAGE_BYTES)
        if not isinstance(found, dict):
            raise DamagedError(f"the answer for {name} is no JSON object")
        return found

    def _url(self, place: str, **parameters: Any) -> URL:
        given = {name: value for name, value in (parameters | {"userProject": self.billed}).items() if value}
        return URL(f"{self.base}{place}?{urlencode(given)}", encoded=True)

    async def _signed(self, headers: dict[str, str]) -> dict[str, str]:
        """The headers with the credentials, which may have to be asked for; with `gzip`, objects come as stored."""
        signed = headers | {"Accept-Encoding": "gzip"}
        try:
            await asyncio.to_thread(self.credentials.apply, signed)
        except TransportError as error:
            raise PassingError(f"the credentials of Google cannot be asked for: {error}", "connection") from error
        except (GoogleAuthError, HttpError, NonRetryableError) as error:
            raise PermissionError(f"the credentials of Google are refused: {error}") from error
        return signed


def _place_of(path: str) -> str:
    """The address of an object, or of all objects of a bucket, behind the address of the API."""
    bucket, _, key = path.partition("/")
    return "/".join(["b", quote(bucket, safe=""), "o", *([quote(key, safe="")] if key else [])])


async def _answered(
    answer: ClientResponse, name: str, generation: str, etag: str, part: Part | None, most_bytes: int
) -> Answer:
    size = whole_size(answer)
    if answer.status == 416 or (etag and generation != etag):
        return Answer(generation, size, b"")
    data = await (whole_of(answer, name, most_bytes) if part is None else part_of(answer, name, part))
    digest = re.search(r"\bmd5=([\w+/=]+)", ",".join(answer.headers.getall("x-goog-hash", ())))
    md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
    return Answer(generation, size, data, is_whole=part is not None or digest is None or digest[1] == md5)


async def _check(answer: ClientResponse, name: str) -> None:
    """Raise the OSError of an answer that is neither an object nor a page."""
    if answer.status in (200, 206):
        return
    said = status_line(answer, name)
    with contextlib.suppress(ValueError, KeyError, TypeError):  # no JSON of Google
        said = f"{said}: {json.loads(await body_of(answer, _MOST_ERROR_BYTES, cut=True))['error']['message']}"
    if answer.status == 400 and "requester pays" in said:
        said = f"{said} (give --requester-pays)"
    raise error_of(answer.status, said)
