"""--keep-logits: what the model says of an image, kept so that jobs/recut.py can reduce it again without the model.

Kept are the class logits as they are, and the masks with fewer bits (m2f_core.inference.kept_masks), of the queries
whose best class, "no object" left out, has at least a given probability, the *floor*, and the best query of each image.
A panoptic or instance result whose score threshold is not below the floor needs no other query.

Legend: B images of a batch; Q queries of the model; C classes; K kept queries of an image; N of all images of a batch;
h, w mask logits. Suffix 1 is "plus the no-object class".
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from m2f_core.images.geometry import ImageGeometry
from m2f_core.inference.decoder_outputs import places_of, read_table
from m2f_core.inference.kept_masks import dequantise, pack_codes, quantise, unpack_codes
from m2f_core.masks.on_device import Arrays, Fetch, Parcel, fetch_at_once

_CODEC = "zstd"
_MOST_CODES = 2**30  # of an input of the network, 2 bytes each
_MOST_SIDE = 2**15  # of masks and images in pixels; a row beyond is damaged


@dataclass(frozen=True, eq=False)
class KeptLogits:
    """The kept queries of one input of the network, in host memory."""

    num_queries: int  # of the model
    queries: NDArray[np.int32]  # [K]: their numbers, from 0, rising
    class_logits: NDArray[np.float32]  # [K, C + 1]
    codes: NDArray[np.int16]  # [K, h, w] of the mask logits


@dataclass(frozen=True)
class KeptInput:
    """The kept queries of one input of the network as a row holds them: the fields of schema.KEPT_INPUT."""

    original_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    padded_hw: tuple[int, int]
    num_queries: int
    queries: list[int]
    class_logits: list[float]
    mask_hw: tuple[int, int]
    masks: bytes

    @classmethod
    def of(cls, kept: KeptLogits, geometry: ImageGeometry) -> "KeptInput":
        _, height, width = kept.codes.shape
        return cls(
            geometry.original_hw,
            geometry.resized_hw,
            geometry.padded_hw,
            kept.num_queries,
            kept.queries.tolist(),
            kept.class_logits.ravel().tolist(),
            (height, width),
            pa.compress(pack_codes(kept.codes), codec=_CODEC, asbytes=True),
        )

    @property
    def geometry(self) -> ImageGeometry:
        return ImageGeometry(self.original_hw, self.resized_hw, self.padded_hw)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "KeptInput":
        """ValueError if these are no sizes that an image, and no numbers that a model can have."""
        sizes = {name: tuple(row[name]) for name in ("original_hw", "resized_hw", "padded_hw", "mask_hw")}
        for name, size in sizes.items():
            if len(size) != 2 or not all(side and 1 <= side <= 2**31 - 1 for side in size):
                raise ValueError(f"{name} is {size}")
        if any(side > _MOST_SIDE for side in (*sizes["padded_hw"], *sizes["mask_hw"])):
            raise ValueError(f"padded_hw is {sizes['padded_hw']} and mask_hw {sizes['mask_hw']}")
        queries, num_queries = row["queries"], row["num_queries"]
        if not 0 <= len(queries) <= num_queries or sorted(set(queries)) != queries:
            raise ValueError(f"it has {len(queries)} queries of {num_queries}, or not in rising order")
        return cls(
            num_queries=num_queries, queries=queries, class_logits=row["class_logits"], masks=row["masks"], **sizes
        )

    def logits(self, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits [K, C + 1] and mask logits [K, h, w]. ValueError if the row does not hold as many."""
        num_kept, (height, width) = len(self.queries), self.mask_hw
        if num_kept * height * width > _MOST_CODES:
            raise ValueError(f"it has {num_kept} masks of {height} x {width}, more than {_MOST_CODES:,} logits")
        if len(self.class_logits) != num_kept * (num_classes + 1):
            raise ValueError(f"it has {len(self.class_logits)} class logits of {num_kept} queries")
        logits_KC1 = torch.tensor(self.class_logits, dtype=torch.float32).reshape(num_kept, num_classes + 1)
        shape_Khw = (num_kept, height, width)
        try:
            data = pa.decompress(
                self.masks, decompressed_size=2 * num_kept * height * width, codec=_CODEC, asbytes=True
            )
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"its masks are damaged: {error}") from None
        return logits_KC1, dequantise(unpack_codes(data, shape_Khw))


def keep_logits(logits_BQC1: torch.Tensor, masks_BQhw: torch.Tensor, floor: float) -> list[KeptLogits]:
    """The kept queries of each image of a batch."""
    parcel = Parcel()
    return start_keeping(logits_BQC1, masks_BQhw, floor, parcel, fetch_at_once)(parcel.send(fetch_at_once)())


def start_keeping(
    logits_BQC1: torch.Tensor, masks_BQhw: torch.Tensor, floor: float, parcel: Parcel, fetch: Fetch
) -> Callable[[Arrays], list[KeptLogits]]:
    """`keep_logits` of a batch on its device: the host waits once for a small table, and for the parcel."""
    num_queries = logits_BQC1.shape[1]
    [best_BQ] = read_table(fetch, [logits_BQC1.softmax(-1)[:, :, :-1].amax(-1)])
    least_B1 = np.minimum(best_BQ.max(1, keepdims=True), np.float32(floor))
    queries = [np.flatnonzero(is_kept_Q).tolist() for is_kept_Q in best_BQ >= least_B1]
    places_N = places_of(queries, num_queries, logits_BQC1.device)
    at_codes = parcel.add(quantise(masks_BQhw.flatten(0, 1).index_select(0, places_N)))
    at_logits = parcel.add(logits_BQC1.flatten(0, 1).index_select(0, places_N))
    borders = np.cumsum([0, *(len(of_image) for of_image in queries)]).tolist()

    def finish(arrays: Arrays) -> list[KeptLogits]:
        codes, logits = arrays[at_codes], arrays[at_logits]
        return [
            KeptLogits(num_queries, np.array(of_image, np.int32), logits[start:stop], codes[start:stop])
            for of_image, (start, stop) in zip(queries, pairwise(borders), strict=True)
        ]

    return finish
