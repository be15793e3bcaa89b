"""A program of torch.export -> a file in one of the formats, and the file read back as a function.

Legend: B batch, H W pixels of the normalised (and padded) image.
"""

import contextlib
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from m2f_core.model.contract import SegmentationModel
from m2f_core.model.exported_program import INPUT, OUTPUTS, export_program

# float32 [B, 3, H, W] -> class logits and mask logits.
Run = Callable[[Tensor], tuple[Tensor, Tensor]]

_NOISY = ("torch.onnx", "onnxscript", "onnx_ir")  # they log what they leave as it is


@dataclass(frozen=True)
class Written:
    """A file that was written. `operators`: how often each one stands in it, most often first. `opset`: ONNX alone."""

    operators: Mapping[str, int]
    opset: int | None = None
    made_with: Mapping[str, str] = field(default_factory=dict)  # name of a library -> version


def write_pt2(model: SegmentationModel, size_hw: tuple[int, int], file: Path) -> Written:
    """Write the network as `torch.export.save` does, without the paths of this machine."""
    program = export_program(model, size_hw)
    graphs = [part for part in program.graph_module.modules() if isinstance(part, torch.fx.GraphModule)]
    nodes = [node for graph in graphs for node in graph.graph.nodes]
    for node in nodes:
        node.meta.pop("stack_trace", None)
    torch.export.save(program, file)
    operators = Counter(str(node.target) for node in nodes if isinstance(node.target, type(torch.ops.aten.add.Tensor)))
    return Written(dict(operators.most_common()), made_with={"torch": torch.__version__})


def write_onnx(
    model: SegmentationModel, size_hw: tuple[int, int], file: Path, opset: int, facts: Mapping[str, str]
) -> Written:
    """Write the network with the operators of ONNX's `opset`, and `facts` as its metadata.

    Weights of more than 2 GB lie in a second file beside `file`, where ONNX wants them.
    """
    import onnx
    import onnx_ir

    with _quiet(), torch.no_grad():
        exported = torch.onnx.export(
            export_program(model, size_hw, by_grid_sample=True),
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: "batch"},),
            opset_version=opset,
            verbose=False,
        )
        assert exported is not None
        for node in onnx_ir.traversal.RecursiveGraphIterator(exported.model.graph):
            node.metadata_props.clear()  # among them the lines of this machine's files that the operator comes from
        exported.model.metadata_props.update(facts)
        exported.save(file)
    written = onnx.load(file, load_external_data=False)
    names = [f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in written.graph.node]
    [found] = [one.version for one in written.opset_import if one.domain == ""]
    made_with = {"torch": torch.__version__, "onnx": onnx.__version__}
    return Written(dict(Counter(names).most_common()), found, made_with)


def read_pt2(file: Path) -> Run:
    module = torch.export.load(file).module()

    def run(pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            classes, masks = module(pixels_B3HW)
        return classes, masks

    return run


def read_onnx(file: Path) -> Run:
    """By onnxruntime on the CPU, with as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def run(pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        classes, masks = session.run(list(OUTPUTS), {INPUT: pixels_B3HW.numpy()})
        return torch.from_numpy(classes), torch.from_numpy(masks)

    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter logs and warns of: operators of torchvision, constants that are not folded."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
