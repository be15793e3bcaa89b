"""An exported network in onnxruntime and OpenVINO against ours, on a CPU: a forward pass, the same weights and pixels.

    pip install openvino  # not among the libraries of the tests; left out if it is missing
    python tests/benchmarks/bench_runtimes.py --model swin-t [--size 512x512] [--threads 1] [--rounds 3] [--opset 20]

Ours is the model as jobs/segment_bucket.py prepares it for a CPU, in float32; the others read the file of
jobs/export_model.py --format onnx, in float32, too. Weights are random, but for synthetic-scenes. Sides take turns; the
least processor time of each counts, which other programs on the machine hardly change. Outputs are compared first. A
ratio above 1 says that ours is faster. The last line is one JSON document.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from m2f_core.config.eomt import EomtConfig
from m2f_core.config.labels import LabelMap
from m2f_core.config.mask2former import Mask2FormerConfig
from m2f_core.config.maskformer import MaskFormerConfig
from m2f_core.model.contract import SegmentationModel
from m2f_core.model.exported_program import INPUT
from m2f_core.model.for_inference import prepare_for_inference
from pipeline.export_model.formats import read_onnx, write_onnx
from pipeline.segment.checkpoint import stage_model
from tests.benchmarks.bench_families import best
from tests.support.seeded_eomt import seeded_eomt
from tests.support.seeded_model import seeded_model

ID2LABEL = {category.class_id: category.name for category in LabelMap.of_dataset("coco-panoptic").categories}
VIT_S = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "num_blocks": 3, "num_queries": 200}


def _eomt_s() -> SegmentationModel:
    return seeded_eomt(EomtConfig(**VIT_S, image_size=640, id2label=ID2LABEL), 0)


MODELS: dict[str, Callable[[], SegmentationModel]] = {
    "swin-t": lambda: seeded_model(Mask2FormerConfig.swin_tiny(id2label=ID2LABEL), 0),
    "maskformer-swin-t": lambda: seeded_model(MaskFormerConfig.swin_tiny(id2label=ID2LABEL), 0),
    "eomt-s": _eomt_s,
    "synthetic-scenes": lambda: stage_model("synthetic-scenes").load(),
}
SIZES = {"eomt-s": "640x640", "synthetic-scenes": "128x192"}
Logits = tuple[torch.Tensor, torch.Tensor]
Side = Callable[[torch.Tensor], Logits]


def read_openvino(file: Path) -> Side:
    import openvino

    options = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(file, "CPU", options)

    def run(pixels_B3HW: torch.Tensor) -> Logits:
        classes, masks = compiled({INPUT: pixels_B3HW.numpy()}).values()
        return torch.from_numpy(classes), torch.from_numpy(masks)

    return run


def ours_of(model: SegmentationModel) -> Side:
    prepared = prepare_for_inference(model, torch.device("cpu"), "fp32")

    def run(pixels_B3HW: torch.Tensor) -> Logits:
        with torch.inference_mode():
            output = prepared(pixels_B3HW)
        return output.class_queries_logits, output.masks_queries_logits

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), required=True)
    parser.add_argument("--size", help="HEIGHTxWIDTH; default: one that suits the model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--opset", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = MODELS[given.model]()
    given.size = given.size or SIZES.get(given.model, "512x512")
    height, width = map(int, given.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        written = write_onnx(model, (height, width), file, given.opset, {})
        size_mb = file.stat().st_size / 1e6
        sides: dict[str, Side] = {"ours": ours_of(model), "onnxruntime": read_onnx(file)}
        if find_spec("openvino") is not None:
            sides["openvino"] = read_openvino(file)
        else:
            print("openvino is not installed, so it is left out")
        pixels = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
        expected = sides["ours"](pixels)
        compared = {}
        for name, side in list(sides.items())[1:]:
            _, masks = side(pixels)
            flipped = ((masks >= 0) != (expected[1] >= 0)).float().mean().item()
            compared[name] = {"mask_logits": (masks - expected[1]).abs().max().item(), "flipped": flipped}
        load = os.getloadavg()[0]
        seconds = best({name: lambda side=side: side(pixels) for name, side in sides.items()}, given.rounds)
    ratios = {name: seconds[name] / seconds["ours"] for name in compared}
    what = f"{given.model}, {given.size}, {given.threads} thread(s), opset {written.opset}, {size_mb:.1f} MB"
    print(f"{what}, load {load:.1f}")
    for name, apart in compared.items():
        print(
            f"{name} {version(name)}: {seconds[name]:.2f} s, ours {seconds['ours']:.2f} s, ratio {ratios[name]:.2f}; "
            f"mask logits differ by {apart['mask_logits']:.1e}, {apart['flipped']:.1e} of the mask bits"
        )
    versions = {name: version(name) for name in ("torch", *compared)}
    document = {**vars(given), "seconds": seconds, "ratios": ratios, "compared": compared, "load": load}
    print(json.dumps({**document, "versions": versions, "processor": platform.processor() or platform.machine()}))


if __name__ == "__main__":
    main()
