"""Set the environment variables that Ray reads when it is loaded; this module is used before, and does not load Ray."""

import os
import secrets
from pathlib import Path

from m2f_core.user_cache import private_folder
from pipeline.errors import RunError

# Ray's default of 30 s ends runs on a busy machine. The first variable limits the wait until the node has registered
# with Ray's control service (GCS; read by Ray's C++ code); a node that is alive registers sooner, for one that is not a
# new start is better than waiting (local_ray.py). The second limits the wait for the GCS (ray/_private/node.py).
_START_WAITS = {"RAY_raylet_start_wait_time_s": "60", "RAY_gcs_server_port_wait_time_s": "300"}

# Ray then takes 127.0.0.1 as the address of its node, and all of its processes listen there, metrics included. The name
# says Windows and macOS because Ray does so by default there. An argument of ray.init cannot do it: Ray replaces a
# loopback address by that of the network.
_LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def joins_a_cluster() -> bool:
    """Whether RAY_ADDRESS names a cluster to join; `ray job submit` sets it, or the user. Otherwise Ray starts here."""
    return "RAY_ADDRESS" in os.environ


def set_ray_environment() -> None:
    """Set defaults; variables that the user has set keep their values.

    A Ray started here listens on loopback and requires a token. Only this process and its children know the token;
    Ray's own way, a file in the home folder, would turn authentication on for every later `ray start`.
    """
    if not joins_a_cluster():
        if "RAY_AUTH_MODE" not in os.environ:
            os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
        for name, value in {**_START_WAITS, **_LOOPBACK_ONLY}.items():
            os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # send no usage data from the cluster by default
    _find_a_home()


def _find_a_home() -> None:
    """Ray Train asks for the home folder when it is imported. A user of a container may have none: take another."""
    try:
        Path.home()
    except RuntimeError:
        try:
            os.environ["HOME"] = str(private_folder())
        except OSError as error:
            raise RunError(f"this user has no home folder, and {error}; set HOME") from None
