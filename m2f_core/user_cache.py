"""The folder of this program in the user's cache, and a folder in TMPDIR that only this user can enter."""

import contextlib
import os
import stat
import tempfile
from pathlib import Path

_NAME = "m2f-pipeline"


def user_cache() -> Path:
    """`$XDG_CACHE_HOME/m2f-pipeline`, which need not exist, or else the same in `~/.cache`.

    A container may have a user without a home folder, or with one that cannot be written to. The cache then lies in
    `private_folder()`. OSError if there is no such folder either.
    """
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / _NAME
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: there is no home folder
        folder = Path.home() / ".cache" / _NAME
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    return private_folder() / ".cache" / _NAME


def private_folder(place: str | None = None) -> Path:
    """The folder `m2f-UID` in `place`, TMPDIR if not given: made if needed, with mode 700.

    PermissionError if another user has made a folder of that name, other OSErrors if it cannot be made.
    """
    folder = Path(place or tempfile.gettempdir()) / f"m2f-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()  # not of what a link points to
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(f"{folder} belongs to another user")
    folder.chmod(0o700)
    return folder
