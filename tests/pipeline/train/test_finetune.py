"""What the driver of a training decides: how many CPUs a worker gets, what a failure is called, what is tried again."""

from dataclasses import replace

import pytest
import ray.train

from pipeline.cluster.resources import NodeGroup, Resources
from pipeline.errors import BrokenRunError, RunError, StoreUnavailableError
from pipeline.store.filesystem import open_filesystem
from pipeline.train import finetune
from pipeline.train.data import WorkerShare, load_batches
from pipeline.train.ray_train_files import LIST_OF_CHECKPOINTS
from pipeline.train.settings import FinetuneSettings
from tests.pipeline.train.test_data import samples_of
from tests.support.coco_folders import write_coco_folder

SETTINGS = FinetuneSettings(images="i", output="o", panoptic_gt="p", architecture="swin-tiny", batch_size=16)
HEAD, GPU_NODES = NodeGroup(cpus=16, gpus=0, count=1, count_now=1), NodeGroup(cpus=3, gpus=1, count=8, count_now=2)


@pytest.mark.parametrize(
    ("changes", "groups", "expected"),
    [
        ({"workers": 8}, (HEAD, GPU_NODES), (3, True)),  # those of the head are of no use to a worker with a GPU
        ({"workers": 2}, (replace(GPU_NODES, cpus=32),), (4, True)),
        ({"workers": 2, "cpus_per_worker": 2}, (HEAD, GPU_NODES), (2, True)),
        ({"workers": 4, "device": "cpu"}, (HEAD, GPU_NODES), (4, False)),
        ({"workers": 2}, (replace(HEAD, cpus=3),), (1, False)),
        ({"workers": 1}, (HEAD, replace(GPU_NODES, count=0, count_now=0)), (4, False)),
    ],
)
def test_cpus_of_a_worker(monkeypatch, changes, groups, expected):
    monkeypatch.setattr(finetune, "connect", lambda **_: Resources(groups))
    assert finetune._room(replace(SETTINGS, **changes)) == expected


def test_no_room_names_both_ways_out(monkeypatch):
    monkeypatch.setattr(finetune, "connect", lambda **_: Resources((HEAD, GPU_NODES)))
    message = "8 workers with 4 CPUs and a GPU each do not fit .* room for 0; lower --workers or --cpus-per-worker"
    with pytest.raises(RunError, match=message):
        finetune._room(replace(SETTINGS, workers=8, cpus_per_worker=4))


class FailsFirst:
    """A trainer that fails as often as there are failures, and then is done."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.fits = 0

    def fit(self) -> str:
        self.fits += 1
        if self.failures:
            raise self.failures.pop(0)
        return "done"


def workers_failed(*errors: Exception) -> ray.train.WorkerGroupError:
    return ray.train.WorkerGroupError("Traceback (most recent call last): ...", dict(enumerate(errors)))


def test_dead_workers_and_silent_stores_are_tried_again():
    trainer = FailsFirst(
        workers_failed(ray.exceptions.ActorDiedError()), workers_failed(StoreUnavailableError("image i cannot be read"))
    )
    assert finetune._fit(lambda: trainer, max_failures=2) == "done"
    assert trainer.fits == 3


def test_too_many_failures_end_it():
    trainer = FailsFirst(*(workers_failed(OSError("disk full\nand more")) for _ in range(3)))
    with pytest.raises(BrokenRunError, match="the training broke: OSError: disk full and more"):
        finetune._fit(lambda: trainer, max_failures=1)
    assert trainer.fits == 2


def test_what_would_fail_again_is_not_tried_again():
    """Also where the other workers complain first that this one has gone."""
    trainer = FailsFirst(workers_failed(RuntimeError("connection closed by peer"), RunError("image i is none")))
    with pytest.raises(RunError, match=r"^the training cannot continue: image i is none$"):
        finetune._fit(lambda: trainer, max_failures=3)
    assert trainer.fits == 1


def test_a_failure_in_a_loading_process_says_what_it_would_have_said_here(tmp_path):
    folder = write_coco_folder(tmp_path / "set", [(32, 32)])
    (folder.images / "001.png").write_bytes(b"no image")
    with pytest.raises(RunError) as there:
        next(load_batches(samples_of(folder, True), WorkerShare(1, 0, 1), range(1), 1))
    with pytest.raises(RunError) as here:
        samples_of(folder, True)[0]
    assert "Traceback" in str(there.value)
    assert finetune._reason(there.value) == finetune._reason(here.value) == str(here.value)


class DeadQueue:
    """A queue whose actor is gone."""

    def empty(self) -> bool:
        return False

    def get(self, timeout: float) -> str:
        raise ray.exceptions.ActorDiedError


def test_without_its_queue_a_training_is_silent_and_nothing_else(caplog):
    with finetune._print_lines(DeadQueue()):
        pass
    assert not caplog.records


def test_a_death_among_rays_own_processes_breaks_it_in_one_line():
    with pytest.raises(BrokenRunError, match="the training broke: "):
        finetune._fit(lambda: FailsFirst(ray.exceptions.ActorDiedError()), max_failures=3)


def train_folder(tmp_path, snapshot: bytes | None):
    """Three checkpoints, of which Ray knows two if its list is whole."""
    train = tmp_path / "train"
    for name in ("checkpoint_1", "checkpoint_2", "checkpoint_3"):
        (train / name).mkdir(parents=True)
        (train / name / "model.safetensors").write_bytes(b"weights")
    if snapshot is not None:
        (train / LIST_OF_CHECKPOINTS).write_bytes(snapshot)
    return train


SNAPSHOT = b'{"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_1"}, {"checkpoint_dir_name": "checkpoint_2"}]}'


def test_checkpoints_that_ray_does_not_know_are_removed(tmp_path):
    train = train_folder(tmp_path, SNAPSHOT)
    finetune._remove_unfinished_checkpoints(*open_filesystem(str(tmp_path)))
    assert {path.name for path in train.iterdir()} == {"checkpoint_1", "checkpoint_2", LIST_OF_CHECKPOINTS}


def test_before_the_first_is_whole_ray_knows_none(tmp_path):
    place = open_filesystem(str(tmp_path))
    assert finetune._whole_checkpoints(*place) == set()
    train_folder(tmp_path, None)
    assert finetune._whole_checkpoints(*place) == set()


@pytest.mark.parametrize("snapshot", [SNAPSHOT[:50], b"", b"{}", b"[]", b'{"checkpoint_results": [{}]}'])
def test_a_damaged_list_of_checkpoints_is_named_and_nothing_removed(tmp_path, snapshot):
    train = train_folder(tmp_path, snapshot)
    with pytest.raises(RunError, match=rf"{LIST_OF_CHECKPOINTS} is damaged .*checkpoint_1, checkpoint_2, checkpoint_3"):
        finetune._remove_unfinished_checkpoints(*open_filesystem(str(tmp_path)))
    assert len(list(train.iterdir())) == 4
