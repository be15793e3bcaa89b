"""Open the place of an input: a store, a disk, or an object of a web server."""

from typing import Any

import fsspec

from pipeline.errors import RunError
from pipeline.input_spec import OWN_ACCESS, Access
from pipeline.setting_fields import refuse_secrets
from pipeline.store.filesystem import is_web, open_filesystem
from pipeline.store.other.web import HttpFileSystem, HttpsFileSystem, WebFileSystem

_WEB: dict[str, type[WebFileSystem]] = {"http": HttpFileSystem, "https": HttpsFileSystem}


def open_input(uri: str, access: Access = OWN_ACCESS) -> tuple[fsspec.AbstractFileSystem, str]:
    """Like `open_filesystem`, also for objects of web servers, which can only be read.

    RunError if the URI names a folder there: it has no listing.
    """
    if not is_web(uri):
        return open_filesystem(uri, access, _made)
    refuse_secrets("the URI", uri)
    scheme, _, path = uri.partition("://")
    access.options(scheme)
    if not path.partition("/")[0] or path.endswith("/") or "/" not in path:
        raise RunError(f"{uri} names no object; {scheme}:// has no folders, so give objects or a manifest of them")
    return _WEB[scheme](), path


def _made(protocol: str, **options: Any) -> fsspec.AbstractFileSystem:
    """The file system of a protocol. ImportError if its extra is not installed."""
    if protocol in ("gs", "gcs"):
        from pipeline.store.other.google import GoogleFileSystem

        return GoogleFileSystem(**options)
    if protocol in ("az", "abfs", "abfss"):
        from pipeline.store.other.azure import AzureFileSystem

        return AzureFileSystem(**options)
    if protocol == "hf":
        from pipeline.store.other.hub import HubFileSystem

        return HubFileSystem(**options)
    return fsspec.filesystem(protocol, **options)
