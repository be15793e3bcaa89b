"""The GPU of `make gpu-check`, and its fake: what the steps ask of PyTorch's CUDA functions, and how much they do."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from m2f_core.config.backbones import SwinConfig
from m2f_core.config.mask2former import Mask2FormerConfig
from m2f_core.images.image_size import ImageSize
from m2f_core.model.cuda_graphs import CudaRecorder
from pipeline.config import Settings
from pipeline.guard.planted_faults import marker
from tests.benchmarks.scripts import run_script

Size = tuple[int, int]


class Gpu:
    """The first GPU of the machine."""

    device = "cuda"
    patience = 1.0  # times the limits of the steps
    precisions = ("fp32", "bf16")
    precision = "bf16"  # of steps that take one
    threads = os.cpu_count() or 1
    image_hw: Size = (480, 640)  # of the images that are drawn
    image_size = ImageSize.parse("800:1333")
    image_size_of_trained: ImageSize | None = None  # the trained model's own
    sizes: tuple[Size, ...] = ((384, 384), (512, 704), (800, 1088), (800, 1344))  # padded
    batches = (1, 4, 8, 16)
    batch = 8  # of steps that take one
    seconds = 1.0  # for one figure
    images = 8  # that are compared
    crowd = 64  # images that do not fit into little memory together
    attention_sizes: tuple[Size, ...] = sizes[1:]

    def config(self) -> Mask2FormerConfig:
        """Swin-T with the classes of COCO."""
        return Mask2FormerConfig(backbone_config=SwinConfig(), id2label={n: f"class {n}" for n in range(133)})

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """While this is open, steps run on this device."""
        if not torch.cuda.is_available():
            raise RuntimeError("PyTorch sees no GPU on this machine; --fake runs the steps without one")
        yield

    def about(self) -> dict[str, Any]:
        found = torch.cuda.get_device_properties(0)
        return {
            "device": found.name,
            "capability": f"{found.major}.{found.minor}",
            "GiB": round(found.total_memory / 2**30, 1),
            "multiprocessors": found.multi_processor_count,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }

    def wait(self) -> None:
        torch.cuda.synchronize()

    def seconds_of(self, call: Callable[[], object]) -> float:
        """Median seconds on the device of one call, after three that do not count."""
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        taken: list[float] = []
        end = time.monotonic() + self.seconds
        while len(taken) < 3 or time.monotonic() < end:
            before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            before.record()
            call()
            after.record()
            after.synchronize()
            taken.append(before.elapsed_time(after) / 1e3)
        return sorted(taken)[len(taken) // 2]

    def peak_gib(self) -> float:
        """The most memory of tensors since the last call."""
        peak = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
        return round(peak, 2)

    def free_gib(self) -> float:
        return round(torch.cuda.mem_get_info()[0] / 2**30, 2)

    def recorder(self) -> Callable[..., Any]:
        return CudaRecorder()

    def pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory()

    def profiled(self, call: Callable[[], object], trace: Path) -> list[dict[str, Any]]:
        """The kernels of one call by their time on the device, most first; the trace goes to a file."""
        activity = torch.profiler.ProfilerActivity
        with torch.profiler.profile(activities=[activity.CPU, activity.CUDA]) as profile:
            call()
            self.wait()
        profile.export_chrome_trace(str(trace))
        return self.rows_of(profile, "self_device_time_total")

    @staticmethod
    def rows_of(profile: Any, by: str) -> list[dict[str, Any]]:
        averages = sorted(profile.key_averages(), key=lambda one: -getattr(one, by))
        total = sum(getattr(one, by) for one in averages) or 1.0
        return [
            {
                "kernel": one.key[:60],
                "calls": one.count,
                "ms": getattr(one, by) / 1e3,
                "share": getattr(one, by) / total,
            }
            for one in averages[:15]
        ]

    def segment(self, **flags: Any) -> dict[str, Any]:
        """The report of a job with these flags."""
        run_script("jobs/segment_bucket.py", device=self.device, **flags)
        [report] = Path(flags["output"]).glob("_runs/*/report.json")
        content: dict[str, Any] = json.loads(report.read_text())
        return content

    @contextlib.contextmanager
    def little_memory(self, network: Any) -> Iterator[None]:
        """While this is open, the device has room for about two images of a batch."""
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 1.5 * 2**30) / total)
        yield
        torch.cuda.set_per_process_memory_fraction(1.0)


class FakeGpu(Gpu):
    """A CPU in its place, with a tiny model. Its bf16 is slow, and allowed all the same."""

    device = "cpu"
    patience = 10.0  # of a test, on a machine that does other work
    precision = "fp32"
    threads = 1
    image_hw = (64, 96)
    image_size = image_size_of_trained = ImageSize.parse("64:128")
    sizes = ((64, 64), (64, 96))
    batches = (1, 2)
    batch = 1
    seconds = 0.02
    images = 1
    crowd = 6
    attention_sizes = ((16, 16),)  # the interpreter of Triton is slow

    def config(self) -> Mask2FormerConfig:
        return Mask2FormerConfig.tiny()

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        torch.set_num_threads(1)
        with (
            mock.patch("pipeline.device.precision.bf16_refusal", return_value=None),
            mock.patch("m2f_core.model.for_inference.bf16_refusal", return_value=None),
            mock.patch.dict(os.environ, TRITON_INTERPRET="1"),
        ):
            yield

    def about(self) -> dict[str, Any]:
        return {"device": "none"}

    def wait(self) -> None:
        pass

    def seconds_of(self, call: Callable[[], object]) -> float:
        started = time.perf_counter()
        call()
        return time.perf_counter() - started

    def peak_gib(self) -> float:
        return 0.0

    def free_gib(self) -> float:
        return 0.0

    def recorder(self) -> Callable[..., Any]:
        return lambda forward, example: forward

    def pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def profiled(self, call: Callable[[], object], trace: Path) -> list[dict[str, Any]]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            call()
        profile.export_chrome_trace(str(trace))
        return self.rows_of(profile, "self_cpu_time_total")

    def segment(self, **flags: Any) -> dict[str, Any]:
        given = {name: str(value) if isinstance(value, Path) else value for name, value in flags.items()}
        Settings(device=self.device, **given)  # raises for flags that do not exist
        images = list(Path(flags["input"]).iterdir())
        aborts = sum(path.read_bytes().endswith(marker("abort")) for path in images)
        counts = {"num_ok": len(images) - aborts, "num_failed": aborts}
        return {**counts, "images_per_second": 0.0, "step_ms": {}, "device_busy": {}}

    @contextlib.contextmanager
    def little_memory(self, network: Any) -> Iterator[None]:
        forward = network.model.forward

        def with_two(pixels: torch.Tensor, **wanted: Any) -> Any:
            if len(pixels) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            return forward(pixels, **wanted)

        with mock.patch.object(network.model, "forward", with_two):
            yield
