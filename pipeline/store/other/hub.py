"""Repositories of the Hugging Face hub. huggingface_hub (the extra `hub`) finds endpoint and token; requests are ours.

Its file system keeps what it lists, and does not say of which version the bytes are. A file is named by its content:
its ETag is the SHA-256 of a large file (LFS), and Git's SHA-1 of any other, so each read is checked.
"""

import hashlib
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from aiohttp import ClientResponse
from fsspec.asyn import get_loop
from huggingface_hub import HfFileSystem, constants, get_token, parse_hf_uri
from yarl import URL

from pipeline.store.objects import DamagedError
from pipeline.store.other.answer import Answer, Part, error_of
from pipeline.store.other.http_client import (
    REDIRECTS,
    HttpClient,
    followed,
    json_of,
    part_of,
    range_of,
    status_line,
    whole_of,
    whole_size,
)
from pipeline.store.other.other_store import OtherObject, OtherStore

_SECONDS = 60.0  # for an answer without a file
_MOST_PAGE_BYTES = 64 * 2**20
_PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}


class HubFileSystem(OtherStore, HfFileSystem):
    """Files of models, data sets and spaces: `datasets/owner/name@revision/path`. `token=False` sends no token."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        if constants.HF_HUB_OFFLINE:
            raise ValueError("the variable HF_HUB_OFFLINE forbids requests to the hub")
        self.loop = get_loop()
        self.client = HttpClient(self.loop)

    def may_be_object(self, path: str) -> bool:
        return bool(_Place(path).file)

    def check_folder(self, path: str) -> None:
        self.repeated(self._page, path, None)

    def objects(self, path: str) -> Iterator[OtherObject]:
        path = path.rstrip("/")
        place, following = _Place(path), None
        try:
            page, following = self.repeated(self._page, path, None)
        except FileNotFoundError:
            yield self.object_at(path)
            return
        while True:
            for entry in page:
                if entry["type"] == "file":
                    etag = (entry.get("lfs") or entry)["oid"]
                    yield OtherObject(f"{place.root}/{entry['path']}", etag, entry["size"])
            if following is None:
                return
            page, following = self.repeated(self._page, path, following)

    async def ask(self, path: str, etag: str, part: Part | None, most_bytes: int) -> Answer:
        name, url = f"hf://{path}", self._url(path)
        ranges = range_of(part)
        async with self.client.answer("GET", url, ranges | self._token(), name, is_elsewhere_an_answer=True) as answer:
            described = _described(answer, name)
            if (etag and described.etag != etag) or answer.status == 416:
                return described
            if answer.status not in REDIRECTS:
                return await _answered(answer, name, described, part, most_bytes)
            elsewhere = followed(url, answer)
        if elsewhere is None or elsewhere.scheme not in ("https", url.scheme):
            raise PermissionError(f"{name} is said to lie at an address that is not read from")
        # The hub itself names the place of its large files, and signs the address: the token is not sent there.
        async with self.client.answer("GET", elsewhere, ranges, name) as answer:
            if answer.status == 416:
                return described
            if answer.status not in (200, 206):
                raise error_of(answer.status, status_line(answer, name))
            return await _answered(answer, name, described, part, most_bytes)

    async def describe(self, path: str) -> Answer:
        name = f"hf://{path}"
        async with self.client.answer(
            "HEAD", self._url(path), self._token(), name, _SECONDS, is_elsewhere_an_answer=True
        ) as answer:
            return _described(answer, name)

    async def _page(self, path: str, address: str | None) -> tuple[list[dict[str, Any]], str | None]:
        """(entries below the path, address of the next page; None behind the last)."""
        place, name = _Place(path), f"hf://{path}"
        first = f"{self.endpoint}/api/{place.kind}s/{place.repository}/tree/{place.revision}/{quote(place.file)}"
        url = URL(f"{first.rstrip('/')}?recursive=true" if address is None else address, encoded=True)
        if url.origin() != URL(self.endpoint).origin():
            raise PermissionError(f"the listing of {name} goes on at another server")
        async with self.client.answer("GET", url, self._token(), name, _SECONDS) as answer:
            if answer.status != 200:
                raise _refusal(answer, name)
            entries = await json_of(answer, name, _MOST_PAGE_BYTES)
            following = answer.links["next"].get("url") if "next" in answer.links else None
        if not isinstance(entries, list):
            raise DamagedError(f"the listing of {name} is no JSON array")
        return entries, None if following is None else str(following)

    def _url(self, path: str) -> URL:
        place = _Place(path)
        repository = f"{_PREFIXES[place.kind]}{place.repository}"
        return URL(f"{self.endpoint}/{repository}/resolve/{place.revision}/{quote(place.file)}", encoded=True)

    def _token(self) -> dict[str, str]:
        token = None if self.token is False else self.token if isinstance(self.token, str) else get_token()
        return {"Authorization": f"Bearer {token}"} if token else {}


class _Place:
    """What a path names. `root` is the part of the path before the file."""

    def __init__(self, path: str):
        try:
            parsed = parse_hf_uri(f"hf://{path}")
        except ValueError as error:
            raise OSError(f"hf://{path} names no files of a repository: {error}") from None
        if parsed.type not in _PREFIXES:
            raise OSError(f"hf://{path} lies in a bucket of the hub, which is not read; give a repository")
        self.kind, self.repository, self.file = parsed.type, parsed.id, parsed.path_in_repo
        self.revision = quote(parsed.revision or constants.DEFAULT_REVISION, safe="")
        self.root = path.rstrip("/").removesuffix(self.file).rstrip("/")


def _described(answer: ClientResponse, name: str) -> Answer:
    """The file that an answer is about. Raises the OSError of an answer that is about none."""
    if answer.status not in (200, 206, 416, *REDIRECTS):
        raise _refusal(answer, name)
    etag = answer.headers.get("X-Linked-Etag") or answer.headers.get("ETag") or ""
    size = answer.headers.get("X-Linked-Size", "")
    etag = etag.removeprefix("W/").strip('"')
    return Answer(etag, int(size) if re.fullmatch("[0-9]{1,18}", size) else whole_size(answer), b"")


async def _answered(answer: ClientResponse, name: str, described: Answer, part: Part | None, most_bytes: int) -> Answer:
    size = described.size_bytes if described.size_bytes is not None else whole_size(answer)
    if part is not None:
        return Answer(described.etag, size, await part_of(answer, name, part))
    data = await whole_of(answer, name, most_bytes)
    return Answer(described.etag, len(data), data, described.etag in _names_of(data))


def _names_of(data: bytes) -> tuple[str, str]:
    """What the hub may call this content: SHA-256, and Git's name of a file."""
    git = hashlib.sha1(b"blob %d\0" % len(data), usedforsecurity=False)
    git.update(data)
    return hashlib.sha256(data).hexdigest(), git.hexdigest()


def _refusal(answer: ClientResponse, name: str) -> OSError:
    said = answer.headers.get("X-Error-Message", "")
    return error_of(answer.status, f"{status_line(answer, name)}{': ' if said else ''}{said}")
