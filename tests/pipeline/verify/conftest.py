"""A finished run of two shards: images with segments, one without, a failed one and one that is gone from the input."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.support.run_books import Found, created_at, encoded, spec_of, write_run

SIZE = (6, 8)


def quarters(*labels: int) -> np.ndarray:
    """A map of four rectangles with these labels."""
    return np.array(labels, np.int32).reshape(2, 2).repeat(3, axis=0).repeat(4, axis=1)


def images(task: str) -> list[list[Found]]:
    """Two shards. In a semantic run, segments cover the image."""
    empty = quarters(1, 1, 1, 1) if task == "semantic" else quarters(0, 0, 0, 0)
    third = quarters(1, 1, 2, 3) if task == "semantic" else quarters(0, 1, 2, 3)
    return [
        [
            Found("s3://b/a.jpg", quarters(1, 2, 3, 3), (0, 1, 2), attributes='{"camera": 1}'),
            Found("s3://b/b.jpg", quarters(1, 2, 2, 1), (3, 0)),
            Found("s3://b/broken.jpg", failed="decode_failed"),
        ],
        [
            Found("s3://b/c.jpg", third, (0, 1, 2)),
            Found("s3://b/empty.jpg", empty, (3,)),
            Found("s3://b/gone.jpg", removed=True),
        ],
    ]


def write_night(uri: str, run_id: str = "night", task: str = "panoptic", days_ago: float = 0, **options) -> None:
    spec = spec_of(run_id, task, created_at(days_ago))
    shards = [encoded(shard, number, spec) for number, shard in enumerate(options.pop("shards", images(task)))]
    write_run(uri, run_id, shards, task=task, created=created_at(days_ago), **options)


@pytest.fixture(scope="session")
def sound_output(tmp_path_factory) -> Path:
    """Not to be changed."""
    place = tmp_path_factory.mktemp("verify") / "out"
    write_night(str(place))
    return place


@pytest.fixture
def output(sound_output, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(sound_output, tmp_path / "out"))
