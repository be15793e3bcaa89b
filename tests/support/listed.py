"""Images of a listing and of a plan, one object each."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from pipeline.input_spec import InputSpec
from pipeline.inputs.listing import list_inputs
from pipeline.inputs.reads import ListedImage
from pipeline.plan.shards import PLANNED_IMAGES
from pipeline.schema import LISTED


@dataclass(frozen=True)
class PlannedImage(ListedImage):
    """An image of a plan."""

    reason: str = "new"

    @property
    def bytes_to_read(self) -> int:
        return 0 if self.reason == "removed" or self.fault else self.size_bytes


def list_images(*uris: str, **fields) -> Iterator[ListedImage]:
    """The images of inputs; `fields` are those of InputSpec."""
    spec = InputSpec(InputSpec.of(*uris).sources, **fields)
    return (ListedImage(**row) for table in list_inputs(spec) for row in table.to_pylist())


def listed_table(images: Iterable[ListedImage]) -> pa.Table:
    return pa.Table.from_pylist([vars(image) for image in images], schema=LISTED)


def planned_table(images: Iterable[PlannedImage]) -> pa.Table:
    return pa.Table.from_pylist([vars(image) for image in images], schema=PLANNED_IMAGES)


def planned_images(table: pa.Table) -> list[PlannedImage]:
    return [PlannedImage(**row) for row in table.to_pylist()]
