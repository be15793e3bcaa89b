"""A checkpoint -> a folder with its network in another format, compared with PyTorch before the folder appears."""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from m2f_core.checkpoints.checkpoint import Checkpoint
from m2f_core.checkpoints.stored_weights import CheckpointError
from m2f_core.config.labels import Task
from m2f_core.images.image_processor import ImageProcessor
from m2f_core.model.contract import SegmentationModel
from m2f_core.model.for_inference import prepare_for_inference
from m2f_core.whole_files import written_whole
from pipeline.decoding.decode import decode_image
from pipeline.errors import BrokenRunError, ImageError, RunError
from pipeline.export_model.compare import Comparison, Timing, compare, measure
from pipeline.export_model.describe import describe
from pipeline.export_model.extra import check_extra
from pipeline.export_model.formats import Run, Written, read_onnx, read_pt2, write_onnx, write_pt2
from pipeline.export_model.settings import OPSET, ExportModelSettings
from pipeline.inputs.fetch import FetchImages
from pipeline.inputs.listing import first_images
from pipeline.inputs.reads import ListedImage, ReadImage
from pipeline.inputs.sources import input_spec
from pipeline.runs.check import check_model
from pipeline.runs.places import with_whole_places
from pipeline.segment.checkpoint import stage_model
from pipeline.store.filesystem import one_line

logger = logging.getLogger(__name__)

DESCRIPTION_FILE = "model.json"
# Aspect ratios whose images have one padded size only if all images have.
_SHAPES_HW = ((480, 640), (640, 480), (100, 100), (100, 1000))


@dataclass(frozen=True)
class ExportedModel:
    """What was written, and how it compares with PyTorch. `files`: name -> bytes."""

    folder: Path
    files: dict[str, int]
    license: str
    size_hw: tuple[int, int]
    written: Written
    comparison: Comparison
    timing: Timing


def export_model(settings: ExportModelSettings) -> ExportedModel:
    """RunError if the export cannot start; BrokenRunError, with no folder left, if the file differs by more than
    rounding.
    """
    folder = _empty(Path(settings.output).expanduser().absolute())
    if settings.format == "onnx":
        check_extra()
    run = settings.of_run()
    model = check_model(run)
    for warning in model.warnings:
        logger.warning(warning)
    checkpoint = stage_model(settings.model, model.weights_sha256)
    processor = checkpoint.image_processor(run.preprocess, run.parsed_image_size(), run.task)
    size_hw = _one_size(processor)
    images = _images(settings) if settings.check else []
    network = _load(checkpoint)
    network.set_task(settings.task)
    file_name = f"model.{settings.format}"
    with written_whole(folder) as unfinished:
        unfinished.mkdir()
        file = unfinished / file_name
        facts = {"family": checkpoint.family.name, "license": model.license, "sha256": model.weights_sha256}
        logger.info("exporting %s for images of %dx%d", checkpoint.family.name, *size_hw)
        if settings.format == "onnx":
            written = write_onnx(network, size_hw, file, settings.opset or OPSET, facts)
        else:
            written = write_pt2(network, size_hw, file)
        logger.info("comparing %s with PyTorch", file_name)
        in_file = read_onnx(file) if settings.format == "onnx" else read_pt2(file)
        in_pytorch = _as_in_a_run(network, settings.task)
        comparison = compare(in_file, in_pytorch, size_hw, processor, images, model.inference)
        if not comparison.passes:
            raise BrokenRunError(
                f"{file_name} does not compute what PyTorch computes: {comparison.in_words}; {settings.output} was not "
                "written"
            )
        timing = measure(in_file, in_pytorch, size_hw)
        description = describe(
            settings, checkpoint, model, processor, size_hw, comparison.mask_hw, unfinished, written, comparison, timing
        )
        (unfinished / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n")
        files = {path.name: path.stat().st_size for path in sorted(unfinished.iterdir())}
    return ExportedModel(folder, files, model.license, size_hw, written, comparison, timing)


def _empty(folder: Path) -> Path:
    """The folder, if nothing would be lost by putting another one into its place."""
    if folder.is_dir():
        if any(os.scandir(folder)):
            raise RunError(f"--output {folder} is not empty; name another folder")
    elif folder.exists():
        raise RunError(f"--output {folder} is a file; name a folder")
    return folder


def _one_size(processor: ImageProcessor) -> tuple[int, int]:
    """The size of every input of the network. RunError if images have several, or would be padded to it."""
    geometries = [processor.geometry(*shape) for shape in _SHAPES_HW]
    if len({geometry.padded_hw for geometry in geometries}) > 1:
        raise RunError(
            f"images of this model have different sizes ({processor.size}), but an exported model takes one size: give "
            "--image-size HEIGHTxWIDTH, such as 512x512"
        )
    [height, width] = padded_hw = geometries[0].padded_hw
    if processor.size.fixed_hw not in (None, padded_hw):
        raise RunError(
            f"--image-size {processor.size}: the sides must be multiples of 32 here, so that no image needs padding; "
            f"the next size is {height}x{width}"
        )
    return padded_hw


def _images(settings: ExportModelSettings) -> list[Image.Image]:
    """The first images of --check, decoded. RunError if there are none, or one cannot be read or decoded."""
    run = with_whole_places(settings.of_run())
    inputs = input_spec(run)
    listed = [ListedImage(**row) for row in first_images(inputs, settings.limit).to_pylist()]
    if not listed:
        raise RunError(f"--check {' '.join(settings.check)} holds no images")
    images = []
    for one, read in zip(listed, FetchImages(inputs, run.step_timeout).fetch_all(listed), strict=True):
        if not isinstance(read, ReadImage):
            raise RunError(f"--check: {one.image_key} cannot be read: {read!s}")
        try:
            images.append(decode_image(read.data, max_pixels=run.most_image_pixels(), apply_exif=run.exif))
        except ImageError as error:
            raise RunError(f"--check: {one.image_key} cannot be decoded: {error}") from None
    return images


def _load(checkpoint: Checkpoint) -> SegmentationModel:
    try:
        return checkpoint.load()
    except CheckpointError as error:
        raise RunError(one_line(error)) from None


def _as_in_a_run(network: SegmentationModel, task: Task) -> Run:
    """The network as a model actor on a CPU has it, in float32. `network` itself cannot be exported any more."""
    prepared = prepare_for_inference(network, torch.device("cpu"), "fp32", task)

    def run(pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            output = prepared(pixels_B3HW)
        return output.class_queries_logits, output.masks_queries_logits

    return run
