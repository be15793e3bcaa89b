"""A finished run that has kept its logits, made without Ray, and the segments that other settings give."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from m2f_core.config.labels import LabelMap
from m2f_core.inference.tiling import Tiling
from pipeline.commit.encode import EncodeSpec, encode_shard
from pipeline.config import Settings
from pipeline.errors import ImageError
from pipeline.plan.shards import PLANNED_IMAGES
from pipeline.runs.check import Model, check_model
from pipeline.schema import SEGMENTED
from pipeline.segment.actor import segmented_table
from pipeline.segment.segmenter import Segmenter
from pipeline.segment.spec import SegmentedImage, SegmentSpec
from tests.support.run_books import FINGERPRINT, Shard, created_at, write_run

FLOOR = 0.05


@dataclass(frozen=True)
class KeptRun:
    """Images and a model. `tile` cuts large images."""

    images: Mapping[str, bytes]  # by key
    model: str = "synthetic-scenes"
    tile: str | None = None

    def settings(self, **given: Any) -> Settings:
        return Settings(input=("in",), output="out", model=self.model, tile=self.tile, **given)

    def checked(self, **given: Any) -> Model:
        return check_model(self.settings(**given))

    def results(self, **given: Any) -> list[SegmentedImage | ImageError]:
        """What a run with these settings finds in the images."""
        settings, model = self.settings(**given), self.checked(**given)
        spec = SegmentSpec(
            model=self.model,
            weights_sha256=model.weights_sha256,
            preprocess="reference",
            image_size=None,
            exif=True,
            max_image_pixels=64_000_000,
            inference=model.inference,
            precision="fp32",
            device="cpu",
            threads=1,
            batch_size=4,
            max_batch_pixels=2**30,
            keep_logits=settings.keep_logits,
            tiling=None if self.tile is None else Tiling.parse(self.tile),
        )
        return list(_segment(tuple(self.images.items()), spec))

    def write(
        self,
        uri: str | Path,
        run_id: str = "night",
        *,
        created: datetime | None = None,
        in_a_shard: int = 4,
        fingerprint: str = FINGERPRINT,
        failed: Mapping[str, tuple[str, str]] | None = None,
        **given: Any,
    ) -> None:
        """Write the run with these settings. `failed`: keys, codes and messages of images that have failed."""
        settings, model = self.settings(**given), self.checked(**given)
        created = created or created_at()
        spec = EncodeSpec(run_id, created, fingerprint, 1, settings.task, model.labels.categories)
        results = dict(zip(self.images, self.results(**given), strict=True))
        errors = {key: ImageError(*error) for key, error in (failed or {}).items()}
        everything = {**results, **errors}
        keys = sorted(everything)
        shards = [
            _shard(number, keys[start : start + in_a_shard], everything, spec)
            for number, start in enumerate(range(0, len(keys), in_a_shard))
        ]
        record = {
            "fingerprint": fingerprint,
            "settings": settings.to_dict(),
            "categories": model.labels.to_list(),
            "weights_sha256": model.weights_sha256,
            "model_type": model.model_type,
            "results": {**settings.results_dict(), "image_size": str(model.image_size)},
        }
        write_run(str(uri), run_id, shards, task=settings.task, created=created, record=record)


@functools.cache  # several tests write the same run
def _segment(images: tuple[tuple[str, bytes], ...], spec: SegmentSpec) -> tuple[SegmentedImage | ImageError, ...]:
    found = Segmenter(spec).segment([data for _, data in images], [key for key, _ in images])
    assert all(one is not None for one in found)
    return tuple(found)


def _shard(
    number: int, keys: Sequence[str], results: Mapping[str, SegmentedImage | ImageError], spec: EncodeSpec
) -> Shard:
    planned = pa.Table.from_pylist(
        [{"image_key": key, "etag": f"etag of {key}", "size_bytes": 100, "reason": "new"} for key in keys],
        schema=PLANNED_IMAGES,
    )
    nulls = pa.nulls(len(keys), pa.string())
    rows = planned.select([name for name in SEGMENTED.names if name in planned.column_names])
    rows = rows.append_column("error_code", nulls).append_column("error_message", nulls)
    segmented = segmented_table(rows, [results[key] for key in keys])
    return Shard(planned, encode_shard(number, segmented, spec))


def renamed(labels: LabelMap) -> list[dict[str, Any]]:
    """The categories with other ids and names, and the first of them as stuff."""
    changed = [{**one, "id": one["id"] + 1000, "name": f"new {one['name']}"} for one in labels.to_list()]
    return [{**changed[0], "isthing": 0}, *changed[1:]]
