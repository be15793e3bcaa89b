"""The forward pass of the job's network and nothing else, over prepared inputs: `FOLDER MODEL THREADS PRECISION`.

Prints the seconds that one pass over the images takes, after one image that does not count, as one JSON document.
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from PIL import Image

from m2f_core.checkpoints.checkpoint import Checkpoint
from m2f_core.inference.settings import PanopticSettings
from pipeline.segment.device_model import Network


def main(images: str, model: str, threads: str, precision: str) -> None:
    torch.set_num_threads(int(threads))
    network = Network(
        Checkpoint(model),
        device="cpu",
        precision=precision,
        preprocess="reference",
        image_size=None,
        inference=PanopticSettings.defaults("reference", frozenset()),
    )
    inputs = []
    for path in sorted(Path(images).iterdir()):
        image = Image.open(path).convert("RGB")
        prepared = network.prepare(image, network.processor.geometry(image.height, image.width), path.name)
        inputs.append(network.processor.to_batch([prepared.pixels_hw3], prepared.geometry.padded_hw, network.device))
    with torch.inference_mode():
        network.forward(inputs[0])
        started = time.perf_counter()
        for pixels_B3HW in inputs:
            network.forward(pixels_B3HW)
        seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
