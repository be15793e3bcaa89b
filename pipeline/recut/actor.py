"""A shard of a plan -> the same shard with segments, from logits that earlier runs have kept: no image, no model."""

import os
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from m2f_core.inference.settings import InstanceSettings
from pipeline.errors import BrokenRunError, ErrorCode, ImageError, RunError
from pipeline.guard.watchdog import TRIED_AGAIN, start_watchdog, watch
from pipeline.inputs.reads import ListedImage
from pipeline.layout import Output
from pipeline.schema import LISTED, SEGMENTED, ModelVisit, no_shard, pack_shard, unpack_shard
from pipeline.segment.actor import segmented_table
from pipeline.segment.kept_logits import KeptInput
from pipeline.segment.postprocess import FoundSegment, found_segments, infer, merged_segments, warm_up
from pipeline.segment.spec import RecutSpec, SegmentedImage
from pipeline.store.filesystem import STORE_ERRORS, one_line, path_of
from pipeline.tables.stream_table import retrying
from pipeline.telemetry.costs import Costs
from pipeline.telemetry.in_flight import Tell, tell_nobody
from pipeline.telemetry.instruments import label_run
from pipeline.telemetry.metrics import count_shard

_READ_ERRORS = (*STORE_ERRORS, pa.ArrowException)


class RecutImages:
    """CPU actor: planned images in, the same images with segments out."""

    def __init__(self, spec: RecutSpec, run_id: str, tell: Tell = tell_nobody):
        self.spec = spec
        self.tell = tell
        self.output = Output.open(spec.tables, "--tables")
        torch.set_num_threads(1)  # Ray gives an actor two shards at a time, each in a thread
        label_run(run_id)
        warm_up(spec.inference)
        start_watchdog(spec.step_timeout, TRIED_AGAIN)

    def __call__(self, row: pa.Table) -> pa.Table:
        started, began, costs = time.time(), time.monotonic(), Costs()
        shard, planned = unpack_shard(row)
        images = [ListedImage(**image) for image in planned.select(LISTED.names).to_pylist()]
        with self.tell(shard, "segmenting", images[0].image_key, costs) as stops:
            if stops:
                return no_shard(SEGMENTED)
            found = self.recut(images, costs)
            results = [found[image.image_key] for image in images]
        outcomes = Counter(one.code.value if isinstance(one, ImageError) else "ok" for one in results)
        count_shard("segmenting", outcomes, time.monotonic() - began, costs.seconds)
        visit = ModelVisit(f"{socket.gethostname()}-{os.getpid()}", started, time.time())
        return pack_shard(shard, segmented_table(_without_places(planned), results), costs.seconds, visit)

    def recut(self, images: Sequence[ListedImage], costs: Costs) -> dict[str, SegmentedImage | ImageError]:
        """The result of each image, by its key.

        Raises RunError if the logits cannot be read, BrokenRunError if they are not those of the plan.
        """
        results: dict[str, SegmentedImage | ImageError] = {}
        for uri, of_file in groupby(images, lambda image: image.object_uri):
            if uri is None:
                results |= {image.image_key: _earlier_error(image) for image in of_file}
                continue
            for image, row in self._read(uri, list(of_file), costs):
                with watch("reducing", image.image_key), costs.passing("reduce"):
                    results[image.image_key] = self._reduce(row)
        return results

    def _read(
        self, uri: str, images: Sequence[ListedImage], costs: Costs
    ) -> Iterator[tuple[ListedImage, dict[str, Any]]]:
        """Each image with its row of schema.LOGITS; one row group is in memory at a time."""
        path = self.output.inside(path_of(self.output.filesystem, uri))
        try:
            with retrying(_READ_ERRORS, but=FileNotFoundError)(self.output.filesystem.open, path, "rb") as opened:
                file = retrying(_READ_ERRORS)(pq.ParquetFile, opened, page_checksum_verification=True)
                groups = range(file.num_row_groups)
                ends = list(accumulate(file.metadata.row_group(group).num_rows for group in groups))
                for group, of_group in groupby(images, lambda image: _group_of(image, ends, uri)):
                    with watch("reading", uri), costs.of_thread("read"):
                        rows = retrying(_READ_ERRORS)(file.read_row_group, group, use_threads=False)
                    for image in of_group:
                        assert image.position is not None, "a row with logits has a place"
                        row = rows.slice(image.position - ends[group] + rows.num_rows, 1).to_pylist()[0]
                        if row["image_key"] != image.image_key:
                            raise _changed(uri)
                        yield image, row
        except FileNotFoundError:
            raise BrokenRunError(f"{uri} is gone since the run was planned; start a new run") from None
        except _READ_ERRORS as error:
            raise RunError(f"{uri} cannot be read: {one_line(error)}") from error

    def _reduce(self, row: dict[str, Any]) -> SegmentedImage | ImageError:
        spec, image_hw = self.spec, (row["height"], row["width"])
        try:
            tiles = () if spec.tiling is None else spec.tiling.tiles(*image_hw)
            inputs = [KeptInput.from_row(one) for one in row["inputs"]]
            expected = [image_hw] if len(inputs) == 1 else [tile.box.size_hw for tile in tiles]
            if [one.original_hw for one in inputs] != expected:
                raise ValueError(f"the sizes of its {len(inputs)} inputs are not those of an image of {image_hw}")
            found = [self._segments(one) for one in inputs]
        except (ValueError, TypeError, KeyError) as error:
            return ImageError(ErrorCode.DAMAGED_CONTAINER, f"the kept logits are damaged: {one_line(error)}")
        if len(found) == 1:
            return SegmentedImage(*image_hw, found[0])
        return SegmentedImage(*image_hw, merged_segments(tiles, found, image_hw, spec.inference))

    def _segments(self, kept: KeptInput) -> tuple[FoundSegment, ...]:
        logits_KC1, masks_Khw = kept.logits(self.spec.num_classes)
        inference = self.spec.inference
        if isinstance(inference, InstanceSettings) and inference.top_k is None:
            inference = replace(inference, top_k=kept.num_queries)  # of the model, not only of those that were kept
        with torch.inference_mode():
            return found_segments(infer(logits_KC1, masks_Khw, kept.geometry, inference))


def _group_of(image: ListedImage, ends: Sequence[int], uri: str) -> int:
    """The row group that holds the image's row."""
    for group, end in enumerate(ends):
        if image.position is not None and 0 <= image.position < end:
            return group
    raise _changed(uri)


def _changed(uri: str) -> BrokenRunError:
    return BrokenRunError(f"{uri} has changed since the run was planned; start a new run")


def _earlier_error(image: ListedImage) -> ImageError:
    """The error of an image that had no result in the tables either."""
    code, _, message = (image.fault or "").partition(": ")
    return ImageError(ErrorCode(code), message)


def _without_places(planned: pa.Table) -> pa.Table:
    """schema.FETCHED without `data`, from schema.PLAN: no image has an error yet."""
    nulls = pa.nulls(planned.num_rows, pa.string())
    kept = [name for name in SEGMENTED.names if name in planned.column_names]
    return planned.select(kept).append_column("error_code", nulls).append_column("error_message", nulls)
