"""Folders and buckets: the one way to open a file system, to write a whole object and to name an object.

Credentials, region and endpoint come from the usual AWS chain (environment, profile, instance role). This module
neither takes nor logs them.
"""

import contextlib
import errno
import os
import re
import socket
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec
from botocore.exceptions import BotoCoreError
from fsspec.implementations.local import LocalFileSystem

from m2f_core.whole_files import written_whole
from pipeline.errors import RunError
from pipeline.input_spec import OWN_ACCESS, Access
from pipeline.setting_fields import refuse_secrets
from pipeline.shown_text import shown
from pipeline.store.client_errors import count_errors
from pipeline.store.fsspec_private import SessionWithoutRedirects, host_of, strip_protocol
from pipeline.store.retries import S3_CLIENT
from pipeline.store.s3_pages import read_pages_fast

# Stores that keep objects under stable keys, and folders. Of the other protocols of fsspec, some read pages that name
# what to read next, files inside of files (zip, reference, simplecache::...) or other machines (ftp, ssh, smb):
# whoever writes these pages or files would choose what a cluster reads.
SCHEMES = ("file", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci", "hdfs", "hf", "memory")
# Single objects to read (`other/opening.py`); nothing can be listed or written there.
WEB_SCHEMES = ("http", "https")
INPUT_SCHEMES = (*SCHEMES, *WEB_SCHEMES)
# What `pip install 'm2f-pipeline[...]'` brings for a store.
_EXTRAS = {
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(("az", "abfs", "abfss"), "azure"),
    "hf": "hub",
}

# The errors of stores. s3fs passes on botocore's own errors unchanged: no credentials, no such host, invalid name.
STORE_ERRORS = (OSError, BotoCoreError)

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # in the reports of Rust libraries

_S3_OPTIONS: dict[str, Any] = {
    "config_kwargs": {
        **S3_CLIENT,
        "max_pool_connections": 64,
        "tcp_keepalive": True,
        "http_session_cls": SessionWithoutRedirects,
    },
    "use_listings_cache": False,  # a cached listing costs 4 KB a key and may be stale
    "default_cache_type": "none",
}


@contextlib.contextmanager
def store_errors_as(
    kind: type[Exception],
    failed: str,
    *,
    denied: str | None = None,
    missing: str | None = None,
    also: tuple[type[Exception], ...] = (),
) -> Iterator[None]:
    """If the body raises an error of a store (or one of `also`), raise `kind` with one line: `failed: text of the
    error`.

    If the store refuses access, `denied` replaces `failed`. If an object does not exist and `missing` is given, the
    error is a RunError with the text `missing`, whatever `kind` is: trying again would not help.
    """
    try:
        yield
    except (*STORE_ERRORS, *_client_errors(), *also) as error:
        if missing is not None and isinstance(error, FileNotFoundError):
            raise RunError(missing) from None
        refused = denied is not None and isinstance(error, PermissionError)
        raise kind(f"{denied if refused else failed}: {one_line(error)}") from None


def _client_errors() -> tuple[type[Exception], ...]:
    """Errors of the HTTP clients of other stores that are loaded; fsspec passes them on, and they are no OSErrors."""
    loaded = [
        (sys.modules[module], name)
        for module, name in (
            ("aiohttp", "ClientError"),
            ("azure.core.exceptions", "AzureError"),
            ("google.auth.exceptions", "GoogleAuthError"),
            ("gcsfs.retry", "HttpError"),
            ("httpx", "HTTPError"),
            ("httpx2", "HTTPError"),
        )
        if module in sys.modules
    ]
    return tuple(getattr(module, name) for module, name in loaded if hasattr(module, name))


def open_filesystem(
    uri: str,
    access: Access = OWN_ACCESS,
    make: Callable[..., fsspec.AbstractFileSystem] = fsspec.filesystem,
) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of `uri` and the path in it. `uri` is a local path or `protocol://...`.

    `make(protocol, **options)` makes the file system.

    Raises RunError if the protocol is none of SCHEMES, if its library is not installed, if the environment's settings
    for the store (profile, endpoint) cannot be used, or if the URI holds credentials or names a host or an account, as
    with hdfs: the keys of images are `protocol://path` and could not say where they are.
    """
    protocol = _protocol_of(uri)
    options = {**(_S3_OPTIONS if protocol in ("s3", "s3a") else {}), **access.options(protocol)}
    with _set_up(uri, protocol):
        filesystem = make(protocol, **options)
        if is_s3(filesystem):
            filesystem.connect()  # reads the environment; makes no connection yet
            count_errors(filesystem.s3)
            read_pages_fast(filesystem.s3)
    path = path_of(filesystem, uri)
    return filesystem, path.rstrip("/") if is_s3(filesystem) else path


def _protocol_of(uri: str) -> str:
    """The protocol of a URI or path. RunError, as of `open_filesystem`, if this program does not use such a URI."""
    protocol = uri.split("://", 1)[0] if "://" in uri else "file"
    refuse_secrets("the URI", uri)
    if protocol not in SCHEMES:
        raise RunError(
            f"cannot open {uri}: {protocol}:// is no store that this program uses; give a path or one of "
            f"{', '.join(f'{scheme}://' for scheme in SCHEMES if scheme != 'memory')}"
        )
    if re.match("[a-z0-9]+:/(?!/)", uri):
        raise RunError(f"{uri} is neither a path nor a URI; did you mean {uri.replace(':/', '://', 1)}?")
    with _set_up(uri, protocol):
        if (names := host_of(protocol, uri)) is not None:
            raise ValueError(f"{protocol}:// with {names} in the URI is not supported; use another store")
    return protocol


@contextlib.contextmanager
def _set_up(uri: str, protocol: str) -> Iterator[None]:
    """RunError if the library of a protocol is missing, or is not set up: then it raises what it likes."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ImportError) and (extra := _EXTRAS.get(protocol)) is not None:
            raise RunError(f"{protocol}:// needs the extra `{extra}`: pip install 'm2f-pipeline[{extra}]'") from None
        raise RunError(f"cannot open {uri}: {one_line(error)}") from None


def path_of(filesystem: fsspec.AbstractFileSystem, uri: str) -> str:
    """The path of `uri` in its file system: the inverse of `uri_of`. Keys may hold `#`, `?`, `%` and spaces."""
    if is_local(filesystem):
        # Path.resolve would replace symbolic links, which must stay as written.
        return os.path.abspath(os.path.expanduser(uri.removeprefix("file://")))  # noqa: PTH100, PTH111
    if is_s3(filesystem):
        return uri.split("://", 1)[1]  # strip_protocol would cut the slash off a key that ends in one
    return strip_protocol(filesystem, uri)


def uri_of(filesystem: fsspec.AbstractFileSystem, path: str) -> str:
    """`protocol://path`, never escaped: `file:///photos/a b.jpg`, `s3://bucket/key`."""
    protocol = filesystem.protocol if isinstance(filesystem.protocol, str) else filesystem.protocol[0]
    return f"{protocol}://{path}"


def is_local(filesystem: fsspec.AbstractFileSystem) -> bool:
    return isinstance(filesystem, LocalFileSystem)


def is_s3(filesystem: fsspec.AbstractFileSystem) -> bool:
    return hasattr(filesystem, "call_s3")


def is_web(uri: str) -> bool:
    """Whether `uri` is an object of a web server."""
    return uri.startswith(tuple(f"{scheme}://" for scheme in WEB_SCHEMES))


def check_visible(filesystem: fsspec.AbstractFileSystem, path: str, flag: str) -> None:
    """Raise RunError if `path` is local and does not exist here: then only the driver's machine has it."""
    if is_local(filesystem) and not Path(path).exists():
        raise RunError(
            f"{flag} {path} does not exist on {socket.gethostname()}; "
            "on a cluster, give a URI or a folder that all nodes share"
        )


def local_etag(found: os.stat_result) -> str:
    """Replaces the ETag for local files: time of change in ns and size, in hex."""
    return f"{found.st_mtime_ns:x}-{found.st_size:x}"


def etag_in(info: Mapping[str, Any]) -> str:
    """What a file system's description of an object has in place of an ETag; "" if it has nothing.

    A generation of Google Cloud Storage changes with the content only, an ETag also with the metadata. A Git object of
    the Hugging Face hub is named by its content.
    """
    for name in ("generation", "etag", "ETag", "blob_id"):
        if info.get(name):
            return str(info[name]).strip('"')
    for name in ("mtime", "last_modified", "LastModified", "created"):
        if info.get(name):
            return f"{_in_seconds(info[name])}-{info.get('size')}"
    return ""


def _in_seconds(time: Any) -> Any:
    """A time in one form: a file system may have it as an object here and as a number there."""
    return time.timestamp() if isinstance(time, datetime) else time


def facts_of(filesystem: fsspec.AbstractFileSystem, path: str) -> tuple[str, int]:
    """(ETag or what replaces it, size in bytes) of an object. FileNotFoundError if there is none."""
    if is_local(filesystem):
        found = os.stat(path)  # noqa: PTH116
        if not stat.S_ISREG(found.st_mode):
            raise PermissionError(errno.EINVAL, "no file", path)
        return local_etag(found), found.st_size
    return facts_in(filesystem.info(path), path)


def facts_in(info: Mapping[str, Any], path: str) -> tuple[str, int]:
    """`facts_of`, from what a file system that is not local says of `path`."""
    if info["type"] != "file":
        raise FileNotFoundError(errno.ENOENT, "no object", path)
    if info["size"] is None:
        raise OSError(f"the store does not say how large {path} is")
    return etag_in(info), int(info["size"])


def list_folder(filesystem: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    """Paths directly below `folder`, sorted. Empty if there is no such folder."""
    try:
        return sorted(str(path) for path in filesystem.ls(folder, detail=False))
    except FileNotFoundError:
        return []


def put_object(filesystem: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    """Write `data` at `path` so that a reader sees the whole object or none, even if a process dies.

    Object stores guarantee this (one PUT). On a local disk, a temporary file is renamed.
    """
    if not is_local(filesystem):
        filesystem.pipe_file(path, data)
        return
    with written_whole(Path(path)) as temporary:
        temporary.write_bytes(data)


def write_uri(uri: str, data: bytes) -> None:
    """`put_object` for one object that is named by its URI or local path."""
    put_object(*open_filesystem(uri), data)


def one_line(error: BaseException) -> str:
    """An exception as one line for a message or a row: its text as people may see it, or its type if it has no text."""
    text = shown(_COLOUR.sub("", " ".join(str(error).split())))
    return text[:500] if text else type(error).__name__


def whole_path(uri: str) -> str:
    """Make a local path absolute, because other processes have other working directories. A URI stays as it is."""
    spelled = full_uri(uri)
    return spelled.removeprefix("file://") if spelled.startswith("file://") else uri


def full_uri(uri: str) -> str:
    """`uri` as the keys of a listing are spelled: `protocol://path`, with absolute local paths and links unresolved.

    The store is not opened: Google's library looks for credentials then, for 16 s where there are none.
    """
    if is_web(uri):
        refuse_secrets("the URI", uri)
        return uri
    protocol = _protocol_of(uri)
    if protocol == "file":
        return uri_of(*open_filesystem(uri))
    store = fsspec.get_filesystem_class(protocol)
    path = path_of(store, uri)
    return uri_of(store, path.rstrip("/") if is_s3(store) else path)


def canonical(uri: str) -> str:
    """The one name of a place: as `full_uri`, but with links and `..` resolved and without a slash at the end."""
    spelled = full_uri(uri)
    if spelled.startswith("file://"):
        spelled = f"file://{os.path.realpath(spelled.removeprefix('file://'))}"
    return spelled.rstrip("/")
