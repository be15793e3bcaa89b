"""A shard of encoded images -> the same shard with segments: the actor that holds the model.

Ray calls the actor with the next shard while this shard is on the device, so that decoding runs ahead across shards. A
shard that has crashed the process twice is segmented in a child process, image by image.
"""

import json
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from m2f_core.checkpoints.checkpoint import CheckpointError
from m2f_core.masks.rle import Rle
from pipeline.errors import ImageError, RunError, StoreUnavailableError
from pipeline.guard.start_markers import Starts
from pipeline.guard.watchdog import TRIED_ONE_BY_ONE, start_watchdog
from pipeline.layout import Output
from pipeline.schema import SEGMENTED, ModelVisit, costs_of, no_shard, pack_shard, unpack_shard
from pipeline.segment.spec import SegmentedImage, SegmentSpec
from pipeline.telemetry.costs import Costs, add_up
from pipeline.telemetry.device_time import DeviceTime
from pipeline.telemetry.in_flight import Hold, Tell, hold_nothing, tell_nobody
from pipeline.telemetry.instruments import label_run
from pipeline.telemetry.log_lines import send_log_lines
from pipeline.telemetry.metrics import RETRIES, count_shard

logger = logging.getLogger(__name__)

# One crash may be the fault of the machine or of the other shard in the process; after two crashes we blame this shard.
STARTS_BEFORE_ISOLATION = 2


class SegmentImages:
    """Model actor: one shard in, one shard out; encoded bytes are replaced by segments."""

    def __init__(
        self,
        spec: SegmentSpec,
        output_uri: str,
        run_id: str,
        tell: Tell = tell_nobody,
        has_conditions: bool = True,
        hold: Hold = hold_nothing,
        threads: Callable[[], int] | None = None,
    ):
        """`has_conditions`: of the output, as the driver has found out. `threads` says how many this node allows, if
        nodes differ.
        """
        # Not at the top: the driver imports this class too, and needs no PyTorch.
        from pipeline.segment.device_model import device_name
        from pipeline.segment.segmenter import Segmenter

        if threads is not None:
            spec = replace(spec, threads=threads())
        send_log_lines(run_id)
        label_run(run_id)
        self.device_time = DeviceTime(spec.device, device_name(spec.device), hold)
        self.tell = tell
        self.broken: Exception | None = None
        self.starts = Starts(Output.open(output_uri, has_conditions=has_conditions).run(run_id))
        try:
            self.segmenter = Segmenter(spec, self.device_time.busy)
        except StoreUnavailableError:
            raise  # the store may come back: Ray repeats the constructor
        except (RunError, CheckpointError) as error:
            # The error is permanent, and Ray would repeat the constructor a hundred times: the first call ends the run.
            self.broken = error
            return
        bound = self.segmenter.memory_bound(decoding=spec.threads, batch_size=spec.batch_size)
        start_watchdog(spec.step_timeout, TRIED_ONE_BY_ONE, bound)

    def __call__(self, row: pa.Table) -> pa.Table:
        if self.broken is not None:
            raise self.broken
        started, began, costs = time.time(), time.monotonic(), Costs()
        shard, images = unpack_shard(row)
        encoded, names = images.column("data").to_pylist(), images.column("image_key").to_pylist()
        with self.tell(shard, "segmenting", names[0], costs) as stops:
            if stops:
                return no_shard(SEGMENTED)
            results = self._segment(shard, encoded, names, costs)
        self.device_time.report()
        count_shard("segmenting", _outcomes(results), time.monotonic() - began, costs.seconds)
        segmented = segmented_table(images.drop_columns(["data"]), results)
        visit = ModelVisit(f"{socket.gethostname()}-{os.getpid()}", started, time.time())
        return pack_shard(shard, segmented, add_up(costs_of(row), costs.seconds), visit)

    def _segment(
        self, shard: int, encoded: Sequence[bytes | None], names: Sequence[str], costs: Costs
    ) -> Sequence[SegmentedImage | ImageError | None]:
        """Segment the images together or, if the shard has crashed the process before, one by one."""
        with self.starts.start(shard) as starts_before:
            if starts_before:
                RETRIES.add(cause="shard_restarted" if starts_before < STARTS_BEFORE_ISOLATION else "one_by_one")
            if starts_before < STARTS_BEFORE_ISOLATION:
                return self.segmenter.segment(encoded, names, costs)
            logger.warning(
                f"shard {shard} was started {starts_before} times and never finished; trying its images one by one",
                extra={"shard": shard},
            )
            from pipeline.segment.isolate import segment_one_by_one

            with self.segmenter.network.lent():
                return segment_one_by_one(self.segmenter.spec, encoded)


def _outcomes(results: Sequence[SegmentedImage | ImageError | None]) -> Counter[str]:
    """How many images by error code or `ok`; images that came without bytes do not count."""
    return Counter(
        result.code.value if isinstance(result, ImageError) else "ok" for result in results if result is not None
    )


def segmented_table(images: pa.Table, results: Sequence[SegmentedImage | ImageError | None]) -> pa.Table:
    """Build a schema.SEGMENTED table from a schema.FETCHED table without `data` and one result per image.

    Errors of earlier stages are kept. A result may be None only for images with such an error and for images that were
    removed from the input.
    """
    codes = images.column("error_code").to_pylist()
    messages = images.column("error_message").to_pylist()
    reasons = images.column("reason").to_pylist()
    done: list[SegmentedImage | None] = []
    for index, result in enumerate(results):
        assert (result is None) == (codes[index] is not None or reasons[index] == "removed"), "a row has one outcome"
        if isinstance(result, ImageError):
            codes[index], messages[index] = result.code.value, result.message
        done.append(result if isinstance(result, SegmentedImage) else None)
    columns: dict[str, Any] = {
        "error_code": codes,
        "error_message": messages,
        "height": [r and r.height for r in done],
        "width": [r and r.width for r in done],
        "masks": [r and [_mask_row(mask) for mask in _distinct_masks(r)] for r in done],
        "segments": [r and _segment_rows(r) for r in done],
        "attributes": [
            _with_georeference(said, r) for said, r in zip(images.column("attributes").to_pylist(), done, strict=True)
        ],
        "quality": [r and r.quality and r.quality._asdict() for r in done],
        "kept": [None if r is None or r.kept is None else list(map(vars, r.kept)) for r in done],
    }
    planned = {name: images.column(name) for name in images.column_names if name not in columns}
    return pa.table({**planned, **columns}, schema=SEGMENTED)


def _with_georeference(attributes: str | None, image: SegmentedImage | None) -> str | None:
    """The attributes of an image, with the key `geotiff` if the image says where on Earth it lies."""
    if image is None or image.georeference is None:
        return attributes
    return json.dumps({**json.loads(attributes or "{}"), "geotiff": image.georeference})


def _distinct_masks(image: SegmentedImage) -> list[Rle]:
    return list(dict.fromkeys(segment.mask for segment in image.segments))


def _mask_row(mask: Rle) -> dict[str, Any]:
    return {"counts": mask.counts.decode("ascii"), "area": mask.area, "bbox": mask.bbox_xywh}


def _segment_rows(image: SegmentedImage) -> list[dict[str, Any]]:
    places = {mask: place for place, mask in enumerate(_distinct_masks(image))}
    return [
        {
            "segment_id": s.segment_id,
            "class_id": s.class_id,
            "score": s.score,
            "mask": places[s.mask],
            "embedding": s.embedding,
        }
        for s in image.segments
    ]
