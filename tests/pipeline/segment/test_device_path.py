"""The path of a batch over a CUDA device, without one: `cuda` tensors without values, every operation counted."""

import functools
import io
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from m2f_core.config.backbones import SwinConfig
from m2f_core.config.mask2former import Mask2FormerConfig
from m2f_core.config.maskformer import MaskFormerConfig
from m2f_core.config.oneformer import OneFormerConfig
from m2f_core.families import oneformer
from m2f_core.families.eomt import family as eomt
from m2f_core.families.registry import family_of_type
from m2f_core.images.image_size import ImageSize
from m2f_core.inference import panoptic
from m2f_core.inference.settings import (
    FamilyRules,
    InstanceSettings,
    PanopticSettings,
    SemanticSettings,
)
from m2f_core.model.cuda_graphs import GraphedForward
from pipeline.segment.device_model import Network
from pipeline.segment.segmenter import Segmenter
from pipeline.telemetry.costs import Costs
from tests.benchmarks import device_card
from tests.core.model.test_cuda_graphs import small_config
from tests.support.device_counts import Counted, DeviceCounts
from tests.support.fake_cuda import CUDA, fake_cuda
from tests.support.fake_network import ResultsAwaitedError, fake_network, images_of, table_of
from tests.support.host_as_device import HostAsDevice
from tests.support.seeded_eomt import make_eomt, tiny_config
from tests.support.segmenting import encoded, small_spec

STUFF = frozenset(range(80, 133))
TASKS = {
    "panoptic": PanopticSettings.defaults("reference", STUFF),
    "panoptic hf": PanopticSettings.defaults("hf", STUFF),
    "instance": InstanceSettings.defaults("reference"),
    "instance hf": InstanceSettings.defaults("hf"),
    "semantic, masks": SemanticSettings.defaults("reference", "masks"),
    "semantic, scores": SemanticSettings.defaults("reference", "scores"),
    "semantic hf": SemanticSettings.defaults("hf"),
}
KEPT = 12  # of 20 queries
ONE_SIZE, SIZES = [(480, 640)] * 3, [(480, 640), (470, 640), (1080, 1440)]


def run(
    network: Network,
    task: str | InstanceSettings,
    sizes: list[tuple[int, int]] = ONE_SIZE,
    rules: FamilyRules | None = None,
) -> tuple[Counted, int]:
    """What a batch asks of the device, and how often the host waits for it."""
    chosen = TASKS[task] if isinstance(task, str) else task
    network.inference = chosen if rules is None else replace(chosen, rules=rules)
    config = network.model.config
    images = images_of(network, *sizes)
    network.cuda.tables = table_of(network.inference, len(images), config.num_queries, config.num_labels, KEPT)
    network.cuda.waits = 0
    with DeviceCounts() as counts, pytest.raises(ResultsAwaitedError):
        network.run(images, Costs())
    return counts.counted, network.cuda.waits


SOME = ("panoptic", "instance hf")


def counted(
    precision: str = "bf16",
    backbone: str = "swin",
    image_size: str = "256:427",
    embeddings: bool = False,
    tasks: tuple[str, ...] = tuple(TASKS),
) -> dict[str, tuple[Counted, int]]:
    """Of batches after the first: by task; of one image; with all tasks, of images of other sizes."""
    return _counted(precision, backbone, image_size, embeddings, tasks)


@functools.cache
def _counted(
    precision: str, backbone: str, image_size: str, embeddings: bool, tasks: tuple[str, ...]
) -> dict[str, tuple[Counted, int]]:
    size = ImageSize.parse(image_size)
    with fake_network(small_config(backbone), precision, TASKS["panoptic"], size, embeddings=embeddings) as network:
        run(network, "panoptic")
        found = {"one": run(network, "panoptic", ONE_SIZE[:1])} | {task: run(network, task) for task in tasks}
        return found | ({"sizes": run(network, "instance", SIZES)} if len(tasks) == len(TASKS) else {})


@pytest.mark.parametrize(
    ("precision", "backbone"),
    [
        ("bf16", "swin"),
        ("fp32", "resnet"),
        pytest.param("fp32", "swin", marks=pytest.mark.thorough),
        pytest.param("bf16", "resnet", marks=pytest.mark.thorough),
    ],
)
@pytest.mark.parametrize("task", TASKS)
def test_a_batch_waits_twice_and_brings_little_back(task, precision, backbone):
    batch, waits = counted(precision, backbone)[task]
    assert waits == (1 if task.startswith("semantic") else 2)
    assert not batch.waits, "nothing else waits: no value is read, no copy blocks"
    logits = 3 * 20 * 64 * 108 * 4
    assert len(batch.to_host) == waits and sum(copy.num_bytes for copy in batch.to_host) < logits / 2
    image_bytes = 480 * 640 * 3
    images = [copy.num_bytes for copy in batch.to_device if copy.num_bytes >= image_bytes]
    assert images == [image_bytes] * 3, "as they were decoded, and nothing else that is as large"
    products = {operation.dtype for operation in batch.operations if operation.name in ("addmm", "convolution")}
    assert products == ({torch.float32} if precision == "fp32" else {torch.bfloat16, torch.float32})


@pytest.mark.parametrize("task", ["panoptic", "panoptic hf", "instance hf", "semantic hf"])
def test_other_families_take_the_same_path(task):
    """Few waits and small copies, also with the rules of the family."""
    family = family_of_type("maskformer")
    config = MaskFormerConfig.tiny(id2label={0: "a", 1: "b"})
    with fake_network(config, "bf16", TASKS[task], ImageSize.parse("256:427")) as network:
        run(network, task, rules=family.rules)
        batch, waits = run(network, task, rules=family.rules)
    assert waits == (1 if task.startswith("semantic") else 2) and not batch.waits
    assert sum(copy.num_bytes for copy in batch.to_host) < 3 * 20 * 64 * 108 * 4 / 2
    products = {operation.dtype for operation in batch.operations if operation.name in ("addmm", "convolution")}
    assert products == {torch.bfloat16}


def test_a_model_that_reads_the_task_takes_the_same_path():
    """Also to instances of which a pixel has one at most, for which the masks of pairs compete."""
    exclusive = InstanceSettings.defaults("hf", None, oneformer.RULES_OF_INFERENCE)
    config = OneFormerConfig.tiny(id2label={0: "a", 1: "b"})
    with fake_network(config, "bf16", exclusive, ImageSize.parse("256:427"), embeddings=True) as network:
        run(network, "panoptic")
        for task in ("panoptic", exclusive):
            batch, waits = run(network, task)
            assert waits == 2 and not batch.waits
            assert [operation.name for operation in batch.operations].count("triton.attend") == 2


def test_images_of_other_sizes_share_a_batch():
    batch, waits = counted()["sizes"]
    assert waits == 2 and not batch.waits


EOMT = eomt.FAMILY.rules


def of_windows(precision: str, *sizes: tuple[int, int]) -> tuple[Counted, int, int]:
    """A batch of a family whose network sees an image as windows; and how many of them."""
    semantic = replace(SemanticSettings.defaults("reference", "scores"), rules=EOMT)
    config = tiny_config(hidden_size=96)
    with fake_network(config, precision, semantic) as network:
        images = images_of(network, *sizes)
        for _ in range(2):
            with DeviceCounts() as counts, pytest.raises(ResultsAwaitedError):
                network.cuda.waits = 0
                network.run(images, Costs())
        return counts.counted, network.cuda.waits, sum(image.geometry.num_inputs for image in images)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_windows_of_images_come_back_in_one_copy(precision):
    batch, waits, num_windows = of_windows(precision, (100, 300), (480, 640), (130, 60))
    assert num_windows == 3 + 2 + 3
    assert waits == 1 and not batch.waits and len(batch.to_host) == 1
    scores = sum(8 * height * width * 4 for height, width in ((100, 300), (480, 640), (130, 60)))
    assert batch.to_host[0].num_bytes < scores / 2


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_a_family_that_pads_with_black_goes_the_same_way(task):
    settings = {"panoptic": PanopticSettings.defaults("hf", STUFF, EOMT)}
    settings["instance"] = InstanceSettings.defaults("hf", rules=EOMT)
    config = tiny_config()
    with fake_network(config, "bf16", settings[task]) as network:
        for _ in range(2):
            images = images_of(network, *SIZES)
            assert len({image.geometry.padded_hw for image in images}) == 1, "all sizes share a batch"
            network.cuda.waits = 0
            network.cuda.tables = table_of(settings[task], len(images), config.num_queries, config.num_labels, KEPT)
            with DeviceCounts() as counts, pytest.raises(ResultsAwaitedError):
                network.run(images, Costs())
        assert network.cuda.waits == 2 and not counts.counted.waits


@pytest.mark.parametrize("mode", ["reference", "hf"])
def test_windows_with_values_give_what_the_cpu_gives(mode, tmp_path):
    make_eomt(tmp_path, "semantic")
    inference = replace(SemanticSettings.defaults(mode, "scores"), rules=EOMT)
    changes = {"inference": inference, "image_size": None, "batch_size": 4}
    expected = Segmenter(small_spec(tmp_path, **changes))
    one = Segmenter(small_spec(tmp_path, **changes))
    one.network.cuda = HostAsDevice()
    for ours, theirs in zip(one.segment(PHOTOGRAPHS), expected.segment(PHOTOGRAPHS), strict=True):
        assert [s.class_id for s in ours.segments] == [s.class_id for s in theirs.segments]
        assert len(ours.segments) > 1
        for a, b in zip(ours.segments, theirs.segments, strict=True):
            assert a.score == pytest.approx(b.score, abs=1e-3)
            assert a.mask.area == pytest.approx(b.mask.area, rel=0.02, abs=5)
    together, alone = expected.segment(PHOTOGRAPHS), [expected.segment([data])[0] for data in PHOTOGRAPHS]
    assert [one.segments for one in together] == [one.segments for one in alone]


@pytest.mark.parametrize("image_size", [pytest.param("384x384", marks=pytest.mark.thorough), "800:1333"])
def test_other_sizes_of_the_network(image_size):
    for batch, waits in counted(image_size=image_size, tasks=SOME).values():
        assert waits <= 2 and not batch.waits


def test_embeddings_come_with_the_results():
    for task in ("panoptic", "instance hf"):
        plain, (rich, waits) = counted()[task][0], counted(embeddings=True, tasks=SOME)[task]
        assert waits == 2 and not rich.waits
        more = rich.to_host[-1].num_bytes - plain.to_host[-1].num_bytes
        assert more == 3 * KEPT * 64 * 2, "a half float for each number of each query that may be a segment"


def test_launches_do_not_grow_with_masks_and_hardly_with_images():
    """Or starting kernels would take longer than the kernels."""
    one, three = (counted()[name][0] for name in ("one", "panoptic"))
    assert three.launches - one.launches <= 2 * 15 < KEPT * 3
    assert [operation.name for operation in one.operations].count("triton.attend") == 2, "one launch for each layer"


def test_from_the_fourth_batch_of_a_shape_on_a_graph_plays_the_model(caplog):
    with fake_network(small_config("swin"), "bf16", TASKS["panoptic"], ImageSize.parse("64:128")) as network:
        network.forward = GraphedForward(network._forward)
        launches = [run(network, "panoptic", [(60, 80)] * 2)[0].launches for _ in range(4)]
        assert len(network.forward.recorded) == 1 and not caplog.records
    assert launches[0] == launches[1], "the model"
    assert launches[2] > 2 * launches[1], "and twice more to load its kernels, and once to record it; it plays already"
    assert launches[3] < launches[1] / 5, "the input is copied to where the graph reads it; the graph starts at once"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_products_in_float32_use_tf32_in_the_model_of_bf16_alone(precision, monkeypatch):
    seen = {}
    with fake_network(small_config("swin"), precision, TASKS["panoptic"], ImageSize.parse("64:128")) as network:
        forward, find = network.model.forward, panoptic._find_codes
        allowed = torch.backends.cuda.matmul
        monkeypatch.setattr(
            network.model, "forward", lambda *args, **others: (seen.update(model=allowed.allow_tf32), forward(*args))[1]
        )
        monkeypatch.setattr(
            panoptic, "_find_codes", lambda *args: (seen.update(reduction=allowed.allow_tf32), find(*args))[1]
        )
        run(network, "panoptic", [(60, 80)])
    assert seen == {"model": precision == "bf16", "reduction": False}


def test_weights_are_converted_once_not_in_every_pass():
    fp32, bf16 = counted("fp32", tasks=("panoptic",))["panoptic"][0], counted()["panoptic"][0]
    assert bf16.launches - fp32.launches < 120, "conversions of activations remain"


def test_everything_but_the_model_is_little_beside_it():
    """By the data sheet of an H100, for Swin-T at the size of the paper, kernel by kernel; a test of counts."""
    config = Mask2FormerConfig(backbone_config=SwinConfig(), id2label={n: f"class {n}" for n in range(133)})
    card = device_card.count(config, "bf16", "panoptic", (480, 640), ImageSize.parse("800:1333"), 1)
    bounds = device_card.bounds_of(card, 1, "H100", device_card.GPUS["H100"])
    assert 1.0 < bounds["all over model"] <= 1.15
    # 420 GFLOP by PyTorch's count of transformers' model with the masks of the last layer alone
    assert 400 < sum(operation.flops for operation in card.parts["model"].operations) / 1e9 < 440


def test_a_value_that_is_read_or_a_tensor_of_another_device_is_seen():
    from torch._subclasses.fake_tensor import DataDependentOutputException

    with fake_cuda(), DeviceCounts() as counts:
        there = torch.zeros(4, device=CUDA)
        with pytest.raises(DataDependentOutputException):
            bool(there.sum() > 0)
        with pytest.raises(RuntimeError, match="device"):
            there + torch.zeros(4)
        there.to("cpu")
        torch.zeros(4).to(CUDA)
    assert counts.counted.waits == {"_local_scalar_dense": 1, "_to_copy to the host": 1, "_to_copy to the device": 1}


# ---------------------------------------------------------------- the same path with values, on the CPU as the device


def as_device(checkpoint, inference=TASKS["panoptic"], arrives=lambda number: None, **changes) -> Segmenter:
    segmenter = Segmenter(small_spec(checkpoint, inference=inference, batch_size=4, **changes))
    segmenter.network.cuda = HostAsDevice(arrives)
    return segmenter


UNSURE = {
    "panoptic": PanopticSettings("reference", 0.0, 0.0, 0.5),
    "panoptic hf": PanopticSettings("hf", 0.3, 0.0, 0.5),
    **{name: settings for name, settings in TASKS.items() if not name.startswith("panoptic")},
}
PHOTOGRAPHS = [encoded(60, 80, 1), encoded(64, 85, 2), encoded(60, 80, 3), encoded(300, 400, 4)]


@pytest.mark.parametrize("task", UNSURE)
def test_with_values_it_gives_what_the_cpu_gives_and_reads_nothing_beside_its_copies(task, tiny_checkpoint):
    embeddings = not task.startswith("semantic")
    expected = Segmenter(small_spec(tiny_checkpoint, inference=UNSURE[task], batch_size=4, embeddings=embeddings))
    one = as_device(tiny_checkpoint, UNSURE[task], embeddings=embeddings)
    with DeviceCounts("cpu") as counts:
        images = prepared(one.network, PHOTOGRAPHS)
        found = one.network.run(images, Costs())
    assert not counts.counted.waits
    # The scattered masks of these images may have more runs than there is room for.
    assert len(one.network.cuda.fetched) <= (2 if task.startswith("semantic") else 3)
    for ours, theirs in zip(one.segment(PHOTOGRAPHS), expected.segment(PHOTOGRAPHS), strict=True):
        assert len(ours.segments) == len(theirs.segments) > 0
        for a, b in zip(ours.segments, theirs.segments, strict=True):
            assert (a.segment_id, a.class_id) == (b.segment_id, b.class_id)
            assert a.score == pytest.approx(b.score, abs=1e-3) and a.embedding == b.embedding
            assert a.mask.area == pytest.approx(b.mask.area, rel=0.02, abs=5)
    assert len(found) == 4


def test_logits_that_are_kept_come_with_the_results_and_one_more_table(tiny_checkpoint):
    kept = []
    for inside in (
        Segmenter(small_spec(tiny_checkpoint, keep_logits=0.2)),
        as_device(tiny_checkpoint, keep_logits=0.2),
    ):
        found = inside.network.run(prepared(inside.network, PHOTOGRAPHS), Costs())
        kept.append([one.kept for one in found])
    assert len(inside.network.cuda.fetched) == 3
    for ours, theirs in zip(*kept, strict=True):
        assert np.array_equal(ours.queries, theirs.queries) and len(ours.queries)
        assert np.array_equal(ours.codes, theirs.codes) and np.array_equal(ours.class_logits, theirs.class_logits)


def prepared(network, photographs):
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in photographs]
    return [network.prepare(i, network.processor.geometry(i.height, i.width), "x") for i in images]


def test_while_results_are_awaited_the_next_batch_runs(tiny_checkpoint):
    """Of the two shards in an actor, one has the device while the other one reads its results."""
    both_started = threading.Barrier(2, timeout=60)
    one = as_device(tiny_checkpoint, TASKS["semantic, masks"], lambda number: both_started.wait())
    images = prepared(one.network, PHOTOGRAPHS)
    found = []
    threads = [threading.Thread(target=lambda: found.append(one.network.run(images, Costs()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2, "each waited for its results until both batches had been given to the device"
    assert np.array_equal(*[results[0].result.label_map_HW for results in found])
