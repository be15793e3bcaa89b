"""What Ray reads from the environment when it is loaded; so this is called before, and does not load it."""

import os
import secrets

# Ray's own 30 s end runs on a busy machine. The first bounds the wait for the node to register with Ray's control
# service (GCS; read by Ray's C++ code), the second the wait for the GCS itself (read by ray/_private/node.py).
_START_WAITS = ("RAY_raylet_start_wait_time_s", "RAY_gcs_server_port_wait_time_s")
_START_SECONDS = 300


def joins_a_cluster() -> bool:
    """Whether a cluster is there to join: `ray job submit` says so, and so may the user. Else Ray starts here."""
    return "RAY_ADDRESS" in os.environ


def set_ray_environment() -> None:
    """Defaults that the user's environment overrides.

    A Ray started here asks for a token: secure without a word from the user. The token lives in this process and its
    children only; Ray's own way, a file in the home folder, would turn authentication on for every later `ray start`.
    """
    if not joins_a_cluster():
        if "RAY_AUTH_MODE" not in os.environ:
            os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
        for name in _START_WAITS:
            os.environ.setdefault(name, str(_START_SECONDS))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing about a run leaves the cluster unasked
