"""The parts of Ray that the pipeline uses although they are no public API: private names and process titles.

Written for Ray 2.60. tests/test_private_names.py names those that a later version has removed. Ray is imported inside
the functions, because a drill needs the titles and never loads Ray.
"""

import atexit
import logging
from typing import Any

# The end of a raylet's program path; a raylet is Ray's process for a node.
RAYLET_PROGRAM = "/core/src/ray/raylet/raylet"
# The end of the path of the autoscaler's program, for both of its versions, and its flags for the address of the
# cluster and for the file of `ray up`.
AUTOSCALER_PROGRAM = "/monitor.py"
GCS_FLAG = "--gcs-address="
AUTOSCALER_FLAG = "--autoscaling-config="
# What the exception of ray.init says when the node has not registered in time.
START_TIMED_OUT = "timed out during startup"


def usable_cpus() -> int:
    """The CPUs that Ray counts on this machine; unlike os.cpu_count, Ray knows the limits of a container."""
    import ray._private.utils

    return int(ray._private.utils.get_num_cpus())


def has_started_ray() -> bool:
    """Whether this process runs a Ray that it has started itself, in contrast to one that it has joined."""
    import ray._private.worker

    node = ray._private.worker._global_node
    return node is not None and node.is_head()


def leave_out_shutdown_at_exit() -> None:
    """When the process exits, ray.shutdown is not called."""
    import ray._private.worker

    atexit.unregister(ray._private.worker.shutdown)


def autoscaler_config() -> Any:
    """The autoscaler's limits, in `node_group_configs`, if an autoscaler has told them; that of Ray 2.60 does not."""
    import ray._private.state

    return ray._private.state.state.get_cluster_config()


def autoscaling_config_of_kuberay(cluster: str, namespace: str) -> dict[str, Any]:
    """What KubeRay's autoscaler makes of its RayCluster: `available_node_types`, with limits and resources.

    Asks the API server, up to five times in 20 seconds, with the account of the pod.
    """
    from ray.autoscaler._private.kuberay.autoscaling_config import AutoscalingConfigProducer

    # It logs a stack at each attempt; the last error is raised.
    logging.getLogger(AutoscalingConfigProducer.__module__).setLevel(logging.CRITICAL)
    config: dict[str, Any] = AutoscalingConfigProducer(cluster, namespace)()
    return config


def console_handlers(logger: str) -> list[logging.Handler]:
    """The handlers with which Ray lets the logger of this name write to the console."""
    from ray._private.log import PlainRayHandler

    return [handler for handler in logging.getLogger(logger).handlers if isinstance(handler, PlainRayHandler)]


def map_actor_title(class_name: str) -> str:
    """The start of an actor's command line, if the actor runs `map_batches` with this class; its method follows."""
    return f"ray::MapWorker(MapBatches({class_name}))"


def read_task_title(datasource_name: str) -> str:
    """The start of a task's command line, if the task reads from a data source of this class name."""
    return f"ray::Read{datasource_name}"
