"""Hold pools of actors as small as the work that is left, so that no node is started, or kept, for an idle actor.

Ray Data adds actors to a pool that has a queue, up to the pool's maximum, and asks the cluster's autoscaler for nodes
up to the maxima of all pools. Two of these need a bound that moves while the run goes on:

- Model actors: no more than shards that no model actor has finished.
- Actors that fetch, and actors that write: no more than model actors that run. One of each keeps up with a model actor.
  At the start of a run the whole plan waits before the pool that fetches: without a bound, that pool grows to its
  maximum while the first GPU still starts, and takes the CPUs beside that GPU (ray#65540).

Ray Data 2.60 has no setting for this. It asks a pool for its maximum at each step, and a callback may change that.
This file holds the private names of Ray Data that it needs; its test names the one that an upgrade removes.
"""

import functools
from dataclasses import replace
from typing import Any

from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback


class PoolBounds(ExecutionCallback):
    """For a dataset of three pools of actors in a row: fetch, segment, write."""

    def __init__(self, num_shards: int):
        self.num_shards = num_shards

    def before_execution_starts(self, executor: Any) -> None:
        in_pools = [operator for operator in executor._topology if operator.get_autoscaling_actor_pools()]
        self.segment = in_pools[1]
        self.fetch_pool, self.model_pool, self.write_pool = (
            pool for operator in in_pools for pool in operator.get_autoscaling_actor_pools()
        )
        self.most = {pool: pool.max_size() for pool in (self.fetch_pool, self.model_pool, self.write_pool)}
        self.on_execution_step(executor)

    def on_execution_step(self, executor: Any) -> None:
        self._bound(self.model_pool, self.num_shards - self.segment.metrics.num_tasks_finished)
        for pool in (self.fetch_pool, self.write_pool):
            self._bound(pool, self.model_pool.num_running_actors())

    def _bound(self, pool: Any, actors: int) -> None:
        most = max(pool.min_size(), min(self.most[pool], actors))
        if most != pool.max_size():
            pool._config = replace(pool._config, max_size=most, initial_size=min(pool.initial_size(), most))


def bound_pools(num_shards: int) -> None:
    """For the next dataset of this thread, which has three pools of actors and so many shards."""
    makers: list[Any] = [functools.partial(PoolBounds, num_shards)]  # Ray Data calls each without arguments
    DataContext.get_current().custom_execution_callback_classes = makers
