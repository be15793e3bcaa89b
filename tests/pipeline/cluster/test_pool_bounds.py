"""Pools of actors follow the model actors that run and the shards that are left, in Ray Data's own loop."""

import functools
import os
import threading

import pytest
import ray
from ray import cloudpickle
from ray.data import ActorPoolStrategy, DataContext

from pipeline.cluster.pool_bounds import PoolBounds, bound_pools
from pipeline.node_labels import NodeChoice
from tests.support.waiting import wait_until

NUM_SHARDS, MOST_MODELS = 12, 2
STEPS, REQUESTS = [], []  # of Recording; Ray Data copies the context with all that it holds
LABELS = NodeChoice("market", ("spot", "on-demand")), NodeChoice("kind", ("!gpu",))


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
    """Keeps what the pools are at each step, and what is asked of the autoscaler; repeats the largest request."""

    def before_execution_starts(self, executor):
        coordinator = executor._cluster_autoscaler._autoscaling_coordinator

        original = coordinator.request_resources

        def asked(**request):
            REQUESTS.append((self.num_left, request))
            if "request_remaining" in request:  # Ray Data's own: without one, the dataset has no resources
                original(**{**request, "resources": [], "label_selectors": []})

        coordinator.request_resources = asked
        self.ask = lambda **request: None
        super().before_execution_starts(executor)
        self.ask = coordinator.request_resources

    def on_execution_step(self, executor):
        sizes = [pool.current_size() for pool in (self.fetch_pool, self.model_pool, self.write_pool)]
        super().on_execution_step(executor)
        left = NUM_SHARDS - self.segment.metrics.num_tasks_finished
        self.ask(resources=[{"CPU": 0.3}] * 5 + [{"CPU": 0.1}] * 3, expire_after_s=1)
        STEPS.append((sizes, self.model_pool.num_running_actors(), left, self.model_pool.max_size()))


@pytest.mark.usefixtures("ray_session")
def test_pools_follow_the_model_actors_and_these_the_shards_that_are_left(tmp_path, monkeypatch):
    context = DataContext.get_current()
    monkeypatch.setattr(context, "target_max_block_size", 1)
    monkeypatch.setattr(context, "enable_progress_bars", False)
    monkeypatch.setattr(context, "custom_execution_callback_classes", [])
    bound_pools(lambda: NUM_SHARDS, *LABELS)
    [made] = context.custom_execution_callback_classes
    assert type(made()) is PoolBounds
    assert (made().num_shards(), made().model_nodes, made().helper_nodes) == (NUM_SHARDS, *LABELS)
    context.custom_execution_callback_classes = [functools.partial(Recording, lambda: NUM_SHARDS, *LABELS)]

    dataset = ray.data.range(NUM_SHARDS, override_num_blocks=1)
    stages = ((Fetch, 4, 0.1, ()), (Segment, MOST_MODELS, 0.3, (tmp_path,)), (Write, 4, 0.1, ()))
    for stage, most, cpus, arguments in stages:
        pool = ActorPoolStrategy(min_size=1, max_size=most)
        dataset = dataset.map_batches(stage, fn_constructor_args=arguments, batch_size=1, compute=pool, num_cpus=cpus)
    assert sorted(row["id"] for row in dataset.take_all()) == list(range(NUM_SHARDS))

    most_running = 0
    for (fetch, model, write), running, left, most_models in STEPS:
        most_running = max(most_running, running)
        assert max(fetch, write) <= max(1, most_running), "more helpers than model actors that have run"
        assert model <= MOST_MODELS and most_models == max(1, min(MOST_MODELS, left))
    assert most_running >= 2, "the pool of model actors grows"
    assert {left for _, _, left, _ in STEPS} >= {0, NUM_SHARDS}

    for left, request in REQUESTS:
        models = [bundle for bundle in request["resources"] if bundle == {"CPU": 0.3}]
        assert len(models) <= left, "nodes are asked for, or kept, for shards that are done"
        of_helpers = len(request["resources"]) - len(models)
        expected = [{"market": "in(spot,on-demand)"}] * len(models) + [{"kind": "!gpu"}] * of_helpers
        assert request["label_selectors"] == expected
    assert {sum(bundle == {"CPU": 0.3} for bundle in request["resources"]) for _, request in REQUESTS} >= {0, 5}


def test_a_dataset_counts_its_own_shards_and_no_task_gets_what_counts_them(monkeypatch):
    monkeypatch.setattr(DataContext.get_current(), "custom_execution_callback_classes", [])
    contexts = []
    for number in (3, 4):
        lock = threading.Lock()  # cannot be pickled, as the plan of a run
        bound_pools(lambda number=number, lock=lock: number + lock.locked())
        contexts.append(DataContext.get_current().copy())
    assert [context.custom_execution_callback_classes[0]().num_shards() for context in contexts] == [3, 4]
    [sent] = cloudpickle.loads(cloudpickle.dumps(contexts[0])).custom_execution_callback_classes
    with pytest.raises(AssertionError, match="in another process"):
        sent().num_shards()


@pytest.mark.usefixtures("ray_session")
def test_a_dataset_without_such_pools_is_left_as_it_is(monkeypatch):
    """Ray Data hands the callback of one dataset to the later ones of the process, too."""
    monkeypatch.setattr(DataContext.get_current(), "custom_execution_callback_classes", [])
    bound_pools(lambda: 1)
    assert [row["id"] for row in ray.data.range(2).map(lambda row: row).take_all()] == [0, 1]
