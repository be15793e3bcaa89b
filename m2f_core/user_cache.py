"""The folder of this program in the user's cache."""

import os
from pathlib import Path


def user_cache() -> Path:
    """`$XDG_CACHE_HOME/m2f-pipeline`, or the same in `~/.cache`; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "m2f-pipeline"
