"""What Ray reads from the environment when it is loaded; so this is called before, and does not load it."""

import os
import secrets


def joins_a_cluster() -> bool:
    """Whether a cluster is there to join: `ray job submit` says so, and so may the user. Else Ray starts here."""
    return "RAY_ADDRESS" in os.environ


def set_ray_environment() -> None:
    """Defaults that the user's environment overrides.

    A Ray started here asks for a token: secure without a word from the user. The token lives in this process and its
    children only; Ray's own way, a file in the home folder, would turn authentication on for every later `ray start`.
    """
    if not joins_a_cluster() and "RAY_AUTH_MODE" not in os.environ:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing about a run leaves the cluster unasked
