"""model.json: what a program that reads an exported network has to know."""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from m2f_core import __version__
from m2f_core.checkpoints.checkpoint import Checkpoint
from m2f_core.images.image_processor import ImageProcessor
from m2f_core.model.exported_program import INPUT, OUTPUTS
from pipeline.export_model.compare import Comparison, Timing
from pipeline.export_model.formats import Written
from pipeline.export_model.settings import ExportModelSettings
from pipeline.runs.check import Model

# A photograph, to say how images become inputs.
_EXAMPLE_HW = (480, 640)
_BLOCK_BYTES = 1 << 20


def describe(
    settings: ExportModelSettings,
    checkpoint: Checkpoint,
    model: Model,
    processor: ImageProcessor,
    size_hw: tuple[int, int],
    mask_hw: tuple[int, int],
    folder: Path,
    written: Written,
    comparison: Comparison,
    timing: Timing,
) -> dict[str, Any]:
    """The content of model.json for the files in `folder`."""
    num_queries, num_classes = checkpoint.config.num_queries, len(model.labels.categories)
    geometry = processor.geometry(*_EXAMPLE_HW)
    classes, masks = OUTPUTS
    return {
        "format": settings.format,
        "files": {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in _files(folder)},
        "opset": written.opset,
        "operators": dict(written.operators),
        "made_with": {"m2f-pipeline": __version__, **written.made_with},
        # The name alone: the folder is one of this machine, and a URI may lead to a private bucket.
        "model": settings.model.rstrip("/").rpartition("/")[2],
        "family": checkpoint.family.name,
        "license": model.license,
        "checkpoint_sha256": model.weights_sha256,
        "task": settings.task if checkpoint.family.reads_task else None,
        "input": {
            "name": INPUT,
            "type": "float32",
            "shape": ["batch", 3, *size_hw],
            "channels": "red, green, blue",
            "pixels": "(pixel * rescale_factor - image_mean) / image_std, of pixels from 0 to 255",
            "preprocessor_config": processor.to_preprocessor_config(),
            "example": {
                "image_hw": list(_EXAMPLE_HW),
                "resized_hw": list(geometry.resized_hw),
                "padded_hw": list(geometry.padded_hw),
                "padding": processor.padding_values().tolist(),
                "windows": [list(start) for start in geometry.windows],
            },
        },
        "outputs": [
            {
                "name": classes,
                "type": "float32",
                "shape": ["batch", num_queries, num_classes + 1],
                "meaning": "logits of the classes of each query, the last one for no object",
            },
            {
                "name": masks,
                "type": "float32",
                "shape": ["batch", num_queries, *mask_hw],
                "meaning": "logits of the mask of each query over the whole input; a cell is on from 0",
            },
        ],
        "categories": model.labels.to_list(),
        "compared_with_pytorch": asdict(comparison),
        "seconds_of_one_input": asdict(timing),
    }


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
