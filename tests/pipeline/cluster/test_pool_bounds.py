"""Pools of actors follow the model actors that run and the shards that are left, in Ray Data's own loop."""

import functools
import os

import pytest
import ray
from ray.data import ActorPoolStrategy, DataContext

from pipeline.cluster.pool_bounds import PoolBounds, bound_pools
from tests.support.waiting import wait_until

NUM_SHARDS = 12
STEPS = []  # of Recording; Ray Data copies the context with all that it holds


class Fetch:
    def __call__(self, batch):
        return batch


class Segment:
    """Works once two actors of the pool run, so that the pool has to grow whatever else the machine does."""

    def __init__(self, folder):
        self.folder = folder
        (folder / str(os.getpid())).touch()

    def __call__(self, batch):
        wait_until(lambda: len(list(self.folder.iterdir())) >= 2, "for a second model actor")
        return batch


class Write(Fetch):
    pass


class Recording(PoolBounds):
    """Keeps what the pools are at each step."""

    def on_execution_step(self, executor):
        sizes = [pool.current_size() for pool in (self.fetch_pool, self.model_pool, self.write_pool)]
        super().on_execution_step(executor)
        left = NUM_SHARDS - self.segment.metrics.num_tasks_finished
        STEPS.append((sizes, self.model_pool.num_running_actors(), left, self.model_pool.max_size()))


@pytest.mark.usefixtures("ray_session")
def test_pools_follow_the_model_actors_and_these_the_shards_that_are_left(tmp_path, monkeypatch):
    context = DataContext.get_current()
    monkeypatch.setattr(context, "target_max_block_size", 1)
    monkeypatch.setattr(context, "enable_progress_bars", False)
    monkeypatch.setattr(context, "custom_execution_callback_classes", [])
    bound_pools(NUM_SHARDS)
    [made] = context.custom_execution_callback_classes
    assert (type(made()), made().num_shards) == (PoolBounds, NUM_SHARDS)
    context.custom_execution_callback_classes = [functools.partial(Recording, NUM_SHARDS)]

    dataset = ray.data.range(NUM_SHARDS, override_num_blocks=1)
    for stage, most, arguments in ((Fetch, 6, ()), (Segment, 3, (tmp_path,)), (Write, 6, ())):
        pool = ActorPoolStrategy(min_size=1, max_size=most)
        dataset = dataset.map_batches(stage, fn_constructor_args=arguments, batch_size=1, compute=pool, num_cpus=0.1)
    assert sorted(row["id"] for row in dataset.take_all()) == list(range(NUM_SHARDS))

    most_running = 0
    for (fetch, model, write), running, left, most_models in STEPS:
        most_running = max(most_running, running)
        assert max(fetch, write) <= max(1, most_running), "more helpers than model actors that have run"
        assert model <= 3 and most_models == max(1, min(3, left))
    assert most_running >= 2, "the pool of model actors grows"
    assert {left for _, _, left, _ in STEPS} >= {0, NUM_SHARDS}
