"""A GPU that is not there: the model's step is a sleep, everything around it is the job's own code and real.

    python tests/benchmarks/simulated_device.py --input URI --output URI --devices N --cpus C --seconds S

Runs the job on a Ray that says it has N GPUs and C CPUs, with actors whose network sleeps S seconds for 32 images and
then gives what the reduction found once in a scene of 20 segments. As beside a real GPU, images are handed to the
device as decoded, and resizing, the model and the reduction cost no CPU; reading, decoding, encoding and writing do.
`--metrics off` leaves out what the stages export. Prints one JSON document.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

# Ray may need long to start on a machine at work.
os.environ.update(RAY_raylet_start_wait_time_s="300", RAY_gcs_server_port_wait_time_s="300")
os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", PYTHONPATH=str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import pyarrow as pa
import ray
import torch
from PIL import Image

from m2f_core.images.geometry import ImageGeometry
from m2f_core.images.image_processor import ImageProcessor
from m2f_core.inference.settings import PanopticSettings
from pipeline import run
from pipeline.commit.journal import Journal
from pipeline.commit.receipt import Receipt
from pipeline.commit.write import EncodeAndWrite
from pipeline.config import Settings
from pipeline.guard.watchdog import watch
from pipeline.inputs.fetch import FetchImages
from pipeline.layout import Output
from pipeline.report.progress import Progress
from pipeline.segment import segmenter
from pipeline.segment.actor import SegmentImages
from pipeline.segment.device_model import PreparedImage
from pipeline.segment.postprocess import Inferred, infer
from pipeline.segment.spec import SegmentSpec
from pipeline.segment_bucket import segment_bucket
from pipeline.telemetry.costs import Costs
from pipeline.telemetry.instruments import Instrument
from tests.support.decoder_scenes import STUFF_CLASS_IDS, decoder_outputs

BATCH = 32
ORIGINAL_HW = (480, 640)
NUM_CLASSES = 8  # of the checkpoint that comes with the package, at least
SECONDS, SIZES, METRICS = "SIMULATED_SECONDS", "SIMULATED_SIZES", "SIMULATED_METRICS"


class SimulatedNetwork:
    """`pipeline.segment.device_model.Network` with a device that sleeps."""

    def __init__(self, spec: SegmentSpec):
        self.processor = ImageProcessor("reference")
        self.lock = threading.Lock()
        self.seconds_per_image = float(os.environ[SECONDS]) / BATCH
        geometry = self.processor.geometry(*ORIGINAL_HW)
        mask_hw = (geometry.padded_hw[0] // 4, geometry.padded_hw[1] // 4)
        settings = PanopticSettings.defaults("reference", STUFF_CLASS_IDS)
        found = infer(*decoder_outputs(0, mask_hw, 20), geometry, settings)
        # They are COCO's, more than the default checkpoint has.
        infos = tuple(replace(info, class_id=info.class_id % NUM_CLASSES) for info in found.infos)
        self.found = replace(found, infos=infos)

    def prepare(self, image: Image.Image, geometry: ImageGeometry, name: str) -> PreparedImage:
        assert geometry.original_hw == ORIGINAL_HW, f"{name} is not of the size that the result is for"
        return PreparedImage(torch.from_numpy(np.array(image)), geometry, name)

    def run(self, images: Sequence[PreparedImage], costs: Costs) -> list[Inferred]:
        with self.lock, watch("simulating", images[0].name), costs.passing("model"):
            time.sleep(len(images) * self.seconds_per_image)
            return [Inferred(self.found)] * len(images)

    @contextmanager
    def lent(self) -> Iterator[None]:
        yield

    def free_memory(self) -> None:
        pass

    def exit_if_lost(self) -> None:
        pass


class _Measured:
    """Before a stage: with --metrics off, its process drops all values, as a process without Ray does."""

    def __init__(self, *args: object):
        if os.environ[METRICS] == "off":
            Instrument._ready = lambda self: None
        super().__init__(*args)


class MeasuredFetchImages(_Measured, FetchImages):
    pass


class MeasuredEncodeAndWrite(_Measured, EncodeAndWrite):
    pass


class SimulatedSegmentImages(_Measured, SegmentImages):
    """The model actor, with that network; writes down how many bytes of each shard come in and go out."""

    network: type = SimulatedNetwork

    def __init__(self, *args: object):
        segmenter.load_network = self.network
        super().__init__(*args)

    def __call__(self, row: pa.Table) -> pa.Table:
        result = super().__call__(row)
        sizes = {"images": len(row.column("images")[0]), "in": row.nbytes, "out": result.nbytes}
        with (Path(os.environ[SIZES]) / str(os.getpid())).open("a") as file:
            file.write(json.dumps(sizes) + "\n")
        return result


def bytes_an_image(folder: Path) -> dict[str, float]:
    lines = [json.loads(line) for path in folder.iterdir() for line in path.read_text().splitlines()]
    images = sum(line["images"] for line in lines)
    return {way: round(sum(line[way] for line in lines) / images) for way in ("in", "out")}


def steady_rate(receipts: list[Receipt]) -> float:
    """Images a second while every actor had work: from the last one's first shard on to the first one's last.

    Of a shard that was under way at either end, the share counts that lies between.
    """
    actors: dict[str, list[Receipt]] = {}
    for receipt in sorted(receipts, key=lambda receipt: receipt.model_ended):
        actors.setdefault(receipt.model_actor, []).append(receipt)
    since = max(min(receipt.started for receipt in done) for done in actors.values())
    until = min(done[-1].model_ended for done in actors.values())
    assert until > since, "too few shards: never had all actors work at one time"
    images = 0.0
    for done in actors.values():
        began = min(receipt.started for receipt in done)
        for receipt in done:  # one after the other on the device
            within = min(receipt.model_ended, until) - max(began, since)
            images += receipt.num_images * max(0.0, within) / (receipt.model_ended - began)
            began = receipt.model_ended
    return images / (until - since)


def main(actor: type = SimulatedSegmentImages) -> None:
    """`actor`: a kind of SimulatedSegmentImages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--devices", type=int, required=True)
    parser.add_argument("--cpus", type=int, required=True)
    parser.add_argument("--seconds", required=True, help="that the device takes for 32 images")
    parser.add_argument("--images-per-shard", type=int, default=64)
    parser.add_argument("--metrics", choices=("on", "off"), default="on")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as sizes:
        os.environ.update({SECONDS: args.seconds, SIZES: sizes, METRICS: args.metrics})
        ray.init(
            address="local",
            num_cpus=args.cpus,
            num_gpus=args.devices,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=2_000_000_000,
        )
        run.SegmentImages = actor
        run.FetchImages, run.EncodeAndWrite = MeasuredFetchImages, MeasuredEncodeAndWrite
        settings = Settings(
            input=args.input,
            output=args.output,
            device="cuda",
            batch_size=BATCH,
            images_per_shard=args.images_per_shard,
            cpus_per_actor=1,
        )
        began, cpu = time.time(), time.process_time()
        with Progress(settings.progress_seconds) as progress:
            report = segment_bucket(settings, progress)
        cpu = time.process_time() - cpu
        assert report is not None and report.num_ok == report.num_images
        receipts = list(Journal(Output.open(args.output).run(report.run_id)).read())
        document = {
            **{name: value for name, value in vars(args).items() if name not in ("input", "output")},
            "images": report.num_images,
            "images_per_second": report.images_per_second,
            "steady_images_per_second": round(steady_rate(receipts), 2),
            "device_busy": round(sum(report.device_busy.values()) / len(report.device_busy), 3),
            "actors": len(report.device_busy),
            "step_ms": report.step_ms,
            "object_store_bytes_an_image": bytes_an_image(Path(sizes)),
            "driver_cpu_ms_a_shard": round(1e3 * cpu / report.num_shards, 1),
            "shards": report.num_shards,
            "seconds_to_first_shard": round(min(receipt.started for receipt in receipts) - began, 1),
        }
    ray.shutdown()
    print(json.dumps(document))


if __name__ == "__main__":
    main()
