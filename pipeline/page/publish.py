"""Write the page of a run to its place: report.html, report.json and, if they lie beside it, the pictures."""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass

import fsspec

from pipeline.errors import RunError
from pipeline.page.extra import check_extra
from pipeline.page.figures.runs import ShownRun
from pipeline.page.html import write_html
from pipeline.page.make import make_page
from pipeline.page.settings import ReportSettings
from pipeline.store.filesystem import list_folder, open_filesystem, put_object, store_errors_as, uri_of

HTML, JSON, IMAGES = "report.html", "report.json", "images"
_PICTURE = re.compile(rf"{IMAGES}/\d{{4}}\.(webp|jpg)")


@dataclass(frozen=True)
class Published:
    """Where report.html lies, and how many overlays are `written` and images `unreadable`."""

    address: str
    overlays: dict[str, int]


def publish_page(settings: ReportSettings) -> Published:
    """Make the page and write it, and the overlays. RunError if something cannot be made or written."""
    check_extra()
    run, page = make_page(settings)
    names = None
    if settings.images == "folder":
        names = [f"{IMAGES}/{number:04d}.{_ending(one.picture.mime)}" for number, one in enumerate(page.gallery.images)]
    html = write_html(page, names).encode("utf-8", "replace")
    where = f"--to {settings.to}" if settings.to is not None else run.output.name
    with store_errors_as(RunError, f"{where} cannot be written", denied=f"no permission to write to {where}"):
        filesystem, folder = _place(settings, run)
        for name, one in zip(names or (), page.gallery.images, strict=names is not None):
            if one.picture.data:
                put_object(filesystem, f"{folder}/{name}", one.picture.data)
        put_object(filesystem, f"{folder}/{JSON}", json.dumps(page.figures, indent=1).encode())
        put_object(filesystem, f"{folder}/{HTML}", html)  # last: a page that is there is whole
        if settings.to is None:  # elsewhere, files of others may have such names
            _remove_others(filesystem, folder, names or ())
        return Published(uri_of(filesystem, f"{folder}/{HTML}").removeprefix("file://"), page.overlays)


def _remove_others(filesystem: fsspec.AbstractFileSystem, folder: str, names: Collection[str]) -> None:
    """Remove the pictures that an earlier page of the run has left beside it: whoever asks for none means it."""
    for path in list_folder(filesystem, f"{folder}/{IMAGES}"):
        name = f"{IMAGES}/{path.rstrip('/').rpartition('/')[2]}"
        if name not in names and _PICTURE.fullmatch(name):
            filesystem.rm_file(path)


def _place(settings: ReportSettings, run: ShownRun) -> tuple[fsspec.AbstractFileSystem, str]:
    if settings.to is not None:
        return open_filesystem(settings.to)
    return run.output.filesystem, run.output.inside(run.folder.page)


def _ending(mime: str) -> str:
    return mime.removeprefix("image/").replace("jpeg", "jpg") or "none"
