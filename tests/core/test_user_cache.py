"""Where the cache lies: XDG_CACHE_HOME, the home folder, and for users without one a folder that is theirs alone."""

import os
import stat
import tempfile
from pathlib import Path

import pytest

from m2f_core.user_cache import private_folder, user_cache


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def homeless() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_the_users_cache_is_where_users_look_for_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert user_cache() == tmp_path / "home" / ".cache" / "m2f-pipeline"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert user_cache() == tmp_path / "other" / "m2f-pipeline"


def test_a_user_without_a_home_has_a_cache_of_his_own(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", homeless)
    assert user_cache() == tmp_path / f"m2f-{os.geteuid()}" / ".cache" / "m2f-pipeline"


def test_a_home_that_cannot_be_written_to_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "home").touch()  # a file: root could write to a folder without permissions
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert user_cache() == tmp_path / f"m2f-{os.geteuid()}" / ".cache" / "m2f-pipeline"


def test_a_private_folder_is_closed_to_others_whatever_it_was_before(tmp_path):
    before = tmp_path / f"m2f-{os.geteuid()}"
    before.mkdir()
    before.chmod(0o777)
    assert private_folder() == before
    assert stat.S_IMODE(before.stat().st_mode) == 0o700
    assert private_folder(str(tmp_path)) == before


def test_a_folder_that_somebody_else_has_laid_out_is_refused(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"m2f-{os.geteuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="belongs to another user"):
        private_folder()
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    (tmp_path / "m2f-4711").mkdir()
    with pytest.raises(PermissionError, match="m2f-4711 belongs to another user"):
        private_folder()
