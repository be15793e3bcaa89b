"""Decoder outputs of one image -> its segments, each with its mask as COCO RLE; all tasks have this one result form.

There are two steps, because the first needs the device and the second does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from m2f_core.images.geometry import ImageGeometry
from m2f_core.inference import instance, panoptic, semantic
from m2f_core.inference.decoder_outputs import Started
from m2f_core.inference.merge_tiles import MergeRule, TileSegment, merge_tiles
from m2f_core.inference.settings import InstanceSettings, PanopticSettings, SemanticSettings
from m2f_core.inference.tiling import Tile
from m2f_core.masks import intervals
from m2f_core.masks.on_device import Fetch, Parcel
from m2f_core.masks.rle import Rle, decode, encode_runs, label_runs
from pipeline.errors import InvalidResultError
from pipeline.segment.inference_settings import InferenceSettings
from pipeline.segment.kept_logits import KeptLogits

_SAME_IOU = 0.9  # IoU from which two masks count as the same segment

InferenceResult = panoptic.PanopticResult | instance.InstanceResult | semantic.SemanticResult


@dataclass(frozen=True)
class FoundSegment:
    """A future row of `segments`. Segments of one image may share a mask; in some tasks they may overlap.

    `embedding` has the last state of the segment's query, as half floats, if the run wants embeddings.
    """

    segment_id: int
    class_id: int
    score: float
    mask: Rle
    embedding: bytes | None = None


class Inferred(NamedTuple):
    """The inference result of an image, and what else the run wants of it.

    `embeddings` has one entry for each of `found_segments`.
    """

    result: InferenceResult
    embeddings: tuple[bytes, ...] | None = None
    kept: KeptLogits | None = None


def infer(
    logits_QC1: torch.Tensor, masks_Qhw: torch.Tensor, geometry: ImageGeometry, settings: InferenceSettings
) -> InferenceResult:
    """Call the core's inference for the task of these settings. An image with windows has outputs of each, stacked."""
    if isinstance(settings, PanopticSettings):
        return panoptic.panoptic_segments(logits_QC1, masks_Qhw, geometry, settings)
    if isinstance(settings, InstanceSettings):
        return instance.instance_segments(logits_QC1, masks_Qhw, geometry, settings)
    return semantic.semantic_segments(logits_QC1, masks_Qhw, geometry, settings)


def outputs_of_images(outputs: torch.Tensor, geometries: Sequence[ImageGeometry]) -> list[torch.Tensor]:
    """The outputs of each image, as `infer` takes them, from those of all inputs of the network [N, ...]."""
    of_images = outputs.split([geometry.num_inputs for geometry in geometries])
    return [
        of_image if geometry.windows else of_image[0] for of_image, geometry in zip(of_images, geometries, strict=True)
    ]


def start(
    logits_BQC1: torch.Tensor,
    masks_BQhw: torch.Tensor,
    geometries: Sequence[ImageGeometry],
    settings: InferenceSettings,
    parcel: Parcel,
    fetch: Fetch,
) -> Started[Any]:
    """Start the core's inference for a whole batch on its device; see `m2f_core.inference`."""
    if isinstance(settings, PanopticSettings):
        return panoptic.start_panoptic(logits_BQC1, masks_BQhw, geometries, settings, parcel, fetch)
    if isinstance(settings, InstanceSettings):
        return instance.start_instances(logits_BQC1, masks_BQhw, geometries, settings, parcel, fetch)
    return semantic.start_semantic(logits_BQC1, masks_BQhw, geometries, settings, parcel, fetch)


def found_segments(result: InferenceResult, embeddings: Sequence[bytes] | None = None) -> tuple[FoundSegment, ...]:
    """The segments in the result's order. Instances have no ids, so they are numbered from 1 in this order."""
    found = result.instances if isinstance(result, instance.InstanceResult) else result.infos
    of_each = [None] * len(found) if embeddings is None else embeddings
    if isinstance(result, instance.InstanceResult):
        return tuple(
            FoundSegment(n, i.class_id, i.score, i.mask, embedding)
            for n, (i, embedding) in enumerate(zip(result.instances, of_each, strict=True), 1)
        )
    masks = {rle.label: rle for rle in encode_runs(result.label_map.runs, *result.label_map.size_hw)}
    listed = {info.segment_id for info in result.infos}
    if listed != set(masks):
        raise InvalidResultError(f"the result lists segments {sorted(listed)}, but its map holds {sorted(masks)}")
    return tuple(
        FoundSegment(i.segment_id, i.class_id, i.score, masks[i.segment_id], embedding)
        for i, embedding in zip(result.infos, of_each, strict=True)
    )


def queries_of(result: InferenceResult) -> list[int]:
    """The query of each of `found_segments`. ValueError for semantic segmentation, where a segment has no query."""
    rows = result.instances if isinstance(result, instance.InstanceResult) else result.infos
    queries = [row.query for row in rows if row.query is not None]
    if len(queries) != len(rows):
        raise ValueError("segments of semantic segmentation have no query")
    return queries


def count_alike(
    found_here: Sequence[FoundSegment], found_there: Sequence[FoundSegment], height: int, width: int
) -> int:
    """The number of pairs with the same class and nearly the same mask; each segment is in at most one pair."""
    left = [(segment.class_id, decode(segment.mask.counts, height, width)) for segment in found_here]
    for segment in found_there:
        mask_HW = decode(segment.mask.counts, height, width)
        for place, (class_id, other_HW) in enumerate(left):
            if class_id == segment.class_id and _is_nearly(mask_HW, other_HW):
                del left[place]
                break
    return len(found_here) - len(left)


def _is_nearly(mask_HW: NDArray[np.bool_], other_HW: NDArray[np.bool_]) -> bool:
    both, either = np.count_nonzero(mask_HW & other_HW), np.count_nonzero(mask_HW | other_HW)
    return bool(both >= _SAME_IOU * either)


def merged_segments(
    tiles: tuple[Tile, ...],
    found: Sequence[Sequence[FoundSegment]],
    image_hw: tuple[int, int],
    settings: InferenceSettings,
) -> tuple[FoundSegment, ...]:
    """The segments of an image from those of its tiles; ids and order as for an image that was not cut."""
    pieces = [[TileSegment(s.class_id, s.score, s.mask.counts) for s in segments] for segments in found]
    merged = merge_tiles(tiles, pieces, image_hw, _merge_rule(settings))
    if isinstance(settings, SemanticSettings):
        merged.sort(key=lambda segment: segment.class_id)
        return tuple(FoundSegment(s.class_id + 1, s.class_id, s.score, s.mask) for s in merged)  # without queries
    if isinstance(settings, InstanceSettings):
        merged.sort(key=lambda segment: -segment.score)
    return tuple(
        FoundSegment(n, s.class_id, s.score, s.mask, found[s.best[0]][s.best[1]].embedding)
        for n, s in enumerate(merged, 1)
    )


def _merge_rule(settings: InferenceSettings) -> MergeRule:
    if isinstance(settings, PanopticSettings):
        return MergeRule(settings.fuse_class_ids, may_overlap=False)
    if isinstance(settings, InstanceSettings):
        return MergeRule(frozenset(), may_overlap=not settings.exclusive)
    return MergeRule(fused_class_ids=None, may_overlap=False)


def warm_up(settings: InferenceSettings) -> None:
    """Compile now what the functions above would compile on their first call, so that no image waits for it."""
    intervals.warm_up()
    if isinstance(settings, PanopticSettings):
        panoptic.warm_up(settings)
    elif isinstance(settings, InstanceSettings):
        instance.warm_up(settings)
    else:
        semantic.warm_up(settings)
    encode_runs(label_runs(np.eye(2, dtype=np.uint8)), 2, 2)
