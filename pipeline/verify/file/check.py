"""Check one file of a table. Runs in processes of its own, which know the `Context`."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from m2f_core.masks import measure
from pipeline.layout import Output
from pipeline.verify.facts import Context, TableFile
from pipeline.verify.file.images import FOUND_IMAGES, check_images
from pipeline.verify.file.read import FileRows
from pipeline.verify.file.rows import Rows, by_run
from pipeline.verify.file.segments import GROUPS, check_segments
from pipeline.verify.findings import Finding, Findings

_CHECKS: dict[str, tuple[Callable[[Rows], pa.Table], pa.Schema]] = {
    "images": (check_images, FOUND_IMAGES),
    "segments": (check_segments, GROUPS),
}
FLAG = "--tables"


@dataclass(frozen=True)
class Checked:
    """A file that has been checked. `rows` are FOUND_IMAGES or GROUPS, for the comparisons of whole runs."""

    file: TableFile
    findings: list[Finding]
    rows: pa.Table
    num_rows: dict[str, int]  # by run, of the runs that are checked
    is_whole: bool  # all rows of the file have been read


class Checker:
    """Checks files. RunError if the store does not answer."""

    def __init__(self, context: Context):
        self.context = context
        self.output = Output.open(context.tables, FLAG)
        measure.warm_up()

    def check(self, file: TableFile) -> Checked:
        findings, num_rows = Findings(), Counter[str]()
        check, schema = _CHECKS[file.table]
        found, read = [schema.empty_table()], FileRows(self.output, file, findings)
        for batch in whole_images(iter(read)):
            for rows in by_run(batch, self.context, file, findings):
                num_rows[rows.run.run_id] += len(rows)
                found.append(check(rows.with_values()))
        return Checked(file, list(findings), pa.concat_tables(found), dict(num_rows), read.are_all)


def whole_images(batches: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The batches, cut anew so that rows of one image which follow each other stay together."""
    rest: pa.Table | None = None
    for batch in batches:
        together = batch if rest is None else pa.concat_tables([rest, batch])
        end = _last_change(together["image_key"])
        if end:
            yield together.slice(0, end)
        rest = together.slice(end)
    if rest is not None and rest.num_rows:
        yield rest


def _last_change(keys: pa.ChunkedArray) -> int:
    """Where the rows with the last key begin."""
    last = keys[len(keys) - 1].as_py() if len(keys) else None
    for place in range(len(keys) - 1, 0, -1):
        if keys[place - 1].as_py() != last:
            return place
    return 0


_checker: Checker | None = None


def start_checker(context: Context) -> None:
    """Make this process one that checks files."""
    global _checker
    _checker = Checker(context)


def check_file(file: TableFile) -> Checked:
    assert _checker is not None, "start_checker is the initializer of the process"
    return _checker.check(file)
