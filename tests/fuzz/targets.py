"""What is fuzzed: readers of bytes that a stranger may have made, each with seeds and the errors that it may raise.

A target takes any bytes. It ends in a result or in one of its errors, of one line; in at most 5 seconds; in at most
1 GiB more than before. Anything else is a finding.
"""

import contextlib
import io
import json
import pickle
import re
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from jobs.common import command_line
from m2f_core.checkpoints.checkpoint import CONFIG_FILE, Checkpoint
from m2f_core.checkpoints.plain_pickle import read_plain_pickle
from m2f_core.masks import rle
from m2f_core.masks.polygons import fill_polygons
from pipeline.coco.coco_file import read_instances_file, read_panoptic_file
from pipeline.commit.journal import Journal
from pipeline.commit.lease import Lease
from pipeline.commit.run_record import PlanFile, read_plan_record, read_run_record
from pipeline.commit.run_report import read_report
from pipeline.config import Settings
from pipeline.decoding.decode import FORMATS, decode_image, measure_image
from pipeline.errors import ImageError, RunError
from pipeline.input_spec import InputSpec
from pipeline.plan.plan_files import read_plan_file
from pipeline.schema import PLAN
from pipeline.train.training import read_optimizer_state
from tests.fuzz import inputs
from tests.fuzz.files import folder, output, put
from tests.support.inputs import make_model
from tests.support.places import SHARED_DATA
from tests.support.run_records import receipt, report, run_json

MOST_SECONDS = 5.0
MOST_BYTES = 2**30
MOST_PIXELS = 2**20  # of an image; enough for every seed


class FindingError(Exception):
    """A target did what it must not do."""


@dataclass(frozen=True)
class Target:
    """A reader, bytes to begin with, and the errors that it may raise."""

    read: Callable[[bytes], object]
    seeds: Callable[[], Sequence[bytes]]
    errors: tuple[type[Exception], ...]
    longest: int = 4096  # bytes of an input
    one_line: bool = True  # of an error; else a caller makes it one

    def __call__(self, data: bytes) -> bool:
        """Whether there is a result. FindingError if the target raises other errors, takes too long or too much."""
        _forget_most_memory()  # of what the process did before, which would hide what the target takes
        before, started, is_read = _most_memory(), time.process_time(), True
        try:
            self.read(data)
        except self.errors as error:
            is_read = False
            if self.one_line and "\n" in str(error):
                raise FindingError(f"the error has several lines: {error}") from error
        except Exception as error:
            raise FindingError(f"{type(error).__name__}: {error}") from error
        if (seconds := time.process_time() - started) > MOST_SECONDS:
            raise FindingError(f"{seconds:.1f} s of CPU time")
        if (grown := _most_memory() - before) > MOST_BYTES:
            raise FindingError(f"{grown / 2**20:.0f} MiB")
        return is_read


def _forget_most_memory() -> None:
    with contextlib.suppress(OSError):  # some containers forbid it
        Path("/proc/self/clear_refs").write_text("5")


def _most_memory() -> int:
    """The most resident memory since `_forget_most_memory`, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


# --- masks ------------------------------------------------------------------------------------------------------------


def read_rle(data: bytes) -> object:
    """Two bytes of size, then counts."""
    height, width = (data[0] + 1, data[1] + 1) if len(data) > 1 else (1, 1)
    counts = data[2:]
    return rle.decode_counts(counts), rle.counts_area(counts), rle.decode(counts, height, width)


def rle_seeds() -> list[bytes]:
    masks = [
        np.zeros((9, 7), bool),
        np.ones((9, 7), bool),
        np.eye(9, 7, dtype=bool),
        np.arange(63).reshape(9, 7) % 5 > 2,
    ]
    return [bytes((8, 6)) + rle.encode_mask(np.asfortranarray(mask)) for mask in masks]


def read_polygons(data: bytes) -> object:
    """Two bytes of size, then numbers of four bytes; a NaN ends a polygon."""
    height, width = (data[0] + 1, data[1] + 1) if len(data) > 1 else (1, 1)
    numbers = struct.unpack(f"<{len(data[2:]) // 4}f", data[2 : 2 + len(data[2:]) // 4 * 4])
    polygons: list[list[float]] = [[]]
    for number in numbers:
        polygons.append([]) if number != number else polygons[-1].append(number)
    return fill_polygons(polygons, height, width)


def polygon_seeds() -> list[bytes]:
    triangle, far = (1.0, 1.5, 8.0, 2.0, 4.0, 9.0), (-50.0, -50.0, 500.0, 3.0, 7.0, 800.0)
    return [bytes((9, 9)) + struct.pack(f"<{len(p)}f", *p) for p in (triangle, far, (*triangle, float("nan"), *far))]


# --- checkpoints ------------------------------------------------------------------------------------------------------


@cache
def model_folder() -> Path:
    make_model(folder() / "model")
    return folder() / "model"


def read_safetensors(data: bytes) -> object:
    """Names, shapes and the values of the first tensors of a file."""
    from m2f_core.checkpoints.checkpoint import _open_safetensors

    with ExitStack() as stack:
        stored = _open_safetensors([put("weights.safetensors", data)], stack, str)
        return [(name, tensor.shape, tensor.read()) for name, tensor in list(stored.items())[:3]]


def in_model(name: str, data: bytes) -> object:
    """Check a sound checkpoint in which one file is replaced, as a job does before it starts."""
    whole = (model_folder() / name).read_bytes()
    (model_folder() / name).write_bytes(data)
    try:
        checkpoint = Checkpoint(model_folder())
        checkpoint.check()
        return checkpoint.labels, checkpoint.preprocessor_config
    finally:
        (model_folder() / name).write_bytes(whole)


@cache
def header() -> bytes:
    """The header of a safetensors file with two tensors, and their values."""
    from safetensors.numpy import save

    return save({"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.float16)})


def pickles() -> list[bytes]:
    arrays = {"model": {"a.weight": np.zeros((2, 3), np.float32), "b": np.arange(4)}, "n": 3, "t": ("x", 1.5, None)}
    return [pickle.dumps(arrays, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]


def read_optimizer(data: bytes) -> object:
    return read_optimizer_state(put("optimizer.pt", data))


def optimizer_seeds() -> list[bytes]:
    """The state after a step, in today's format, and in the format before it, which is refused."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    seeds = []
    for is_zip in (True, False):
        buffer = io.BytesIO()
        torch.save(optimizer.state_dict(), buffer, _use_new_zipfile_serialization=is_zip)
        seeds.append(buffer.getvalue())
    return seeds


# --- ground truth and settings ----------------------------------------------------------------------------------------


def coco_seeds() -> list[bytes]:
    image = {"id": 1, "file_name": "a.png", "height": 9, "width": 7}
    category = {"id": 3, "name": "cat", "isthing": 1}
    shapes: list[Any] = [
        [[1, 1, 5, 1, 5, 5]],
        {"size": [9, 7], "counts": rle.encode_mask(np.eye(9, 7, dtype=bool)).decode()},
        {"size": [9, 7], "counts": [3, 60]},
    ]
    objects = [
        {"id": n, "image_id": 1, "category_id": 3, "segmentation": s, "bbox": [1, 1, 4, 4.5]}
        for n, s in enumerate(shapes)
    ]
    entry = {"image_id": 1, "file_name": "a.png", "segments_info": [{"id": 1, "category_id": 3, "iscrowd": 0}]}
    files = [
        {"images": [image], "categories": [category], "annotations": objects},
        {"images": [image], "categories": [category], "annotations": [entry]},
    ]
    return [json.dumps(file).encode() for file in files]


def read_config(data: bytes) -> object:
    return command_line._flags_in_file(Settings, put("settings.yaml", data), without=set())


YAML = (
    b"input: s3://bucket/x\nlimit: 5\nexif: false\nlabel_ids_to_fuse: [1, 2]\nscore_threshold: 0.5\n",
    b"a: &a [x, x]\nb: &b [*a, *a]\ninput: *b\n",
    b"input: !!python/object/apply:os.system ['true']\nlimit: !!int 0x10\n<<: {a: 1}\n? [x]\n: y\n",
)


# --- what an output holds ---------------------------------------------------------------------------------------------


def in_run(name: str, read: Callable[[], object]) -> Callable[[bytes], object]:
    def reader(data: bytes) -> object:
        put(f"out/_runs/r/{name}", data)
        return read()

    return reader


def read_attempts(data: bytes) -> object:
    run = output().run("attempts")
    put("out/_runs/attempts/journal/000001-000000.jsonl", receipt("attempts", 0).to_json().encode())
    put("out/_runs/attempts/attempts/000002.json", data)
    return list(Journal(run).read(2))


def read_lease(data: bytes) -> object:
    from pipeline.store.conditional_writes import Stored

    return Lease(output().filesystem, output().lease_json, 60.0)._seconds_to_wait(Stored(data, "v", 100.0))


LEASE = {
    "host": "h", "pid": 5, "process": "0-a/4026531836/1/99", "since": "2026", "seconds": 60.0, "token": "t",
    "renewals": 3, "released": False,
}  # fmt: skip


def read_plan(data: bytes) -> object:
    path = str(put("out/_runs/r/plan/000000.parquet", data))
    return list(read_plan_file(output(), InputSpec.of("memory:///b/in"), PlanFile(path, 0, 2), [0, 1]))


def plan_seeds() -> list[bytes]:
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, PLAN, compression="zstd") as writer:
        for shard in range(2):
            image = {
                "shard": shard,
                "image_key": f"memory:///b/in/{shard}",
                "etag": "e",
                "size_bytes": 3,
                "reason": "new",
            }
            of_tar = {
                **image,
                "image_key": "memory:///b/in/t.tar#a",
                "object_uri": "memory:///b/in/t.tar",
                "position": 512,
            }
            writer.write_table(pa.Table.from_pylist([of_tar, image] if shard else [image], schema=PLAN))
    return [buffer.getvalue()]


PLAN_JSON = json.dumps(
    {
        "plan": {
            "files": [{"path": "000000.parquet", "first_shard": 0, "num_shards": 2}],
            "num_images": 3,
            "num_shards": 2,
            "size_bytes": 9,
        },
        "counts": {"new": 3},
    }
).encode()

RECORDS: dict[str, tuple[Callable[[], bytes], str]] = {
    "run": (lambda: run_json("r", num_shards=3, categories=[{"id": 1, "name": "a", "isthing": 1}]).encode(), "run"),
    "plan record": (lambda: PLAN_JSON, "plan record"),
    "report": (lambda: json.dumps(asdict(report("r"))).encode(), "report"),
    "journal": (lambda: receipt("r", 1, 3).to_json().encode(), "journal"),
    "attempts": (lambda: b'{"accepted": {"1": [0, 1], "2": []}}', "attempts"),
    "lease": (lambda: json.dumps(LEASE).encode(), "lease"),
    "instances": (lambda: coco_seeds()[0], "instances"),
    "panoptic": (lambda: coco_seeds()[1], "panoptic"),
}
VALUES = (
    b"null", b"true", b"-1", b"0", b"1.5", b"1e999", b"NaN", b"9" * 30, b'""', b'"../../x"', b'"/etc"', b'"\\u0000"',
    b"[]", b"{}", b"[[]]", b'{"a": 1}', b"[" * 40 + b"]" * 40, b'"' + b"0" * 64 + b'"', b'"2026-01-01T00:00:00+00:00"',
)  # fmt: skip


def read_changed_record(data: bytes) -> object:
    """A sound record in which values are replaced: one byte says which record, each further pair which value by which.

    Bytes changed at random hardly ever leave JSON that is JSON; these always do.
    """
    name = list(RECORDS)[data[0] % len(RECORDS)] if data else "run"
    seed, target = RECORDS[name]
    text = seed()
    for where, what in zip(data[1::2], data[2::2], strict=False):
        values = list(re.finditer(rb'(?<=[:,\[{] )("[^"]*"|-?[0-9.]+|true|false|null|\[\]|\{\})(?=[,\]}])', text))
        if values:
            place = values[where % len(values)]
            text = text[: place.start()] + VALUES[what % len(VALUES)] + text[place.end() :]
    return TARGETS[target].read(text)


# --- images -----------------------------------------------------------------------------------------------------------


def read_image(data: bytes) -> object:
    try:
        measured = measure_image(data, max_pixels=MOST_PIXELS, apply_exif=True)
    except ImageError:
        measured = None
    image = decode_image(data, max_pixels=MOST_PIXELS, apply_exif=True)
    if measured is not None and measured != (image.height, image.width):
        raise AssertionError(f"measured {measured}, decoded {(image.height, image.width)}")
    return image


def image_seeds() -> list[bytes]:
    """Small files of every format, and the odd ones that are small."""
    picture = Image.fromarray(np.arange(16 * 12 * 3, dtype=np.uint8).reshape(16, 12, 3))
    seeds = []
    for kind, options in (
        ("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("GIF", {}), ("BMP", {}), ("PPM", {}), ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {}), ("WEBP", {"lossless": True}), ("AVIF", {}),
        ("JPEG2000", {}), *([("HEIF", {})] if "HEIF" in FORMATS else []),
    ):  # fmt: skip
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        seeds.append(buffer.getvalue())
    odd = SHARED_DATA / "odd_images"
    files = sorted(path for path in odd.rglob("*") if path.is_file()) if odd.is_dir() else []
    return seeds + [path.read_bytes() for path in files if path.stat().st_size <= 4096]


RUN = (RunError,)
TARGETS = {
    "rle": Target(read_rle, rle_seeds, (ValueError,), 512),
    "polygons": Target(read_polygons, polygon_seeds, (ValueError,), 512),
    "pickle": Target(read_plain_pickle, pickles, (ValueError,)),
    "safetensors": Target(read_safetensors, lambda: [header()], (ValueError,)),
    "optimizer": Target(read_optimizer, optimizer_seeds, (Exception,), 8192, one_line=False),
    "config": Target(
        lambda data: in_model(CONFIG_FILE, data),
        lambda: [(model_folder() / CONFIG_FILE).read_bytes()],
        (ValueError,),
    ),
    "instances": Target(lambda data: read_instances_file("--gt", str(put("gt.json", data))), coco_seeds, RUN),
    "panoptic": Target(lambda data: read_panoptic_file("--gt", str(put("gt.json", data))), coco_seeds, RUN),
    "yaml": Target(read_config, lambda: YAML, RUN),
    "run": Target(
        in_run("run.json", lambda: read_run_record(output(), output().run("r"))),
        lambda: [run_json("r", num_shards=3, categories=[{"id": 1, "name": "cat", "isthing": 1}]).encode()],
        RUN,
    ),
    "plan record": Target(
        in_run("plan.json", lambda: read_plan_record(output(), output().run("r"))), lambda: [PLAN_JSON], RUN
    ),
    "report": Target(
        in_run("report.json", lambda: read_report(output(), output().run("r"))),
        lambda: [json.dumps(asdict(report("r"))).encode()],
        RUN,
    ),
    "journal": Target(
        in_run("journal/000001-000000.jsonl", lambda: list(Journal(output().run("r")).read(4))),
        lambda: ["".join(receipt("r", shard, 3).to_json() + "\n" for shard in range(3)).encode()],
        RUN,
    ),
    "attempts": Target(read_attempts, lambda: [b'{"host": "h", "accepted": {"1": [0, 1]}}'], RUN),
    "lease": Target(read_lease, lambda: [json.dumps(LEASE).encode()], RUN),
    "records": Target(
        read_changed_record, lambda: [bytes((n, *more)) for n in range(len(RECORDS)) for more in ((), (3, n))], RUN, 32
    ),
    "plan": Target(read_plan, plan_seeds, RUN, 8192),
    "tar": Target(inputs.read_tar, inputs.tar_seeds, (ValueError,), 8192),
    "parquet": Target(inputs.read_parquet, inputs.parquet_seeds, RUN, 8192),
    "manifest": Target(inputs.read_manifest, inputs.manifest_seeds, RUN, 8192),
    "inventory": Target(inputs.read_inventory, inputs.inventory_seeds, RUN, 8192),
    "tar_index": Target(
        inputs.read_kept_index, inputs.kept_index_seeds, (ValueError, pa.ArrowException, OSError), 8192, one_line=False
    ),
    "image": Target(read_image, image_seeds, (ImageError,), 8192),
}
