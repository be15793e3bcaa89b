"""The steps of `make gpu-check`: each takes a device and a folder, and gives rows of figures, one after the other.

A step raises where the device does what it should not; a figure alone never fails a step.
"""

import io
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from m2f_core.checkpoints.checkpoint import save_checkpoint
from m2f_core.config.labels import Category, LabelMap
from m2f_core.inference.settings import InstanceSettings, PanopticSettings, SemanticSettings
from m2f_core.layers.deformable_attention import attend_by_embedding_bag, attend_by_grid_sample, locate_and_weigh
from m2f_core.model.cuda_graphs import GraphedForward
from m2f_core.model.pixel_decoder import cell_centres
from pipeline.errors import ImageError
from pipeline.guard.planted_faults import VARIABLE, marker
from pipeline.runs.selfcheck import SelfCheck, compare, plain_network, time_actor
from pipeline.scenes.draw import draw_scene
from pipeline.segment.checkpoint import stage_model
from pipeline.segment.device_model import Network
from pipeline.segment.inference_settings import InferenceSettings
from pipeline.segment.segmenter import Segmenter
from pipeline.segment.spec import SegmentSpec
from pipeline.telemetry.costs import Costs
from tests.gpu.devices import Gpu
from tests.support.seeded_model import seeded_model

Row = dict[str, Any]
TRAINED = "synthetic-scenes"  # comes with the package
_OF_REPORT = ("num_ok", "num_failed", "images_per_second", "device_busy", "step_ms")
_SAME_SHARE = 0.999  # of the mask bits of two ways to compute a mask


@dataclass(frozen=True)
class Step:
    title: str
    run: Callable[[Gpu, Path], Iterable[Row]]
    seconds: float  # its limit
    forks: bool = False  # its own processes use the device, and the step itself does not


def scenes(device: Gpu, number: int, image_format: str = "JPEG") -> list[bytes]:
    encoded = []
    for index in range(number):
        buffer = io.BytesIO()
        Image.fromarray(draw_scene(0, index, *device.image_hw).pixels_HW3).save(buffer, image_format, quality=90)
        encoded.append(buffer.getvalue())
    return encoded


def model_folder(device: Gpu, folder: Path) -> str:
    """A checkpoint of the published architecture with seeded weights, written once."""
    path = folder / "model"
    if not (path / "config.json").is_file():
        config = device.config()
        labels = LabelMap(tuple(Category(n, n + 1, name, isthing=n < 80) for n, name in config.id2label.items()))
        save_checkpoint(seeded_model(config, 0), path, labels)
    return str(path)


def tasks(mode: str) -> dict[str, InferenceSettings]:
    """Settings under which also an unsure model has segments."""
    panoptic = replace(PanopticSettings.defaults(mode), score_threshold=0.3, overlap_threshold=0.3)
    instance = replace(InstanceSettings.defaults(mode), score_threshold=0.1)
    return {"panoptic": panoptic, "instance": instance, "semantic": SemanticSettings.defaults(mode)}


def spec_of(device: Gpu, model: str, precision: str | None = None, **changes: Any) -> SegmentSpec:
    settings: dict[str, Any] = {
        "model": model,
        "weights_sha256": stage_model(model).sha256,
        "preprocess": "reference",
        "image_size": device.image_size,
        "exif": True,
        "max_image_pixels": 10**8,
        "inference": tasks("reference")["panoptic"],
        "precision": precision or device.precision,
        "device": device.device,
        "threads": device.threads,
        "batch_size": device.batch,
        "max_batch_pixels": 2**40,
    }
    return SegmentSpec(**{**settings, **changes})


def network_of(spec: SegmentSpec) -> Network:
    return Network(
        stage_model(spec.model, spec.weights_sha256),
        device=spec.device,
        precision=spec.precision,
        preprocess=spec.preprocess,
        image_size=spec.image_size,
        inference=spec.inference,
    )


def about(device: Gpu, folder: Path) -> list[Row]:
    """The device, its matrix products, its memory and the way to it."""
    row = {**device.about(), "torch": torch.__version__, "python": sys.version.split()[0], "cpus": os.cpu_count()}
    side = 8192 if device.device == "cuda" else 64
    for name, dtype, tf32 in (
        ("fp32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bf16", torch.bfloat16, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        x = torch.randn(side, side, dtype=dtype, device=device.device)
        row[f"{name} TFLOP/s"] = 2 * side**3 / device.seconds_of(lambda x=x: x @ x) / 1e12
    num_bytes = 2**28 if device.device == "cuda" else 2**16
    there, here = (
        torch.empty(num_bytes, dtype=torch.uint8, device=device.device),
        torch.empty(num_bytes, dtype=torch.uint8),
    )
    pinned = device.pinned(here)
    row["copy on it GB/s"] = 2 * num_bytes / device.seconds_of(lambda: there.clone()) / 1e9
    row["to it GB/s"] = num_bytes / device.seconds_of(lambda: there.copy_(pinned, non_blocking=True)) / 1e9
    row["to it, not pinned"] = num_bytes / device.seconds_of(lambda: there.copy_(here)) / 1e9
    row["from it GB/s"] = num_bytes / device.seconds_of(lambda: pinned.copy_(there, non_blocking=True)) / 1e9
    little = torch.zeros(1, device=device.device)

    def launches() -> None:
        for _ in range(1000):
            little.add_(1)

    row["launch us"] = 1e3 * device.seconds_of(launches)
    row["read back us"] = 1e6 * device.seconds_of(lambda: little.item())
    return [{"what": name, "figure": value} for name, value in row.items()]


def self_check(device: Gpu, folder: Path) -> Iterator[Row]:
    """Every task, mode and precision with the trained model at its own size, against plain PyTorch on the CPU; then the
    published architecture at the paper's size.
    """
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in scenes(device, device.images)]
    wrong = []
    for mode in ("reference", "hf"):
        for task, inference in tasks(mode).items():
            for precision in device.precisions:
                spec = spec_of(device, TRAINED, precision, inference=inference, image_size=device.image_size_of_trained)
                row = {"task": task, "mode": mode} | _compared(spec, images)
                wrong += [] if row["passes"] else [row]
                yield row
    for precision in device.precisions:
        row = {"task": "panoptic", "mode": "seeded weights"}
        row |= _compared(spec_of(device, model_folder(device, folder), precision), images[:1])
        wrong += [] if row["passes"] else [row]
        yield row
    assert not wrong, f"more than rounding in {len(wrong)} of these rows"


def _compared(spec: SegmentSpec, images: list[Image.Image]) -> Row:
    found = compare(network_of(spec), plain_network(spec), images)
    passes = SelfCheck(spec.device, spec.precision, found, None).passes  # type: ignore[arg-type]
    if spec.precision == "fp32":
        passes = passes and found.segments_alike >= 0.95 * found.segments
    return {"precision": spec.precision, "passes": passes, **asdict(found)}


def triton(device: Gpu, folder: Path) -> Iterator[Row]:
    """Deformable attention of one layer, by Triton and by PyTorch's operations."""
    for size in device.attention_sizes:
        for dtype in (torch.float32, torch.bfloat16):
            yield _attention(device, size, dtype)


def _attention(device: Gpu, size: tuple[int, int], dtype: torch.dtype) -> Row:
    from m2f_core.layers.deformable_attention_triton import attend_by_triton

    level_hw = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in (32, 16, 8)]
    generator = torch.Generator().manual_seed(0)
    centres = torch.cat([cell_centres(h, w, torch.device("cpu")) for h, w in level_hw])
    shape = (device.batch, len(centres), 8)
    value, centres, cell_size, offsets, logits = (
        x.to(device.device)
        for x in (
            torch.randn(*shape, 32, generator=generator).to(dtype),
            centres,
            torch.tensor([(1 / w, 1 / h) for h, w in level_hw]),
            3 * torch.randn(*shape, 3, 4, 2, generator=generator),
            torch.randn(*shape, 3, 4, generator=generator),
        )
    )

    def plain(attend: Callable[..., torch.Tensor]) -> torch.Tensor:
        return attend(value.float(), level_hw, *locate_and_weigh(cell_size, centres, offsets, logits))

    ways: dict[str, Callable[[], torch.Tensor]] = {
        "triton": lambda: attend_by_triton(value, level_hw, centres, offsets, logits),
        "embedding_bag": lambda: plain(attend_by_embedding_bag),
        "grid_sample": lambda: plain(attend_by_grid_sample),
    }
    error = (ways["triton"]().float() - ways["embedding_bag"]()).abs().max().item()
    assert error <= (1e-4 if dtype == torch.float32 else 5e-2), f"the kernel is off by {error:.1e}"
    times = {f"{name} ms": 1e3 * device.seconds_of(way) for name, way in ways.items()}
    return {"size": "x".join(map(str, size)), "values": str(dtype), "batch": device.batch, "off by": error} | times


def graphs(device: Gpu, folder: Path) -> Iterator[Row]:
    """The forward pass with and without CUDA graphs: the same results, and the time of both."""
    network = network_of(spec_of(device, model_folder(device, folder)))
    for batch in device.batches:
        with torch.inference_mode():
            row = _with_and_without_graph(device, network, batch)
        yield row


def _with_and_without_graph(device: Gpu, network: Network, batch: int) -> Row:
    pixels = torch.randn(batch, 3, *device.sizes[-1], device=device.device)
    graphed = GraphedForward(network._forward, device.recorder())
    for _ in range(3):
        graphed(pixels)
    assert graphed.recorded, "the forward pass was not recorded; the warning above says why"
    with_graph = graphed(pixels).masks_queries_logits.clone()
    same = ((with_graph >= 0) == (network._forward(pixels).masks_queries_logits >= 0)).float().mean().item()
    assert same >= _SAME_SHARE, f"a graph gives other masks: {1 - same:.1e} of the bits"
    without, recorded = (device.seconds_of(partial(forward, pixels)) for forward in (network._forward, graphed))
    graphed.forget()
    return {
        "batch": batch,
        "size": "x".join(map(str, device.sizes[-1])),
        "ms without": 1e3 * without,
        "ms with": 1e3 * recorded,
        "ratio": without / recorded,
        "other mask bits": 1 - same,
        "GiB": device.peak_gib(),
    }


def speed(device: Gpu, folder: Path) -> Iterator[Row]:
    """Images a second of the forward pass alone, by precision, size and batch."""
    for precision in reversed(device.precisions):
        network = network_of(spec_of(device, model_folder(device, folder), precision))
        for size in device.sizes:
            for batch in device.batches:
                pixels = torch.randn(batch, 3, *size, device=device.device)
                device.peak_gib()
                with torch.inference_mode():
                    seconds = device.seconds_of(partial(network.forward, pixels))
                row = {"precision": precision, "size": "x".join(map(str, size)), "batch": batch}
                yield {**row, "images/s": batch / seconds, "GiB": device.peak_gib()}
            network.free_memory()


def actor(device: Gpu, folder: Path) -> Iterator[Row]:
    """A whole model actor, by task: decoding, model, reduction, encoding, and the share in which the device worked."""
    for task, inference in tasks("reference").items():
        yield _time_task(device, folder, task, inference)


def _time_task(device: Gpu, folder: Path, task: str, inference: InferenceSettings) -> Row:
    busy: list[float] = []
    segmenter = Segmenter(spec_of(device, model_folder(device, folder), inference=inference), busy.append)
    encoded = scenes(device, device.images)
    timing = time_actor(segmenter, encoded, 2 * device.seconds)
    busy.clear()
    started = time.monotonic()

    def segment_shards() -> int:
        done = 0
        while done == 0 or time.monotonic() - started < 2 * device.seconds:
            assert not any(isinstance(result, ImageError) for result in segmenter.segment(encoded))
            done += len(encoded)
        return done

    with ThreadPoolExecutor(2) as pool:  # as many shards at a time as Ray gives an actor
        both = [pool.submit(segment_shards) for _ in range(2)]
        number = sum(one.result() for one in both)
    seconds = time.monotonic() - started
    return {
        "task": task,
        "images/s": timing.images_per_second,
        "two shards at a time": number / seconds,
        "device busy": sum(busy) / seconds,
        "GiB": device.peak_gib(),
        **{f"{step} ms": ms for step, ms in timing.device_ms.items()},
    }


def out_of_memory(device: Gpu, folder: Path) -> list[Row]:
    """Batches that do not fit are halved until they do; every image has its result."""
    segmenter = Segmenter(spec_of(device, model_folder(device, folder), "fp32", batch_size=device.crowd))
    encoded = scenes(device, device.crowd)
    with device.little_memory(segmenter.network):
        results = segmenter.segment(encoded)
    failed = [result for result in results if isinstance(result, ImageError)]
    assert not failed, f"{len(failed)} images have no result: {failed[0]}"
    padded = segmenter.network.processor.geometry(*device.image_hw).padded_hw
    most = segmenter.max_batch_pixels // (padded[0] * padded[1])
    assert most < len(encoded), "memory never ran out"
    return [{"images tried together": len(encoded), "images in a batch at the end": most}]


def two_actors(device: Gpu, folder: Path) -> Iterator[Row]:
    """One actor, then two with half of the memory each at the same time."""
    model_folder(device, folder)
    for number in (1, 2):
        with_share = [_Actor(device, folder, 1 / number) for _ in range(number)]
        for one in with_share:
            one.hear("ready")
        for one in with_share:
            one.say("time")
        speeds = [one.hear("timed") for one in with_share]
        for one in with_share:
            one.end()
        yield {"actors": number, "images/s of each": str([round(s, 1) for s in speeds]), "together": sum(speeds)}


def killed_actor(device: Gpu, folder: Path) -> list[Row]:
    """An actor that is killed in the middle of a batch leaves a device on which the next one works."""
    model_folder(device, folder)
    before = _Actor(device, folder, 1.0)
    free = before.hear("ready")
    before.say("segment")
    expected = before.hear("segmented")
    before.say("time")  # it is at work now
    time.sleep(device.seconds / 2)
    before.end()
    started = time.monotonic()
    after = _Actor(device, folder, 1.0)
    free_after = after.hear("ready")
    after.say("segment")
    found = after.hear("segmented")
    seconds = time.monotonic() - started
    after.end()
    assert found == expected, f"the next actor finds {found} segments, the killed one found {expected}"
    return [
        {"segments": found, "s to the next one's results": seconds, "GiB free": free, "GiB free afterwards": free_after}
    ]


class _Actor:
    """A process with a model on the device, which does what it is told."""

    def __init__(self, device: Gpu, folder: Path, share: float):
        forking = multiprocessing.get_context("fork")
        self.connection, theirs = forking.Pipe()
        self.process = forking.Process(target=_act, args=(device, folder, share, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def say(self, what: str) -> None:
        self.connection.send(what)

    def hear(self, what: str) -> Any:
        if not self.connection.poll(90):
            raise TimeoutError(f"an actor has not {what} within 90 s")
        said, value = self.connection.recv()
        assert said == what, value
        return value

    def end(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()


def _act(device: Gpu, folder: Path, share: float, connection: Connection) -> None:
    try:
        with device.in_place():
            spec = spec_of(
                device, model_folder(device, folder), gpu_share=share, threads=max(1, (os.cpu_count() or 2) // 2)
            )
            segmenter, encoded = Segmenter(spec), scenes(device, device.images)
            connection.send(("ready", device.free_gib()))
            while True:
                if connection.recv() == "time":
                    connection.send(("timed", time_actor(segmenter, encoded, 3 * device.seconds).images_per_second))
                else:
                    results = segmenter.segment(encoded)
                    connection.send(("segmented", [len(result.segments) for result in results]))
    except Exception as error:
        connection.send(("failed", f"{type(error).__name__}: {error}"))


def job(device: Gpu, folder: Path) -> list[Row]:
    """A whole job on Ray with the trained model; one image aborts its process, and costs only its own row."""
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for index, data in enumerate(scenes(device, 2 * device.images)):
        (images / f"{index:03}.jpg").write_bytes(data + (marker("abort") if index == 1 else b""))
    os.environ[VARIABLE] = "1"
    report = device.segment(input=images, output=folder / "output", max_failure_rate=1.0, images_per_shard=4)
    assert (report["num_ok"], report["num_failed"]) == (2 * device.images - 1, 1), report
    return [{"what": name, "figure": report[name]} for name in _OF_REPORT]


def profile(device: Gpu, folder: Path) -> list[Row]:
    """The kernels of one batch by their time: preparation on the device, model and reduction."""
    network = network_of(spec_of(device, model_folder(device, folder)))
    images = []
    for data in scenes(device, device.batch):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        images.append(network.prepare(image, network.processor.geometry(image.height, image.width), "scene"))
    for _ in range(4):
        network.run(images, Costs())
    return device.profiled(lambda: network.run(images, Costs()), folder / "profile.json")


STEPS = {
    "about": Step("The device", about, 60),
    "self_check": Step("Each task, mode and precision against plain PyTorch", self_check, 120),
    "triton": Step("Deformable attention by Triton and by PyTorch", triton, 60),
    "graphs": Step("The forward pass with and without CUDA graphs", graphs, 60),
    "profile": Step("The kernels of one batch", profile, 45),
    "actor": Step("A model actor", actor, 60),
    "out_of_memory": Step("Batches that do not fit", out_of_memory, 60),
    "killed_actor": Step("An actor that is killed", killed_actor, 60, forks=True),
    "two_actors": Step("Two actors on one device", two_actors, 75, forks=True),
    "job": Step("A job, with an image that aborts its process", job, 120),
    "speed": Step("The forward pass by precision, size and batch", speed, 120),
}
