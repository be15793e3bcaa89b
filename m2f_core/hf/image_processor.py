"""The documented image processor: images in any form -> the network's input; the network's output -> segments.

It computes as transformers' `Mask2FormerImageProcessorPil` does, on whatever image it is given. For photographs at the
speed of the model and with the paper's numbers, see `m2f_core.images.image_processor` and `m2f_core.inference`.

Legend: C channels; H W pixels of an image; N targets of one image.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m2f_core.checkpoints.checkpoint import PREPROCESSOR_FILE
from m2f_core.hf.config import check_no_method, locate
from m2f_core.hf.outputs import BatchFeature, as_tensors
from m2f_core.hf.pixels import for_channels, pad, resized, to_channels_first, to_list, to_map
from m2f_core.hf.post_process import PostProcessing
from m2f_core.images.hf_values import hf_values
from m2f_core.images.image_processor import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    NETWORK_STRIDE,
    ImageProcessor,
    read_pad_size,
)
from m2f_core.images.image_size import PAPER_EDGES
from m2f_core.training.targets import map_targets, pad_masks
from m2f_core.whole_files import written_whole

DEFAULTS: dict[str, Any] = {
    "do_resize": True,
    "size": dict(zip(("shortest_edge", "longest_edge"), PAPER_EDGES, strict=True)),
    "size_divisor": NETWORK_STRIDE,
    "resample": int(Image.Resampling.BILINEAR),
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(IMAGENET_MEAN),
    "image_std": list(IMAGENET_STD),
    "ignore_index": None,
    "do_reduce_labels": False,
    "num_labels": None,
    "pad_size": None,
    "do_convert_rgb": None,
}
# Parameters of calls that are not stored.
_OF_CALLS = {"return_tensors": None, "input_data_format": None}
# Older names in files and scripts, and fields that transformers writes for its own use.
_RENAMED = {"reduce_labels": "do_reduce_labels"}
_NOT_SETTINGS = ("image_processor_type", "feature_extractor_type", "processor_class", "_max_size")


class Mask2FormerImageProcessor(PostProcessing):
    """The documented parameters as attributes; each may be replaced in one call.

    do_resize, size, size_divisor, resample: the size as {"shortest_edge", "longest_edge"}, {"height", "width"},
    {"max_height", "max_width"} or {"longest_edge"}; sides are rounded up to the divisor; the filter is Pillow's number.
    do_rescale, rescale_factor, do_normalize, image_mean, image_std: pixel values, one number for all channels or one
    for each. pad_size: pad images to {"height", "width"} instead of to the largest image of the call. ignore_index,
    do_reduce_labels: values of segmentation maps, see `m2f_core.training.targets.map_targets`. do_convert_rgb: first
    convert to RGB, transparency onto white. num_labels: no effect, as in transformers.
    """

    model_input_names = ("pixel_values", "pixel_mask")

    def __init__(self, /, **settings: Any):
        """ValueError names a wrong parameter. Unknown ones are kept and written, but have no effect."""
        settings = {_RENAMED.get(name, name): value for name, value in settings.items() if name not in _NOT_SETTINGS}
        check_no_method(type(self), settings)
        given = {name: value for name, value in settings.items() if value is not None}
        if "size" not in given and "max_size" in given:
            given["size"] = {**DEFAULTS["size"], "longest_edge": given["max_size"]}
        self.__dict__.update({**copy.deepcopy(DEFAULTS), **given})
        self._sizes(self.__dict__)

    # ------------------------------------------------------------------------------------------------------ files

    @classmethod
    def from_dict(cls, image_processor_dict: Mapping[str, Any], **others: Any) -> Self:
        """The content of a `preprocessor_config.json`; `others` replace its keys."""
        return cls(**{**image_processor_dict, **others})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **others: Any) -> Self:
        """The processor of a checkpoint: a folder, a `.pkl` file of the original code (defaults) or a hub id."""
        for name in ("use_fast", "backend"):  # transformers' choice between its two implementations
            others.pop(name, None)
        return cls.from_dict(locate(pretrained_model_name_or_path, others).preprocessor_config or {}, **others)

    def to_dict(self) -> dict[str, Any]:
        """The content of a `preprocessor_config.json`."""
        own = {name: value for name, value in self.__dict__.items() if value is not None}
        return {"image_processor_type": "Mask2FormerImageProcessor", **own}

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write `preprocessor_config.json`."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        with written_whole(folder / PREPROCESSOR_FILE) as file:
            file.write_text(self.to_json_string(), encoding="utf-8")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mask2FormerImageProcessor) and other.to_dict() == self.to_dict()

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    # ----------------------------------------------------------------------------------------------------- images

    def __call__(
        self,
        images: Any,
        segmentation_maps: Any = None,
        instance_id_to_semantic_id: Mapping[int, int] | Sequence[Mapping[int, int]] | None = None,
        **parameters: Any,
    ) -> BatchFeature:
        """See `preprocess`."""
        return self.preprocess(images, segmentation_maps, instance_id_to_semantic_id, **parameters)

    def preprocess(
        self,
        images: Any,
        segmentation_maps: Any = None,
        instance_id_to_semantic_id: Mapping[int, int] | Sequence[Mapping[int, int]] | None = None,
        **parameters: Any,
    ) -> BatchFeature:
        """Resize, rescale, normalise and pad images, and turn their segmentation maps into masks and classes.

        images: one or a list; Pillow images, numpy arrays or tensors, [C, H, W] or [H, W, C] (where both are possible,
        [C, H, W]; else `input_data_format`, "channels_first" or "channels_last"), or [H, W]. segmentation_maps: one or
        a list, [H, W] or [1, H, W] of whole numbers. Every parameter of the class may be given for one call;
        `return_tensors` is "pt", "np" or None (a list of arrays).

        Returns `pixel_values` [B, C, H, W], `pixel_mask` [B, H, W] (int64, 1 inside the image) and, with maps, the
        lists `mask_labels` (float32 [N, H, W]) and `class_labels` (int64 [N]). Padding of the masks belongs to no
        target; transformers pads with `ignore_index`. ValueError names what is wrong.
        """
        chosen = self._chosen(parameters)
        sizes = self._sizes(chosen)
        pixels = [
            to_channels_first(image, chosen["do_convert_rgb"], chosen["input_data_format"])
            for image in to_list(images, 3, "images")
        ]
        shrunk = [self._resized(image_CHW, sizes, sizes.resample) for image_CHW in pixels]
        maps = None
        if segmentation_maps is not None:
            maps = _to_maps(segmentation_maps)
            maps = [self._resized(map_HW[None], sizes, int(Image.Resampling.NEAREST))[0] for map_HW in maps]
        normalized = [
            hf_values(
                image_CHW,
                chosen["rescale_factor"] if chosen["do_rescale"] else None,
                *(_per_channel(chosen, name, len(image_CHW)) for name in ("image_mean", "image_std")),
            )
            for image_CHW in shrunk
        ]
        return _encode(normalized, maps, instance_id_to_semantic_id, chosen, read_pad_size(chosen))

    def encode_inputs(
        self,
        pixel_values_list: Any,
        segmentation_maps: Any = None,
        instance_id_to_semantic_id: Mapping[int, int] | Sequence[Mapping[int, int]] | None = None,
        ignore_index: int | None = None,
        do_reduce_labels: bool | None = None,
        return_tensors: str | None = None,
        input_data_format: str | None = None,
    ) -> BatchFeature:
        """Pad images that are already resized and normalised, and turn their segmentation maps into masks and classes.

        As in version 4 of transformers; the parameters and the result are those of `preprocess`.
        """
        given = {"ignore_index": ignore_index, "do_reduce_labels": do_reduce_labels, "return_tensors": return_tensors}
        chosen = self._chosen({name: value for name, value in given.items() if value is not None})
        pixels = [
            to_channels_first(image, None, input_data_format)
            for image in to_list(pixel_values_list, 3, "pixel_values_list")
        ]
        maps = None
        if segmentation_maps is not None:
            maps = _to_maps(segmentation_maps)
        return _encode(pixels, maps, instance_id_to_semantic_id, chosen, None)

    def _chosen(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """This processor's settings with the parameters of a call. TypeError names an unknown parameter."""
        known = {**DEFAULTS, **_OF_CALLS}
        renamed = {_RENAMED.get(name, name): value for name, value in parameters.items()}
        if unknown := sorted(renamed.keys() - known.keys()):
            raise TypeError(f"unknown parameter {unknown[0]!r}; the parameters are {', '.join(sorted(known))}")
        return {**_OF_CALLS, **{name: self.__dict__[name] for name in DEFAULTS}, **renamed}

    def _sizes(self, chosen: Mapping[str, Any]) -> ImageProcessor:
        """What computes the size of an image."""
        read_pad_size(chosen)
        names = ("do_resize", "size", "max_size", "size_divisor", "resample")
        return ImageProcessor.from_preprocessor_config({name: chosen.get(name) for name in names}, "hf")

    def _resized(self, image_CHW: NDArray[Any], sizes: ImageProcessor, resample: int) -> NDArray[Any]:
        size_hw = sizes.geometry(*image_CHW.shape[1:]).resized_hw
        return image_CHW if sizes.size.largest_hw is None else resized(image_CHW, size_hw, resample)


def _to_maps(segmentation_maps: Any) -> list[NDArray[np.integer]]:
    maps = []
    for index, segmentation_map in enumerate(to_list(segmentation_maps, 2, "segmentation_maps")):
        try:
            maps.append(to_map(segmentation_map))
        except ValueError as error:
            raise ValueError(f"segmentation map {index}: {error}") from None
    return maps


def _per_channel(chosen: Mapping[str, Any], name: str, num_channels: int) -> list[float] | None:
    return for_channels(chosen[name], name, num_channels) if chosen["do_normalize"] else None


def _encode(
    pixels: list[NDArray[Any]],
    maps: list[NDArray[np.integer]] | None,
    instance_id_to_semantic_id: Mapping[int, int] | Sequence[Mapping[int, int]] | None,
    chosen: Mapping[str, Any],
    pad_hw: tuple[int, int] | None,
) -> BatchFeature:
    """Pad images and make targets of maps; see `Mask2FormerImageProcessor.preprocess`."""
    sizes_hw = [(image_CHW.shape[1], image_CHW.shape[2]) for image_CHW in pixels]
    padded_hw = pad_hw or (max(height for height, _ in sizes_hw), max(width for _, width in sizes_hw))
    mask_BHW = [pad(np.ones((1, *size_hw), np.int64), padded_hw)[0] for size_hw in sizes_hw]
    kind = chosen["return_tensors"]
    batch = BatchFeature(
        pixel_values=as_tensors([pad(image_CHW, padded_hw) for image_CHW in pixels], kind, "pixel_values"),
        pixel_mask=as_tensors(mask_BHW, kind, "pixel_mask"),
    )
    if maps is None:
        return batch
    mappings = instance_id_to_semantic_id
    if mappings is None or isinstance(mappings, Mapping):
        mappings = [mappings] * len(pixels)  # type: ignore[list-item]
    if not len(pixels) == len(maps) == len(mappings):
        counts = f"{len(pixels)} images, {len(maps)} segmentation maps and {len(mappings)} mappings"
        raise ValueError(f"every image needs a segmentation map, and a mapping if mappings are a list; got {counts}")
    batch |= {"mask_labels": [], "class_labels": []}
    for index, (map_HW, mapping, size_hw) in enumerate(zip(maps, mappings, sizes_hw, strict=True)):
        if map_HW.shape != size_hw:
            raise ValueError(
                f"segmentation map {index} has {map_HW.shape} pixels (height, width) after resizing, but its image "
                f"{size_hw}"
            )
        try:
            targets = map_targets(map_HW, mapping, chosen["ignore_index"], chosen["do_reduce_labels"])
        except ValueError as error:
            raise ValueError(f"segmentation map {index}: {error}") from None
        masks_NHW = pad_masks(targets.mask_labels, padded_hw).float()
        batch["mask_labels"].append(masks_NHW if kind == "pt" else masks_NHW.numpy())
        batch["class_labels"].append(targets.class_labels if kind == "pt" else targets.class_labels.numpy())
    return batch
