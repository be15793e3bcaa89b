"""A run on a cluster that grows and shrinks, with Ray's own autoscaler: its nodes are raylets on this machine.

The GPUs are numbers in Ray's books (tests/support/gpus_on_paper.py); everything else is the job's own and real.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.gpus_on_paper import HOLD, SHARD_SECONDS
from tests.support.places import ROOT
from tests.support.scaling_head import Node, ScalingHead, scaling_head
from tests.support.tables import read_report, results_by_image
from tests.support.waiting import PATIENCE_SECONDS, wait_until

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(3 * PATIENCE_SECONDS)]

NODE_TYPES = {
    "cpu": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    "gpu": {"resources": {"CPU": 2, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 3},
}
NUM_IMAGES, PER_SHARD = 48, 2
# Far above what a shard takes on one CPU, so that the run is bound by its GPUs, which are slow on paper.
SECONDS_A_SHARD = 6.0


@dataclass
class Seen:
    """What the cluster was while a job ran. `nodes` are those of each look, a second apart."""

    process: "subprocess.Popen[bytes]"
    log: Path
    nodes: list[list[Node]] = field(default_factory=list)

    def most(self, gpus: bool) -> int:
        """The most nodes at once, with GPUs or without."""
        return max(sum(bool(node.gpus) == gpus for node in nodes) for nodes in self.nodes)

    def finish(self) -> str:
        code = self.process.wait(PATIENCE_SECONDS)
        assert code == 0, self.log.read_text()[-5000:]
        return self.log.read_text()


@contextlib.contextmanager
def job(head: ScalingHead, log: Path, *flags: object, **environment: object) -> Iterator[Seen]:
    """The job on this cluster, which is looked at until the context ends."""
    words = [sys.executable, "-m", "tests.support.gpus_on_paper", *map(str, flags)]
    slow = {SHARD_SECONDS: str(SECONDS_A_SHARD), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    more = {name: str(value) for name, value in environment.items()}
    with log.open("wb") as file:
        process = subprocess.Popen(
            words, cwd=ROOT, env={**head.environment, **slow, **more}, stdout=file, stderr=subprocess.STDOUT
        )
    seen, over = Seen(process, log), threading.Event()

    def look() -> None:
        while not over.wait(1.0):
            seen.nodes.append(head.nodes())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture(scope="module")
def head() -> Iterator[ScalingHead]:
    with scaling_head(NODE_TYPES, max_workers=5, idle_minutes=0.1) as started:
        yield started


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    drawn = [sys.executable, ROOT / "jobs" / "make_scenes.py", "--output", folder, "--number", str(NUM_IMAGES)]
    subprocess.run(drawn, check=True, cwd=ROOT)
    return folder / "images"


@pytest.fixture(scope="module")
def flags(images, tiny_checkpoint):
    def of(output: Path, *more: object) -> list[object]:
        small = ["--image-size", "64:64", "--images-per-shard", PER_SHARD, "--cpus-per-actor", 1]
        return ["--input", images, "--output", output, "--model", tiny_checkpoint, *small, *more]

    return of


@pytest.fixture(scope="module")
def from_nothing(head, flags, tmp_path_factory) -> tuple[Path, Seen]:
    """A run that nobody disturbs, on a cluster without a node; its output, and what was seen."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with job(head, folder / "log", *flags(folder / "out")) as seen:
        seen.finish()
        wait_until(lambda: not head.nodes(), "for the nodes to go")
    return folder / "out", seen


def test_nodes_come_all_shards_run_nodes_go(from_nothing):
    output, seen = from_nothing
    report = read_report(output)
    assert (report["num_images"], report["num_failed"]) == (NUM_IMAGES, 0)
    assert len(results_by_image(output)) == NUM_IMAGES
    assert seen.nodes[0] == []
    assert 2 <= seen.most(gpus=True) <= 3
    assert seen.most(gpus=False) == 0, "the actors that read and write have room beside the GPUs"


def test_two_shards_get_at_most_two_nodes(head, flags, tmp_path):
    with job(head, tmp_path / "log", *flags(tmp_path / "out", "--limit", 2 * PER_SHARD)) as seen:
        seen.finish()
    assert read_report(tmp_path / "out")["num_images"] == 2 * PER_SHARD
    assert seen.most(gpus=True) <= 2 and seen.most(gpus=False) == 0


@pytest.mark.parametrize("notice", [0.0, 20.0], ids=["without_notice", "with_notice"])
def test_a_node_that_is_taken_away_costs_nothing(head, flags, from_nothing, tmp_path, notice):
    undisturbed, _ = from_nothing
    with job(head, tmp_path / "log", *flags(tmp_path / "out", "--gpu-actors", "2:3")) as seen:

        def working() -> list[Node]:
            return [node for node in head.nodes() if node.holds("SegmentImages")]

        wait_until(lambda: len(working()) >= 2, "for two nodes with model actors")
        wait_until(lambda: any((tmp_path / "out").glob("segments/run=*/*.parquet")), "for the first part")
        [victim, *_] = working()
        if notice:
            head.announce_end(victim, notice)
            time.sleep(notice)
        victim.kill()
        assert seen.process.poll() is None, "the job was done before the node was gone"
        wait_until(lambda: victim.node_id not in {node.node_id for node in head.nodes()}, "for the node to be gone")
        seen.finish()
    assert results_by_image(tmp_path / "out") == results_by_image(undisturbed), "0 lost, 0 doubled"
    assert read_report(tmp_path / "out")["num_images"] == NUM_IMAGES
    assert len({node.node_id for nodes in seen.nodes for node in nodes}) > seen.most(gpus=True), "none took its place"


def test_idle_nodes_go_while_the_last_shard_still_runs(head, flags, tmp_path):
    released = tmp_path / "released"
    held = {HOLD: f"0:{released}"}
    with job(head, tmp_path / "log", *flags(tmp_path / "out", "--limit", 12, "--gpu-actors", "3:3"), **held) as seen:
        wait_until(lambda: len(head.nodes()) == 3, "for three nodes")
        wait_until(lambda: len(head.nodes()) == 1, "for the idle nodes to go")
        assert seen.process.poll() is None
        released.touch()
        seen.finish()
    assert read_report(tmp_path / "out")["num_images"] == 12
    assert os.path.exists(released)


LABELLED = {
    "cpu": {**NODE_TYPES["cpu"], "labels": {"role": "helper"}, "max_workers": 1},
    "spot": {**NODE_TYPES["gpu"], "labels": {"market": "spot"}, "max_workers": 1},
    "on-demand": {**NODE_TYPES["gpu"], "labels": {"market": "on-demand"}, "max_workers": 2},
}
HELPERS = ("FetchImages", "EncodeAndWrite")


def test_spot_first_on_demand_as_fallback_and_helpers_on_nodes_of_their_own(flags, tmp_path):
    """Two model actors where there is one spot node: the second takes the fallback, no third node starts."""
    chosen = ["--model-nodes", "market=spot,on-demand", "--helper-nodes", "role=helper", "--gpu-actors", "2:2"]
    seen_all = tmp_path / "seen all"
    held = {HOLD: f"0:{seen_all}"}
    with (
        scaling_head(LABELLED, max_workers=4, idle_minutes=0.1) as head,
        job(head, tmp_path / "log", *flags(tmp_path / "out", "--limit", 24, *chosen), **held) as seen,
    ):

        def with_(*classes: str) -> list[Node]:
            return [node for node in head.nodes() if any(map(node.holds, classes))]

        wait_until(lambda: len(with_("SegmentImages")) == 2, "for two nodes with model actors")
        wait_until(lambda: with_(*HELPERS), "for a node with helpers")
        markets = sorted(node.labels["market"] for node in with_("SegmentImages"))
        roles = {node.labels.get("role") for node in with_(*HELPERS)}
        seen_all.touch()
        seen.finish()
    assert (markets, roles) == (["on-demand", "spot"], {"helper"})
    assert (seen.most(gpus=True), seen.most(gpus=False)) == (2, 1)
    assert read_report(tmp_path / "out")["num_images"] == 24


def test_shards_as_large_as_the_object_store_of_a_node_do_not_end_the_run(tiny_checkpoint, tmp_path):
    """80 MB of object store, shards of more than 60 MB, several under way: Ray spills to disk."""
    (tmp_path / "in").mkdir()
    noise = np.random.default_rng(7)
    for number in range(120):
        pixels = noise.integers(0, 256, (1200, 1200, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{number:03d}.jpg", quality=95)
    per_shard = sum(path.stat().st_size for path in (tmp_path / "in").iterdir()) / 3
    assert 60e6 < per_shard < 128 * 2**20
    small = {"gpu": {**NODE_TYPES["gpu"], "resources": {"CPU": 2, "GPU": 1, "object_store_memory": 80_000_000}}}
    words = ["--input", tmp_path / "in", "--output", tmp_path / "out", "--model", tiny_checkpoint]
    words += ["--image-size", "64:64", "--images-per-shard", 40, "--gpu-actors", "1:1", "--cpus-per-actor", 1]
    with scaling_head(small, max_workers=1) as head, job(head, tmp_path / "log", *words) as seen:
        seen.finish()
        [node] = head.nodes()
        assert node.resources["object_store_memory"] == 80_000_000
    report = read_report(tmp_path / "out")
    assert (report["num_images"], report["num_failed"]) == (120, 0)
