"""Nights that are listed, compared, planned, written, counted and published by the program's own parts, without Ray and
a model: in each image, the left half is a segment. For tests of what reads plans and reports.
"""

import io
import time
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from m2f_core.masks.rle import Rle, counts_area, counts_bbox_xywh, encode_mask
from pipeline.commit.encode import EncodeSpec, encode_shard
from pipeline.commit.run_report import Report
from pipeline.commit.totals import Totals
from pipeline.commit.write import ShardWriter
from pipeline.config import Settings
from pipeline.errors import ErrorCode, ImageError
from pipeline.inputs.reads import ImageReader, ListedImage
from pipeline.plan.growing import GrowingPlan
from pipeline.plan.plan_files import read_plan_file
from pipeline.runs.accounting import Clock, close_books
from pipeline.runs.begin import Run, take_up
from pipeline.runs.check import check
from pipeline.runs.planning.planner import Planner
from pipeline.runs.preview import comparison_of
from pipeline.schema import FETCHED, LISTED
from pipeline.segment.actor import SegmentedImage, segmented_table
from pipeline.segment.postprocess import FoundSegment
from pipeline.tables.publish import Publisher

IMAGES_PER_SHARD = 3


def night(settings: Settings) -> Report:
    """A finished, published run of what the input has and the tables have not."""
    run = _plan(settings)
    spec = EncodeSpec(run.run_id, run.created, run.fingerprint, 1, settings.task, run.model.labels.categories)
    writer, reader = ShardWriter(run.output, run.run_id), ImageReader(run.inputs)
    totals, clock = Totals(), Clock()
    for file in run.plan.files:
        shards = range(file.first_shard, file.first_shard + file.num_shards)
        for shard, planned in read_plan_file(run.output, run.inputs, file, shards):
            results = [_segment(reader, row) for row in planned.to_pylist()]
            rows = encode_shard(shard, segmented_table(_fetched(planned), results), spec)
            receipt = writer.write(shard, rows, started=time.time() - 1)
            run.journal.append([receipt])
            totals.add(receipt)
            clock.add(receipt)
    report = close_books(run, totals, 0, clock)
    Publisher(run.output, run.run_id, lambda: run.plan.num_shards, run.journal).publish()
    report.write(run.folder)
    return report


def _plan(settings: Settings) -> Run:
    checked = check(settings)
    with comparison_of(checked, keeps_indexes=True) as comparison:
        planner = Planner(checked, comparison, lambda: None, at_once=True)
        assert planner.find_work()
        record = planner.begin(IMAGES_PER_SHARD, 1, {})
        plan = GrowingPlan.of(record)
        run = take_up(checked, record, plan)
        with planner.going_on(run.folder, plan, IMAGES_PER_SHARD, 1):
            plan.wait_until_complete()
    return run


def _fetched(planned: pa.Table) -> pa.Table:
    rows = [{name: row[name] for name in FETCHED.names if name in row} for row in planned.to_pylist()]
    return pa.Table.from_pylist(rows, schema=FETCHED).drop_columns(["data"])


def _segment(reader: ImageReader, row: dict[str, Any]) -> SegmentedImage | ImageError | None:
    if row["reason"] == "removed":
        return None
    [read] = reader.read([ListedImage(**{name: row[name] for name in LISTED.names})], 1, 60.0)
    try:
        with Image.open(io.BytesIO(read.data)) as image:
            width, height = image.size
    except OSError:
        return ImageError(ErrorCode.DECODE_FAILED, "no image")
    mask_HW = np.zeros((height, width), bool)
    mask_HW[:, : width // 2] = True
    counts = encode_mask(mask_HW)
    rle = Rle(1, counts, counts_area(counts), counts_bbox_xywh(counts, height, width))
    return SegmentedImage(height, width, (FoundSegment(1, 0, 0.75, rle),))
