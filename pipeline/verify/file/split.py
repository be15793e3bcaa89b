"""Images whose segments lie in several places, as merged files may have them: put together and checked again."""

from collections.abc import Iterable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.layout import Output
from pipeline.verify.facts import Context, TableFile
from pipeline.verify.file.read import FileRows
from pipeline.verify.file.rows import by_run
from pipeline.verify.file.segments import check_segments
from pipeline.verify.findings import Findings, Kind

# What only the rows of an image together show; everything else has been found row by row.
_TOGETHER = frozenset((Kind.SHARED_PIXELS, Kind.SEGMENT_IDS, Kind.SIZE))
MOST_IMAGES = 10_000  # whose rows are held in memory


def check_split_images(
    output: Output,
    context: Context,
    files: Iterable[TableFile],
    places: Mapping[str, Iterable[str]],
    findings: Findings,
) -> None:
    """Check the segments of some images together. `places`: image keys by run, whose rows lie in `files`."""
    read, again = Findings(), Findings()
    wanted = pa.array(sorted({key for keys in places.values() for key in keys}))
    found: list[pa.Table] = []
    for file in files:
        for batch in FileRows(output, file, read):
            plain = pa.table({name: _plain(batch[name]) for name in batch.column_names})
            found.append(plain.filter(pc.is_in(plain["image_key"], wanted)))
    if not found:
        return
    together = pa.concat_tables(found)
    for name in ("image_key", "category_name", "run_id"):
        place = together.schema.get_field_index(name)
        together = together.set_column(place, name, together[name].combine_chunks().dictionary_encode())
    nowhere = TableFile(0, "segments", "several files", 0, None)
    for rows in by_run(together, context, nowhere, again):
        check_segments(rows.with_values())
    findings.include(one for one in again if one.kind in _TOGETHER)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column
