"""Scratch databases leave nothing behind, even those of processes that are killed."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

from pipeline.store.temporary_folders import lock_new_folder, remove_folder
from pipeline.tables.spill_database import ScratchDatabase

DYING = """
import os, signal
from pipeline.tables.spill_database import ScratchDatabase
scratch = ScratchDatabase()
scratch.connection.execute("CREATE TABLE x AS SELECT * FROM range(1000)")
{end}
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def run(code, temporary):
    environment = {"TMPDIR": str(temporary), "PATH": ""}
    return subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_is_not(temporary):
    (temporary / "m2f-scratchpad").mkdir()
    (temporary / "m2f-scratch-another.machine-x").mkdir()
    in_use = ScratchDatabase()
    in_use.connection.execute("CREATE TABLE y AS SELECT 1 AS one")
    assert run(DYING.format(end="os.kill(os.getpid(), signal.SIGKILL)"), temporary) == -signal.SIGKILL
    assert len(list(temporary.iterdir())) == 4
    third = ScratchDatabase()
    assert len(list(temporary.iterdir())) == 4, "the dead one's is gone, a new one is there"
    assert in_use.connection.execute("SELECT one FROM y").fetchall() == [(1,)]
    in_use.connection.execute("CREATE TABLE z AS SELECT * FROM range(100000)")
    in_use.close()
    third.close()
    assert sorted(path.name for path in temporary.iterdir()) == ["m2f-scratch-another.machine-x", "m2f-scratchpad"]


def test_a_process_that_ends_by_itself_leaves_nothing(temporary):
    assert run(DYING.format(end=""), temporary) == 0
    assert list(temporary.iterdir()) == []


def test_a_folder_that_another_process_removes_meanwhile_is_made_again(temporary, monkeypatch):
    """The lock's library makes the folder of a lock, and fails if the folder goes away while it looks."""
    acquire, calls = FileLock.acquire, []

    def removed_once(lock, *args, **kwargs):
        calls.append(lock)
        if len(calls) == 1:
            raise FileExistsError(17, "File exists", lock.lock_file)
        return acquire(lock, *args, **kwargs)

    monkeypatch.setattr(FileLock, "acquire", removed_once)
    folder, lock = lock_new_folder()
    assert Path(folder).is_dir()
    remove_folder(folder, lock)
    assert not Path(folder).exists()
