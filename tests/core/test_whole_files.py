"""Files and folders stand at their name whole or not at all."""

import os
import signal
import subprocess
import sys

import pytest

from m2f_core.whole_files import is_temporary, temporary_beside, written_whole
from tests.support.places import ROOT


def test_a_file_gets_its_name_at_the_end_and_takes_the_place_of_another(tmp_path):
    target = tmp_path / "new" / "run.json"
    with written_whole(target) as temporary:
        temporary.write_bytes(b"one")
        assert not target.exists() and temporary.parent == target.parent and is_temporary(str(temporary))
    with written_whole(target) as temporary:
        temporary.write_bytes(b"two")
        assert target.read_bytes() == b"one"
    assert target.read_bytes() == b"two" and os.listdir(target.parent) == ["run.json"]


def test_a_folder_gets_its_name_with_everything_in_it(tmp_path):
    with written_whole(tmp_path / "model") as folder:
        (folder / "below").mkdir(parents=True)
        (folder / "below" / "weights").write_bytes(b"w")
        assert not (tmp_path / "model").exists()
    assert (tmp_path / "model" / "below" / "weights").read_bytes() == b"w" and os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("make", [lambda path: path.write_bytes(b"half"), lambda path: path.mkdir(), lambda path: None])
def test_what_raises_leaves_what_was_there_and_nothing_beside_it(tmp_path, make):
    target = tmp_path / "run.json"
    target.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt), written_whole(target) as temporary:
        make(temporary)
        raise KeyboardInterrupt
    assert target.read_bytes() == b"before" and os.listdir(tmp_path) == ["run.json"]


def test_a_body_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), written_whole(tmp_path / "run.json"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_process_that_is_killed_leaves_a_name_that_is_known(tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from m2f_core.whole_files import written_whole
with written_whole(Path({str(tmp_path / "run.json")!r})) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert ended.returncode == -signal.SIGKILL
    [left] = os.listdir(tmp_path)
    assert is_temporary(f"{tmp_path}/{left}") and not is_temporary(f"{tmp_path}/run.json")


def test_names_of_two_writers_of_one_file_differ(tmp_path):
    with temporary_beside(tmp_path / "x") as one, temporary_beside(tmp_path / "x") as other:
        assert one != other


def test_what_gets_its_name_is_on_the_disk(tmp_path, monkeypatch):
    synced = []
    note = lambda path: synced.append((path.name, (tmp_path / "m").exists()))  # noqa: E731
    monkeypatch.setattr("m2f_core.whole_files.sync_file", note)
    with written_whole(tmp_path / "m") as folder:
        folder.mkdir()
        (folder / "a").write_bytes(b"a")
        (folder / "b").write_bytes(b"b")
    assert synced == [("a", False), ("b", False)]
