"""Images that are cut into tiles: opened once, batched, merged; their errors, their memory, their place in a shard."""

import io
import threading
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from PIL import Image

from m2f_core.checkpoints.checkpoint import Checkpoint
from m2f_core.inference.settings import FamilyRules, InstanceSettings, PanopticSettings, SemanticSettings
from m2f_core.inference.tiling import Tiling
from m2f_core.masks.rle import decode
from pipeline.commit.encode import EncodeSpec, encode_shard
from pipeline.decoding.decode import open_image
from pipeline.errors import ErrorCode, ImageError
from pipeline.guard.planted_faults import marker
from pipeline.segment import cut_images, isolate, preparation
from pipeline.segment.actor import segmented_table
from pipeline.segment.cut_images import CutImage, open_together
from pipeline.segment.isolate import segment_one_by_one
from pipeline.segment.postprocess import merged_segments
from pipeline.segment.segmenter import Segmenter
from pipeline.segment.spec import SegmentedImage
from tests.pipeline.segment.test_actor import fetched
from tests.support.segmenting import encoded, small_spec
from tests.support.waiting import PATIENCE_SECONDS

TILING = Tiling(64, 16)
TASKS = {
    "panoptic": PanopticSettings.defaults("reference", frozenset({5, 6, 7})),
    "instance": InstanceSettings.defaults("reference", frozenset(range(5))),
    "semantic": SemanticSettings.defaults("reference"),
    "exclusive": replace(InstanceSettings.defaults("hf", None, FamilyRules(hf_exclusive=True)), score_threshold=0.1),
}


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("task", TASKS)
def test_each_tile_is_an_image_of_its_own(tiny_checkpoint, task):
    """The result is that of the tiles as files, merged; images beside it are as before, each in its place."""
    data, beside = encoded(150, 90, seed=3), [encoded(40, 64, seed=1), encoded(seed=2)[:-200]]
    plain = Segmenter(small_spec(tiny_checkpoint, inference=TASKS[task]))
    segmenter = Segmenter(small_spec(tiny_checkpoint, inference=TASKS[task], tiling=TILING))
    small, cut, broken, again = segmenter.segment([beside[0], data, beside[1], data])
    assert [small] == plain.segment(beside[:1])
    assert isinstance(broken, ImageError) and broken.code is ErrorCode.DECODE_FAILED
    tiles = TILING.tiles(150, 90)
    assert len(tiles) == 6
    files = []
    for tile in tiles:
        buffer = io.BytesIO()
        box = tile.box
        Image.fromarray(pixels_of(data)[box.top : box.bottom, box.left : box.right]).save(buffer, "PNG")
        files.append(buffer.getvalue())
    found = [result.segments for result in plain.segment(files)]
    wanted = merged_segments(tiles, found, (150, 90), TASKS[task])
    assert cut == again == SegmentedImage(150, 90, wanted)
    check_ids(cut, task)
    # The encoder checks every invariant of the tables.
    spec = EncodeSpec(
        "run", datetime.now(UTC), "f00d", 1, TASKS[task].task, Checkpoint(tiny_checkpoint).labels.categories
    )
    tables = encode_shard(0, segmented_table(fetched((data, None, "new")).drop_columns(["data"]), [cut]), spec)
    assert tables["images"].column("num_segments").to_pylist() == [len(cut.segments)]


def check_ids(image: SegmentedImage, task: str) -> None:
    ids = [segment.segment_id for segment in image.segments]
    assert ids and len(set(ids)) == len(ids)
    masks = np.array([decode(segment.mask.counts, image.height, image.width) for segment in image.segments])
    if task == "semantic":
        assert ids == [1 + segment.class_id for segment in image.segments] == sorted(ids)
        assert (masks.sum(0) == 1).all(), "every pixel has a class"
    else:
        assert ids == list(range(1, len(ids) + 1))
    if task in ("panoptic", "exclusive"):
        assert masks.sum(0).max() == 1
    if task == "instance":
        scores = [segment.score for segment in image.segments]
        assert scores == sorted(scores, reverse=True)


def test_an_image_is_decoded_once_and_given_up_with_its_last_tile(tiny_checkpoint, monkeypatch):
    opened, closed = [], []

    class Watched:
        def __init__(self, regions):
            self.read = regions.read

        def __del__(self):
            closed.append(len(opened))

    def open_watched(*args, **options):
        opened.append(args[0])
        return Watched(open_image(*args, **options))

    monkeypatch.setattr(preparation, "open_image", open_watched)
    monkeypatch.setattr(cut_images, "PIXELS_TOGETHER", 20_000)
    images = [encoded(150, 90, seed=seed) for seed in range(3)]  # 13,500 pixels each
    results = Segmenter(small_spec(tiny_checkpoint, tiling=TILING)).segment(images)
    assert all(isinstance(result, SegmentedImage) for result in results)
    assert opened == images
    assert closed == [1, 2, 3], "each before the next is opened"


def test_tiles_of_small_images_share_batches(tiny_checkpoint, monkeypatch):
    segmenter = Segmenter(small_spec(tiny_checkpoint, tiling=TILING, batch_size=4))
    forward, batches = segmenter.network.model.forward, []
    monkeypatch.setattr(
        segmenter.network.model, "forward", lambda pixels: batches.append(len(pixels)) or forward(pixels)
    )
    segmenter.segment([encoded(64, 90, seed=seed) for seed in range(6)])
    assert batches == [4, 4, 4], "six images of two tiles"


def test_images_are_opened_together_up_to_a_bound(monkeypatch):
    monkeypatch.setattr(cut_images, "PIXELS_TOGETHER", 30_000)
    geometry = {size: preparation.ImageGeometry(size, size, size) for size in ((64, 64), (64, 32))}
    sizes = [(100, 100), (150, 100), (100, 32), (100, 60), (200, 200), (70, 70)]
    images = [
        CutImage(str(number), hw, TILING, geometry[TILING.tile_hw(*hw) if hw[1] == 32 else (64, 64)], lambda: None)
        for number, hw in enumerate(sizes)
    ]
    assert [[image.name for image in group] for group in open_together(images)] == [
        ["2"],
        ["0", "1"],
        ["3"],
        ["4"],
        ["5"],
    ]


def test_large_images_of_two_shards_are_not_open_at_the_same_time(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(cut_images, "PIXELS_TOGETHER", 1000)
    monkeypatch.setattr("pipeline.segment.segmenter.PIXELS_TOGETHER", 1000)
    segmenter = Segmenter(small_spec(tiny_checkpoint, tiling=TILING, threads=2))
    number_open, most, lock = [0], [0], threading.Lock()

    class Counted:
        def __init__(self, regions):
            self.read = regions.read
            with lock:
                number_open[0] += 1
                most[0] = max(most[0], number_open[0])

        def __del__(self):
            with lock:
                number_open[0] -= 1

    monkeypatch.setattr(preparation, "open_image", lambda *args, **options: Counted(open_image(*args, **options)))
    results = {}

    def work(shard):
        results[shard] = segmenter.segment([encoded(150, 90, seed=10 * shard + i) for i in range(3)])

    threads = [threading.Thread(target=work, args=[shard]) for shard in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert sorted(results) == [0, 1] and most == [1]
    assert all(isinstance(result, SegmentedImage) for shard in results.values() for result in shard)


def test_the_first_error_of_a_tile_is_that_of_the_image(tiny_checkpoint, monkeypatch):
    segmenter = Segmenter(small_spec(tiny_checkpoint, tiling=TILING, batch_size=1))
    forward, number = segmenter.network.model.forward, iter(range(100))

    def breaks(pixels):
        if next(number) % 6 == 4:
            raise RuntimeError("the device says no")
        return forward(pixels)

    monkeypatch.setattr(segmenter.network.model, "forward", breaks)
    cut, beside = segmenter.segment([encoded(150, 90), encoded(60, 40)])
    assert cut.code is ErrorCode.INFERENCE_FAILED and "the device says no" in cut.message
    assert isinstance(beside, SegmentedImage)
    truncated = Segmenter(small_spec(tiny_checkpoint, tiling=TILING)).segment([encoded(150, 90)[:-500]])
    assert truncated[0].code is ErrorCode.DECODE_FAILED


def test_an_image_above_the_limit_is_refused_before_a_pixel_is_decoded(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(preparation, "open_image", None)
    spec = small_spec(tiny_checkpoint, tiling=TILING, max_image_pixels=13_499)
    [result] = Segmenter(spec).segment([encoded(150, 90)])
    assert result.code is ErrorCode.TOO_LARGE and "13,500 pixels" in result.message


def test_the_memory_bound_allows_one_large_image_beside_tiles(tiny_checkpoint):
    spec = {"max_image_pixels": 500_000_000}
    cut = Segmenter(small_spec(tiny_checkpoint, tiling=TILING, **spec)).memory_bound(decoding=4, batch_size=2)
    whole = Segmenter(small_spec(tiny_checkpoint, **spec)).memory_bound(decoding=4, batch_size=2)
    assert 500_000_000 * 16 < cut.room < whole.room / 5


def test_alone_in_a_process_each_batch_has_the_time_of_a_step(tiny_checkpoint, monkeypatch):
    """An image of many tiles goes on as long as its batches do; one that hangs is a row."""
    spec = small_spec(tiny_checkpoint, tiling=TILING, planted_faults=True)
    heard = []
    message = isolate._Child._message
    monkeypatch.setattr(isolate._Child, "_message", lambda *args: heard.append(message(*args)) or heard[-1])
    data = encoded(150, 90, image_format="JPEG")
    good, abort = segment_one_by_one(spec, [data, data + marker("abort")])
    assert [good] == Segmenter(spec).segment([data])
    assert heard[1:5] == ["a batch is done"] * 3 + [good], "six tiles in batches of two"
    assert str(abort) == "crashed_worker: a child process of its own ended: SIGABRT"
