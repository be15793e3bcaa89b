"""The reduction of a batch as on a device, on tensors in host memory: the same operations, with values."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from m2f_core.images.geometry import ImageGeometry
from m2f_core.inference.instance import start_instances
from m2f_core.inference.panoptic import start_panoptic
from m2f_core.inference.semantic import start_semantic
from m2f_core.inference.settings import InstanceSettings, PanopticSettings, SemanticSettings
from m2f_core.masks.on_device import Parcel, fetch_at_once

STARTS: dict[type, Callable[..., Any]] = {
    PanopticSettings: start_panoptic,
    InstanceSettings: start_instances,
    SemanticSettings: start_semantic,
}
Scene = tuple[Tensor, Tensor]


def reduce_as_on_device(
    scenes: Sequence[Scene], geometries: Sequence[ImageGeometry], settings: Any, fetched: list[int] | None = None
) -> list[Any]:
    """The result of each image; `fetched` gets the number of bytes of each copy to the host."""

    def fetch(sent: Tensor) -> Callable[[], Any]:
        if fetched is not None:
            fetched.append(sent.numel())
        return fetch_at_once(sent)

    parcel = Parcel()
    logits, masks = (torch.stack(list(parts)) for parts in zip(*scenes, strict=True))
    started = STARTS[type(settings)](logits, masks, geometries, settings, parcel, fetch)
    return started.finish(parcel.send(fetch)())
