"""What another part adds to a table, beside its rows: a footer, and values that parts side by side would share."""

from collections.abc import Sequence

import pyarrow as pa

from pipeline.commit.receipt import Receipt
from pipeline.commit.write import part_bytes
from pipeline.layout import Output
from pipeline.schema import ALL_TABLES, TABLES
from pipeline.tables.finished_run import part_rows

_MOST_IMAGES = 512  # are read back


def bytes_of_a_part(output: Output, receipts: Sequence[Receipt]) -> dict[str, int]:
    """By table: by how much the same rows are larger in two parts than in one, measured with the first of these parts.

    Of a single part this cannot be measured; then the bytes of a part without rows.
    """
    some, num_images = [], 0
    for receipt in receipts:
        if num_images >= _MOST_IMAGES:
            break
        some.append(receipt)
        num_images += receipt.num_images
    half = len(some) // 2
    empty = {
        table: len(part_bytes(table, schema.empty_table()))
        for table, schema in ALL_TABLES.items()
        if all(table in receipt.parts for receipt in receipts)
    }
    if not half:
        return empty
    # Rows of `logits` have nothing in common, and are too large to be read back.
    measured = {table: _difference(table, [_rows(output, table, one) for one in some], half) for table in TABLES}
    return {**empty, **measured}


def _difference(table: str, rows: list[pa.Table], half: int) -> int:
    first, second, both = (len(part_bytes(table, pa.concat_tables(some))) for some in (rows[:half], rows[half:], rows))
    return max(0, first + second - both)


def _rows(output: Output, table: str, receipt: Receipt) -> pa.Table:
    return part_rows(output, table, receipt.parts[table], TABLES[table].names)
