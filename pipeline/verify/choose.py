"""Which files are checked: those of the current version of each table, or a sample of them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from deltalake import DeltaTable

from pipeline.layout import Output, parts_folder
from pipeline.schema import TABLES
from pipeline.tables.publish import app_id
from pipeline.tables.stream_table import check_files, check_table
from pipeline.verify.books import Library
from pipeline.verify.facts import TableFile
from pipeline.verify.findings import Findings, Kind

Shard = tuple[str, int]  # run, number


@dataclass(frozen=True)
class Chosen:
    """The files to check, those of `images` first.

    together: numbers of the files whose rows are compared with other files. In a sample these are whole shards.
    whole_shards: shards whose parts are in the tables, and are chosen.
    items: numbers of the files of each shard and of each merged file that is chosen, of the `num_items` that there are.
    """

    files: tuple[TableFile, ...]
    together: frozenset[int]
    whole_shards: frozenset[Shard]
    items: tuple[tuple[int, ...], ...]
    num_items: int

    @property
    def is_sample(self) -> bool:
        return len(self.items) < self.num_items


def choose_files(
    output: Output, tables: dict[str, DeltaTable], library: Library, sample: int | None, findings: Findings
) -> Chosen:
    """The files of the runs in the library. `tables`: the version of each table that is checked."""
    found: dict[str, list[TableFile]] = {name: [] for name in TABLES}
    for name, snapshot in tables.items():
        check_table(output, name, snapshot)
        listed = _listed(output, name, snapshot, library)
        found[name] = [_file(one, library, findings) for one in listed]
        there = {one.path for one in listed}
        found[name] += [one for one in _empty_parts(name, library) if one.path not in there]
        _check_published(name, snapshot, library, findings)
    items = _items(found)
    chosen = items if sample is None else [items[n * len(items) // sample] for n in range(min(sample, len(items)))]
    if sample is not None and sample < len(items):
        together = [item for item in chosen if len(item) == len(TABLES)]
    else:
        together = chosen
    order = sorted((one for item in chosen for one in item), key=lambda one: (one.table, one.path))
    numbers = {(one.table, one.path): number for number, one in enumerate(order)}
    return Chosen(
        tuple(replace(one, number=numbers[one.table, one.path]) for one in order),
        frozenset(numbers[one.table, one.path] for item in together for one in item),
        frozenset(_shard(item[0]) for item in chosen if len(item) == len(TABLES)),
        tuple(tuple(numbers[one.table, one.path] for one in item) for item in chosen),
        len(items),
    )


def _listed(output: Output, name: str, snapshot: DeltaTable, library: Library) -> list[TableFile]:
    """The files of the table that may hold rows of runs to check."""
    files = check_files(output, name, snapshot)
    passed_over = tuple(f"{parts_folder(name, run_id)}/" for run_id in library.others)
    listed = []
    for row in files.select([c for c in _LISTED if c in files.column_names]).to_pylist():
        path = f"{name}/{row['path']}"
        bounds = row.get("min.run_id"), row.get("max.run_id")
        if path.startswith(passed_over) or (None not in bounds and not _has_run_between(library, *bounds)):
            continue
        listed.append(TableFile(0, name, path, row["size_bytes"], row.get("num_records")))
    return listed


_LISTED = ("path", "size_bytes", "num_records", "min.run_id", "max.run_id")


def _has_run_between(library: Library, least: str | None, most: str | None) -> bool:
    """Whether rows of a run to check may be in a file with these bounds; rows of an unknown run must be found, too."""
    known = library.books.keys() | library.others.keys()
    return least not in known or most not in known or any(least <= run <= most for run in library.books)


def _file(listed: TableFile, library: Library, findings: Findings) -> TableFile:
    """The file with the receipt that names it, if one does."""
    folder, _, _ = listed.path.removeprefix(f"{listed.table}/run=").partition("/")
    books = library.books.get(folder) if listed.path.startswith(f"{listed.table}/run=") else None
    if books is None:
        return listed
    if listed.path not in books.parts:
        if books.has_receipts:
            findings.add(Kind.NO_PART, "path", "no receipt names it", run_id=books.run_id, file=listed.path)
        return listed
    proof, part = books.parts[listed.path]
    if part.size_bytes != listed.size_bytes:
        said = f"the log says {listed.size_bytes} bytes, the receipt {part.size_bytes}"
        findings.add(Kind.BYTES, "size_bytes", said, run_id=books.run_id, file=listed.path)
    if listed.num_rows not in (None, part.num_rows):
        said = f"the log says {listed.num_rows} rows, the receipt {part.num_rows}"
        findings.add(Kind.NUM_ROWS, "file", said, run_id=books.run_id, file=listed.path)
    return replace(listed, size_bytes=part.size_bytes, num_rows=part.num_rows, proof=proof)


def _empty_parts(name: str, library: Library) -> Iterator[TableFile]:
    """Parts without rows, which no table has: they are checked if they are there."""
    for books in library.books.values():
        for path, (proof, part) in books.parts.items():
            if not part.num_rows and path.startswith(f"{name}/"):
                yield TableFile(0, name, path, part.size_bytes, 0, proof, may_lack=True)


def _check_published(name: str, snapshot: DeltaTable, library: Library, findings: Findings) -> None:
    for run_id, books in library.books.items():
        count, num_shards = snapshot.transaction_version(app_id(run_id)), books.record.plan.num_shards
        is_forgotten = books.is_tidied and count is None
        if num_shards and count != num_shards and not is_forgotten:
            findings.add(Kind.NOT_PUBLISHED, name, f"{count or 0} of {num_shards} shards", run_id=run_id)


def _shard(file: TableFile) -> Shard:
    assert file.proof is not None, "only parts make a whole shard"
    return file.proof.run_id, file.proof.shard


def _items(found: dict[str, list[TableFile]]) -> list[tuple[TableFile, ...]]:
    """Shards with a part for each table, then files alone; in a fixed order."""
    of_shard: dict[Shard, list[TableFile]] = {}
    alone: list[tuple[TableFile, ...]] = []
    for files in found.values():
        for file in sorted(files, key=lambda one: one.path):
            if file.proof is None:
                alone.append((file,))
            else:
                of_shard.setdefault(_shard(file), []).append(file)
    shards = [tuple(files) for _, files in sorted(of_shard.items())]
    whole = [files for files in shards if len(files) == len(TABLES)]
    return [*whole, *((file,) for files in shards if len(files) != len(TABLES) for file in files), *alone]
