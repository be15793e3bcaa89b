"""Shard -> encoded bytes, checked against the plan. A failed read is a row, never an exception."""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
from tenacity import (
    Retrying,
    retry_if_not_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)

from pipeline.errors import ErrorCode, ImageError
from pipeline.schema import FETCHED, pack_shard, unpack_shard
from pipeline.storage import check_visible, is_local, is_s3, local_etag, one_line, open_filesystem, path_of

READ_THREADS = 16  # one object of 100 KB takes 20-50 ms from S3, so this many in flight are 300-800 images/s
_READ_ATTEMPTS = 4  # on top of the client's own; for what clients do not repeat: cut bodies, wrong checksums
_READ_SECONDS = 300  # and no new one after these
# Larger objects are no images: a film or an archive below the prefix would fill the worker's memory.
MAX_OBJECT_BYTES = 512 * 2**20

_MD5_ETAG = re.compile("[0-9a-f]{32}")  # a single-part upload; multipart ETags end in -N and are no digest


class FetchImages:
    """CPU actor: adds `data` (encoded bytes) to every image of a shard, or an error code and message."""

    def __init__(self, input_uri: str):
        self.filesystem, self.root = open_filesystem(input_uri)
        self.threads = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="fetch")

    def __call__(self, row: pa.Table) -> pa.Table:
        check_visible(self.filesystem, self.root, "--input")
        shard, images = unpack_shard(row)
        planned = images.select(["image_key", "etag", "size_bytes"]).to_pylist()
        results = list(self.threads.map(lambda image: self.fetch(**image), planned))
        errors = [result if isinstance(result, ImageError) else None for result in results]
        fetched = pa.Table.from_arrays(
            [
                *images.columns,
                pa.array([error and error.code.value for error in errors], pa.string()),
                pa.array([error and error.message for error in errors], pa.string()),
                pa.array([None if isinstance(r, ImageError) else r for r in results], pa.large_binary()),
            ],
            schema=FETCHED,
        )
        return pack_shard(shard, fetched)

    def fetch(self, image_key: str, etag: str, size_bytes: int) -> bytes | ImageError:
        """The object's bytes, or why there are none.

        Error codes: too_large, not_found, access_denied, changed (replaced since the plan), corrupt_in_transit,
        read_failed.
        """
        if size_bytes > MAX_OBJECT_BYTES:
            return ImageError(ErrorCode.TOO_LARGE, f"{size_bytes} bytes; objects over {MAX_OBJECT_BYTES} are not read")
        try:
            for attempt in Retrying(
                stop=stop_after_attempt(_READ_ATTEMPTS) | stop_after_delay(_READ_SECONDS),
                wait=wait_random_exponential(multiplier=0.25, max=10),
                retry=retry_if_not_exception_type((FileNotFoundError, PermissionError, _ChangedError)),
                reraise=True,
            ):
                with attempt:
                    return read_verified(self.filesystem, path_of(self.filesystem, image_key), etag, size_bytes)
        except FileNotFoundError:
            return ImageError(ErrorCode.NOT_FOUND, "the object was listed but is gone")
        except PermissionError as error:
            return ImageError(ErrorCode.ACCESS_DENIED, one_line(error))
        except _ChangedError as error:
            return ImageError(ErrorCode.CHANGED, one_line(error))
        except _CorruptError as error:
            return ImageError(ErrorCode.CORRUPT_IN_TRANSIT, one_line(error))
        except Exception as error:
            return ImageError(ErrorCode.READ_FAILED, f"{type(error).__name__}: {one_line(error)}")
        raise AssertionError("unreachable: the last attempt returns or raises")


class _CorruptError(Exception):
    """The bytes that came are not those the store says it holds."""


class _ChangedError(Exception):
    """The object is no longer the one that was planned."""


def read_verified(filesystem: fsspec.AbstractFileSystem, path: str, etag: str, size_bytes: int) -> bytes:
    """The bytes of one object, checked by length and, where the ETag is an MD5 digest, by content.

    Raises _ChangedError where the store now holds another object, _CorruptError where the bytes are wrong, and what
    the file system raises.
    """
    data: bytes = filesystem.cat_file(path)
    if is_local(filesystem):
        if (now := local_etag(Path(path).stat())) != etag:
            raise _ChangedError(f"planned with modification time and size {etag}, now {now}")
        return data
    if len(data) == size_bytes and hashlib.md5(data, usedforsecurity=False).hexdigest() == etag:
        return data
    return _ask_store(filesystem, path, etag, size_bytes, data)


def _ask_store(filesystem: Any, path: str, etag: str, size_bytes: int, data: bytes) -> bytes:
    """Ask the store what it holds: another object, one whose ETag is no digest, or the planned one read wrongly."""
    is_digest = _MD5_ETAG.fullmatch(etag) is not None
    if not is_s3(filesystem):
        if len(data) == size_bytes and not is_digest:
            return data
        raise _CorruptError(f"{len(data)} bytes came where the listing said {size_bytes}")
    bucket, key = path.split("/", 1)
    head = filesystem.call_s3("head_object", Bucket=bucket, Key=key)
    if head["ETag"].strip('"') != etag:
        raise _ChangedError(f"planned with ETag {etag}, now {head['ETag']}")
    # With KMS or customer keys the ETag is not the MD5 of the content; the client's own checksum has to do.
    encrypted = head.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in head
    if (encrypted or not is_digest) and len(data) == size_bytes:
        return data
    raise _CorruptError(f"{len(data)} bytes came that are not the {size_bytes} bytes of ETag {etag}")
