"""Pass arguments to Ray Data's actors by value, so that an actor can restart even if the object store lost objects.

Ray Data 2.60 puts two constructor arguments of every actor of a pool, its context and its function, into the object
store, however small they are. An actor that restarts fetches them again, and cannot start once they are lost
(ray#53727); Ray logs this risk as an ERROR line whenever a job starts. Both arguments are a few KB here. An argument by
value is part of the actor's description, which Ray keeps for as long as the actor may restart.

The content of an argument matters too: no argument may contain an actor handle (see `in_flight_actor.Board`).

This file holds the private names of Ray Data that it needs; its test names the one that an upgrade removes.
"""

import functools
from typing import Any

from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator


class _ByValue:
    """An operator for `_start_actor` that holds the values themselves in place of references to the values."""

    def __init__(self, operator: Any):
        self._operator = operator
        self._data_context_ref = operator.data_context
        self._map_transformer_ref = operator.get_map_transformer()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._operator, name)


def pass_actor_arguments_by_value() -> None:
    """Call before a pool of actors starts. May be called again."""
    pool: Any = ActorPoolMapOperator
    by_reference = pool._start_actor
    if hasattr(by_reference, "__wrapped__"):
        return

    @functools.wraps(by_reference)
    def start_actor(operator: Any, *args: Any, **kwargs: Any) -> Any:
        return by_reference(_ByValue(operator), *args, **kwargs)

    pool._start_actor = start_actor
