"""A worker node on loopback as a process of its own: `python -m tests.reliability.node ADDRESS CPUS`.

`ray start --address` refuses a second node where Ray is kept to loopback. This does what Ray's own cluster_utils does.
Prints `started`, then waits to be killed; its raylet and all else below it go with it.
"""

import signal
import sys

from ray._private.node import Node
from ray._private.parameter import RayParams


def main() -> None:
    address, cpus = sys.argv[1:]
    parameters = RayParams(
        gcs_address=address,
        node_ip_address="127.0.0.1",
        num_cpus=int(cpus),
        num_gpus=0,
        object_store_memory=100_000_000,
        min_worker_port=0,
        max_worker_port=0,
        node_manager_port=0,
        dashboard_agent_listen_port=None,
        include_log_monitor=False,
    )
    Node(parameters, head=False, shutdown_at_exit=True, spawn_reaper=True)
    print("started", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
