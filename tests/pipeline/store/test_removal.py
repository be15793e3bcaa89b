"""Removal takes names below one folder: never a pattern, never what a link leads to."""

import uuid
from pathlib import Path

import fsspec
import pytest

from pipeline.store.filesystem import list_folder, open_filesystem, put_object
from pipeline.store.removal import remove_folder_of, remove_objects


@pytest.fixture(params=["local", "s3", "memory"])
def place(request, tmp_path):
    """A file system, and a folder in it whose name is a pattern that fits the folder beside it."""
    if request.param == "local":
        filesystem, root = open_filesystem(str(tmp_path))
    elif request.param == "memory":
        filesystem, root = fsspec.filesystem("memory"), f"/{uuid.uuid4().hex}"
    else:
        server = request.getfixturevalue("s3")
        if "removal" not in [bucket["Name"] for bucket in server.client.list_buckets()["Buckets"]]:
            server.bucket("removal")
        filesystem, root = open_filesystem(f"s3://removal/{uuid.uuid4().hex}")
    for folder in ("nights[12]", "nights1"):
        for name in ("a", "b*", "c?"):
            put_object(filesystem, f"{root}/{folder}/{name}", b"x")
    return filesystem, root


def names(filesystem, folder: str) -> list[str]:
    """SeaweedFS keeps an empty folder."""
    return [name for path in list_folder(filesystem, folder) if (name := path.rpartition("/")[2])]


def test_named_objects_go_and_no_others(place):
    filesystem, root = place
    folder = f"{root}/nights[12]"
    remove_objects(filesystem, folder, [f"{folder}/b*", f"{folder}/not there"])
    assert names(filesystem, folder) == ["a", "c?"]
    remove_objects(filesystem, folder, list_folder(filesystem, folder))
    assert names(filesystem, folder) == []
    assert names(filesystem, f"{root}/nights1") == ["a", "b*", "c?"]


def test_a_folder_goes_as_a_whole_and_the_one_that_its_name_fits_stays(place):
    filesystem, root = place
    remove_folder_of(filesystem, root, f"{root}/nights[12]")
    assert names(filesystem, f"{root}/nights[12]") == []
    assert names(filesystem, f"{root}/nights1") == ["a", "b*", "c?"]


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "{folder}", "{folder}/../x", "{folder}/./x", "{folder}//x", "{folder}x/y"]
)
def test_what_does_not_lie_below_the_folder_is_not_removed(path, tmp_path):
    filesystem, folder = fsspec.filesystem("file"), str(tmp_path / "folder")
    put_object(filesystem, f"{folder}/a", b"x")
    for remove in (
        lambda path: remove_objects(filesystem, folder, [f"{folder}/a", path]),
        lambda path: remove_folder_of(filesystem, folder, path),
    ):
        with pytest.raises(ValueError, match="is not removed"):
            remove(path.format(folder=folder))
    assert (tmp_path / "folder" / "a").exists(), "one wrong name, and nothing is removed"


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path):
    filesystem, folder = fsspec.filesystem("file"), tmp_path / "folder"
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "a").write_bytes(b"x")
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "victim")
    remove_objects(filesystem, str(folder), [f"{folder}/link"])
    assert not folder.exists() and (tmp_path / "victim" / "a").exists()
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "victim")
    remove_folder_of(filesystem, str(tmp_path), str(folder))
    assert not folder.exists() and (tmp_path / "victim" / "a").exists()
    folder.symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic link"):
        remove_folder_of(filesystem, str(tmp_path), str(folder))
    assert Path(tmp_path / "victim" / "a").exists()
