"""Files below the folders of the tables that no kept version has, and that nobody will publish any more."""

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import groupby, islice
from urllib.parse import unquote

from pipeline.layout import Output, parts_folder
from pipeline.schema import ALL_TABLES
from pipeline.store.listed import StoredObject, objects_below
from pipeline.store.removal import remove_objects
from pipeline.tables.publish import app_id
from pipeline.tidy.versions import KeptVersions

_RUN = re.compile(f"{parts_folder('', '([^/]+)').removeprefix('/')}/")
_AT_ONCE = 1000  # objects between two looks at the lease


@dataclass(frozen=True)
class OldFiles:
    """Objects to remove, with the reason for each."""

    objects: tuple[tuple[str, StoredObject], ...]

    def count(self, reason: str) -> tuple[int, int]:
        """The number and the bytes of the objects with this reason."""
        sizes = [found.size_bytes for why, found in self.objects if why == reason]
        return len(sizes), sum(sizes)


NOT_NEEDED, UNPUBLISHED = "in no kept version of the tables", "of runs that were never published"


def old_files(
    output: Output, versions: dict[str, KeptVersions | None], unpublished: Collection[str], cutoff: float
) -> OldFiles:
    """The files that are not needed and were written before `cutoff`.

    `unpublished`: ids of unfinished runs that may still be continued; their parts stay, though no version has them.
    Names that begin with `_` or `.` are not files of a table. Raises RunError if a folder cannot be listed.
    """
    found: list[tuple[str, StoredObject]] = []
    with output.errors():
        for name in ALL_TABLES:
            kept = versions[name]
            needed = frozenset() if kept is None else kept.needed
            folders = tuple(f"{output.at(parts_folder(name, run_id))}/" for run_id in unpublished)
            below = f"{output.at(name)}/"
            for file in objects_below(output.filesystem, output.at(name)):
                path = file.path.removeprefix(below)
                is_data = file.path.startswith(below) and not any(part[:1] in "_." for part in path.split("/"))
                if not is_data or file.written_at >= cutoff or file.path.startswith(folders):
                    continue
                if path not in needed and unquote(path) not in needed:
                    found.append((_reason(kept, path), file))
    return OldFiles(tuple(found))


def _reason(kept: KeptVersions | None, path: str) -> str:
    run = _RUN.match(path)
    is_part = run is not None and (kept is None or kept.snapshot.transaction_version(app_id(run[1])) is None)
    return UNPUBLISHED if is_part else NOT_NEEDED


def remove_by_folder(output: Output, paths: Iterable[str], may_remove: Callable[[], None]) -> None:
    """Remove the objects, in their order, and on a disk the folders that are empty then.

    `may_remove` is called again and again, and raises if this driver may no longer remove. RunError if the store
    refuses.
    """
    with output.errors():
        for folder, of_folder in groupby(paths, lambda path: path.rpartition("/")[0]):
            while page := list(islice(of_folder, _AT_ONCE)):
                may_remove()
                remove_objects(output.filesystem, output.inside(folder), page)
