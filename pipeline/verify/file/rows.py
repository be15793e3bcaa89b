"""Rows of one run in one file: what the checks of both tables share."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from m2f_core.config.fields import excerpt
from pipeline.schema import TABLES
from pipeline.verify.facts import Context, RunFacts, TableFile
from pipeline.verify.findings import Findings, Kind


class Rows:
    """A batch of rows of one run, each column in one piece, and the findings to which faults in the rows are added."""

    def __init__(self, table: pa.Table, run: RunFacts, file: TableFile, findings: Findings):
        self.table, self.run, self.file, self.findings = table, run, file, findings

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, name: str) -> pa.Array:
        return self.table.column(name).chunk(0)

    def numbers(self, name: str) -> NDArray[Any]:
        """A column of numbers without null."""
        return self[name].to_numpy(zero_copy_only=False)

    def check(self, bad: Any, kind: Kind, field: str, found: Callable[[int], object] | None = None) -> None:
        """Count the rows that are `bad` (an array of numpy or Arrow).

        `found` describes a row, by its place; default: the segment, if the row is one, and the value of the field.
        """
        is_bad = bad if isinstance(bad, np.ndarray) else pc.fill_null(bad, False).to_numpy(zero_copy_only=False)
        places = np.flatnonzero(is_bad)
        if places.size:
            first = int(places[0])
            said = self._value(field, first) if found is None else found(first)
            self.add(kind, field, said, self["image_key"][first].as_py(), places.size)

    def add(self, kind: Kind, field: str, found: object, key: str | None, count: int = 1) -> None:
        self.findings.add(
            kind, field, found, run_id=self.run.run_id, file=self.file.path, key=excerpt(key)[1:-1], count=count
        )

    def _value(self, field: str, row: int) -> str:
        said = excerpt(self[field][row].as_py())
        return said if self.file.table == "images" else f"segment {self['segment_id'][row].as_py()}: {said}"

    def with_values(self) -> "Rows":
        """The rows that have a value in each column that every row has; rows without one are added to the findings."""
        lacking = np.zeros(len(self), bool)
        for field in TABLES[self.file.table]:
            if not field.nullable and self[field.name].null_count:
                is_null = self[field.name].is_null()
                self.check(is_null, Kind.NO_VALUE, field.name)
                lacking |= is_null.to_numpy(zero_copy_only=False)
        return self.without(lacking)

    def without(self, bad: NDArray[np.bool_]) -> "Rows":
        """The rows that are not `bad`."""
        return self if not bad.any() else Rows(_one_piece(self.table.filter(~bad)), self.run, self.file, self.findings)

    def in_order(self, order: NDArray[np.intp]) -> "Rows":
        return Rows(_one_piece(self.table.take(order)), self.run, self.file, self.findings)

    def check_shared(self) -> None:
        """Check the columns that both tables have."""
        run, proof = self.run, self.file.proof
        shards = self.numbers("shard")
        if proof is not None:
            self.check(shards != proof.shard, Kind.OF_RUN, "shard")
        else:
            self.check((shards < 0) | (shards >= run.num_shards), Kind.OF_RUN, "shard")


def by_run(batch: pa.Table, context: Context, file: TableFile, findings: Findings) -> Iterator[Rows]:
    """The rows of each run that is checked."""
    names = pc.unique(batch["run_id"]).to_pylist()
    for name in names:
        proof = file.proof
        if name is None:
            findings.add(Kind.NO_VALUE, "run_id", "null", file=file.path, count=batch["run_id"].null_count)
            continue
        of_run = batch if len(names) == 1 else batch.filter(pc.equal(batch["run_id"], name))
        if (name not in context.runs and name not in context.other_runs) or (proof and proof.run_id != name):
            key = excerpt(of_run["image_key"][0].as_py())[1:-1]
            findings.add(Kind.UNKNOWN_RUN, "run_id", excerpt(name), file=file.path, key=key, count=of_run.num_rows)
        elif name in context.runs:
            yield Rows(_one_piece(of_run), context.runs[name], file, findings)


def _one_piece(table: pa.Table) -> pa.Table:
    """Each column as one array. Dictionaries of the pieces become one."""
    return table.unify_dictionaries().combine_chunks() if table.num_rows else _empty(table.schema)


def _empty(schema: pa.Schema) -> pa.Table:
    return pa.table([pa.chunked_array([pa.array([], field.type)]) for field in schema], schema=schema)
