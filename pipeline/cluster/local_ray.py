"""Start a Ray of this machine alone, out of reach of others, also where the machine is busy."""

import logging
import os
from typing import Any

import psutil
import ray

from m2f_core.user_cache import private_folder
from pipeline.cluster.ray_private import (
    START_TIMED_OUT,
    has_started_ray,
    leave_out_shutdown_at_exit,
    usable_cpus,
)
from pipeline.errors import RunError
from pipeline.store.filesystem import one_line

logger = logging.getLogger(__name__)

# A raylet of Ray 2.60 ends by itself if its dashboard agent, a Python process, needs more than some 20 s to start; no
# setting changes that. A longer wait does not help then, a new start does.
START_ATTEMPTS = 5


def start_local_ray(log_to_driver: bool) -> None:
    """Start the Ray of a job on this machine. RunError if Ray cannot start.

    The Ray listens on loopback only (`environment.py`). Ray lets everybody write to each folder that it makes for
    sockets, logs and spilled objects; so these folders lie in one that only this user can enter.
    """
    try:
        folder = private_folder(os.environ.get("RAY_TMPDIR"))
    except OSError as error:
        raise RunError(f"Ray cannot start on this machine: {one_line(error)}; set RAY_TMPDIR") from None
    init_again_if_busy(
        # One CPU more than the machine has, because actors that fetch and write mostly wait.
        num_cpus=usable_cpus() + 1,
        logging_level=logging.WARNING,
        log_to_driver=log_to_driver,
        _temp_dir=f"{folder}/ray",  # short: the path of a socket may have 107 bytes
    )


def init_again_if_busy(**options: Any) -> None:
    """Call ray.init with `options` for a Ray on this machine; if Ray does not start in time, call it again.

    RunError after START_ATTEMPTS attempts, and at once for any other error.
    """
    for attempts_left in range(START_ATTEMPTS - 1, -1, -1):
        before = set(_children())
        try:
            ray.init(address="local", include_dashboard=False, **options)
            return
        except Exception as error:  # Ray raises a bare Exception if the node does not start in time
            left = [child for child in _children() if child not in before]
            _kill(left)
            psutil.wait_procs(left, timeout=30)
            if START_TIMED_OUT not in str(error) or not attempts_left:
                raise RunError(f"Ray cannot start on this machine: {one_line(error)}") from None
            logger.warning("Ray did not start in time, as on a very busy machine; %d attempts left", attempts_left)


def end_own_ray_at_once() -> None:
    """Kill all processes of the Ray that this process has started, if it has. Then call `os._exit`.

    ray.shutdown, which is left out when the process exits, asks one process after the other and waits up to a second
    for each; before that, it sleeps for half a second. Killing the raylet alone would leave its agents for a minute.
    """
    if has_started_ray():
        _kill(_children())
        leave_out_shutdown_at_exit()


def _children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
