"""Hold pools of actors as small as the work that is left, so that no node is started, or kept, for an idle actor.

Ray Data adds actors to a pool that has a queue, up to the pool's maximum, and asks the cluster's autoscaler for nodes
up to the maxima of all pools. Two of these need a bound that moves while the run goes on:

- Model actors: no more than shards that no model actor has finished.
- Actors that fetch, and actors that write: no more than model actors that run. One of each keeps up with a model actor.
  At the start of a run the whole plan waits before the pool that fetches: without a bound, that pool grows to its
  maximum while the first GPU still starts, and takes the CPUs beside that GPU (ray#65540).

What Ray Data asks of the cluster's autoscaler is bounded too. While GPUs are little used, it repeats its last request,
which was made for the whole pool, and so keeps idle nodes as long as one shard still runs. And it asks for CPUs and
GPUs of any node, also if actors may only run on nodes with a label.

Ray Data 2.60 has no setting for this. It asks a pool for its maximum at each step, and a callback may change that.
This file holds the private names of Ray Data that it needs; its test names the one that an upgrade removes.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback

from pipeline.node_labels import ANY_NODE, NodeChoice


class PoolBounds(ExecutionCallback):
    """For a dataset of three pools of actors in a row: fetch, segment, write. Any other dataset is left as it is."""

    def __init__(
        self, num_shards: Callable[[], int], model_nodes: NodeChoice = ANY_NODE, helper_nodes: NodeChoice = ANY_NODE
    ):
        """`num_shards`: of the dataset; as long as the plan grows, the most that there can be."""
        self.is_ours = False
        self.num_shards = num_shards
        self.model_nodes = model_nodes
        self.helper_nodes = helper_nodes

    def before_execution_starts(self, executor: Any) -> None:
        in_pools = [operator for operator in executor._topology if operator.get_autoscaling_actor_pools()]
        if len(in_pools) != 3:
            return
        self.is_ours = True
        self.segment = in_pools[1]
        self.fetch_pool, self.model_pool, self.write_pool = (
            pool for operator in in_pools for pool in operator.get_autoscaling_actor_pools()
        )
        self.most = {pool: pool.max_size() for pool in (self.fetch_pool, self.model_pool, self.write_pool)}
        self.on_execution_step(executor)
        coordinator = executor._cluster_autoscaler._autoscaling_coordinator
        coordinator.request_resources = functools.partial(self._request, coordinator.request_resources)

    @property
    def num_left(self) -> int:
        """Shards that no model actor has finished."""
        return self.num_shards() - int(self.segment.metrics.num_tasks_finished)

    def on_execution_step(self, executor: Any) -> None:
        if not self.is_ours:
            return
        self._bound(self.model_pool, self.num_left)
        for pool in (self.fetch_pool, self.write_pool):
            self._bound(pool, self.model_pool.num_running_actors())

    def _bound(self, pool: Any, actors: int) -> None:
        most = max(pool.min_size(), min(self.most[pool], actors))
        if most != pool.max_size():
            pool._config = replace(pool._config, max_size=most, initial_size=min(pool.initial_size(), most))

    def _request(self, request: Callable[..., None], resources: list[dict[str, float]], **options: Any) -> None:
        """Ask for at most as many nodes of model actors as there are shards left, and for nodes with the labels."""
        actor = self.model_pool.per_actor_resource_usage()

        def is_of_model(bundle: dict[str, float]) -> bool:
            return (bundle.get("CPU", 0), bundle.get("GPU", 0)) == (actor.cpu or 0, actor.gpu or 0)

        of_models = [bundle for bundle in resources if is_of_model(bundle)][: max(0, self.num_left)]
        of_helpers = [bundle for bundle in resources if not is_of_model(bundle)]
        labels = [self.model_nodes.any_of()] * len(of_models) + [self.helper_nodes.any_of()] * len(of_helpers)
        request(resources=of_models + of_helpers, label_selectors=labels, **options)


class _OfThisProcess:
    """A function that stays here, although Ray Data copies its context, with all callbacks, for every dataset, and
    sends the context to every task.
    """

    def __init__(self, function: Callable[[], int] | None):
        self._function = function

    def __call__(self) -> int:
        assert self._function is not None, "called in another process"
        return self._function()

    def __deepcopy__(self, memo: object) -> "_OfThisProcess":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _OfThisProcess, (None,)


def bound_pools(
    num_shards: Callable[[], int], model_nodes: NodeChoice = ANY_NODE, helper_nodes: NodeChoice = ANY_NODE
) -> None:
    """For the next dataset of this process, which has three pools of actors and so many shards."""
    # Ray Data calls it without arguments.
    maker: Any = functools.partial(PoolBounds, _OfThisProcess(num_shards), model_nodes, helper_nodes)
    DataContext.get_current().custom_execution_callback_classes = [maker]
