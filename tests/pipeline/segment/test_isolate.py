"""A child process dies, hangs or grows over an image: that image has a row that says how, the others their results."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import ErrorCode, ImageError, RunError
from pipeline.guard.planted_faults import marker
from pipeline.segment import isolate
from pipeline.segment.isolate import segment_one_by_one
from pipeline.segment.segmenter import Segmenter
from tests.support.segmenting import encoded, small_spec
from tests.support.waiting import PATIENCE_SECONDS, wait_until


def jpeg(seed, marker=b""):
    return encoded(seed=seed, image_format="JPEG") + marker


@pytest.fixture
def children(monkeypatch):
    """The child processes that a test starts."""
    started = []
    popen = isolate.subprocess.Popen
    monkeypatch.setattr(
        isolate.subprocess, "Popen", lambda *args, **options: started.append(popen(*args, **options)) or started[-1]
    )
    return started


@pytest.mark.parametrize(
    "hangs",
    [["hang-with-lock"], pytest.param(["hang", "hang-with-lock"], marks=pytest.mark.thorough)],
    ids=" and ".join,
)
def test_each_way_to_die_is_a_row_and_all_others_are_as_they_would_be(tiny_checkpoint, children, monkeypatch, hangs):
    """Each death costs a new child, which takes seconds to start; a death between two images costs no image."""
    spec = small_spec(tiny_checkpoint, planted_faults=True)
    segment = isolate._Child.segment

    def impatient(child, data):
        """What hangs gets a second, and a good image on a busy machine what it needs."""
        child.spec = replace(spec, step_timeout=1.0 if b"m2f-drill:hang" in data else PATIENCE_SECONDS)
        return segment(child, data)

    monkeypatch.setattr(isolate._Child, "segment", impatient)
    images = [
        jpeg(0),
        jpeg(1, marker("abort")),
        None,
        jpeg(3),
        b"not an image",
        *(jpeg(4, marker(name)) for name in hangs),
        jpeg(8),
    ]

    def one_by_one():
        yield images[0]
        children[-1].kill()
        children[-1].wait()
        yield from images[1:]

    results = segment_one_by_one(spec, one_by_one())
    usual = Segmenter(small_spec(tiny_checkpoint))
    for index in (0, 2, 3, -1):
        assert [results[index]] == usual.segment([images[index]])
    said = {i: str(result) for i, result in enumerate(results) if isinstance(result, ImageError)}
    assert said.pop(4).startswith("unsupported: not an image")
    assert said.pop(1) == "crashed_worker: a child process of its own ended: SIGABRT"
    assert list(said.values()) == ["timed_out: alone in a process, not done after 1 s"] * len(hangs)
    assert len(children) == 3 + len(hangs), "one for each death, and the first"
    assert all(child.poll() is not None for child in children)


@pytest.mark.thorough
def test_a_child_that_grows_without_end_is_ended_by_its_parent(tiny_checkpoint):
    spec = small_spec(tiny_checkpoint, planted_faults=True, max_image_pixels=100_000)
    first, second = segment_one_by_one(spec, [jpeg(0, marker("allocate")), jpeg(1)])
    assert str(first).startswith("crashed_worker: alone in a process, which was ended because it grew by ")
    assert not isinstance(second, ImageError)


@pytest.mark.thorough
def test_a_child_killed_while_it_works_says_so(tiny_checkpoint, monkeypatch):
    spec = small_spec(tiny_checkpoint, planted_faults=True)
    look = isolate.MemoryBound.breach
    monkeypatch.setattr(isolate.MemoryBound, "breach", lambda bound, pid: os.kill(pid, signal.SIGKILL) or look(bound))
    [result] = segment_one_by_one(spec, [jpeg(0, marker("hang"))])
    assert str(result) == (
        "crashed_worker: a child process of its own ended: SIGKILL; the kernel sends it when memory runs out"
    )


def test_a_child_that_cannot_start_is_no_images_fault(tiny_checkpoint):
    with pytest.raises(RunError, match="same checkpoint"):
        segment_one_by_one(small_spec(tiny_checkpoint, weights_sha256="0" * 64), [jpeg(0)])


def test_a_child_that_dies_at_its_start_is_no_images_fault(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(isolate.sys, "executable", "/bin/false")
    with pytest.raises(RunError, match=r"cannot start: .*exit code 1"):
        segment_one_by_one(small_spec(tiny_checkpoint), [jpeg(0)])


ORPHAN = """
import sys
from pathlib import Path
from pipeline.guard.planted_faults import marker
from pipeline.segment import isolate
from tests.support.segmenting import encoded, small_spec
popen = isolate.subprocess.Popen
def start(*args, **options):
    process = popen(*args, **options)
    print(process.pid, flush=True)
    return process
isolate.subprocess.Popen = start
spec = small_spec(Path(sys.argv[1]), planted_faults=True)
isolate.segment_one_by_one(spec, [encoded(image_format="JPEG") + marker("hang")])
"""


def test_a_child_ends_with_its_parent(tiny_checkpoint):
    parent = isolate.subprocess.Popen(
        [isolate.sys.executable, "-c", ORPHAN, str(tiny_checkpoint)], stdout=isolate.subprocess.PIPE, text=True
    )
    child = int(parent.stdout.readline())
    wait_until(lambda: Path(f"/proc/{child}/oom_score_adj").read_text().strip() == "1000")
    parent.kill()
    parent.communicate()
    wait_until(lambda: not Path(f"/proc/{child}").exists())


def test_codes_of_isolation_are_those_of_the_tables():
    assert {ErrorCode.CRASHED_WORKER.value, ErrorCode.TIMED_OUT.value} == {"crashed_worker", "timed_out"}
