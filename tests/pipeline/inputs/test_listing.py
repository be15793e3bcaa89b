"""Listing a folder: names and links that cannot be images are counted, and the rest is listed."""

import os

import pytest

from pipeline.errors import RunError
from pipeline.store.filesystem import open_filesystem
from tests.support.listed import list_images


def test_links_to_themselves_and_names_that_are_not_utf8_are_left_out_and_said(tmp_path, caplog):
    (tmp_path / "a.png").write_bytes(b"1")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "b.png").write_bytes(b"22")
    (tmp_path / "to a folder").symlink_to(tmp_path / "folder")
    (tmp_path / "to a file").symlink_to(tmp_path / "a.png")
    (tmp_path / "to itself").symlink_to(tmp_path / "to itself")
    (tmp_path / "to nothing").symlink_to(tmp_path / "nothing")
    try:
        os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    with open(os.fsencode(tmp_path) + b"/\xff/c.png", "wb") as file:
        file.write(b"3")
    listed = list(list_images(str(tmp_path)))
    assert [image.image_key.removeprefix(f"file://{tmp_path}/") for image in listed] == [
        "a.png",
        "folder/b.png",
        "to a file",
    ]
    assert "2 names are left out, because they are not UTF-8 or are links to themselves" in caplog.text


def test_a_store_that_does_not_say_where_its_listing_goes_on_is_an_error(s3, monkeypatch):
    """Otherwise the first page would be listed for ever."""
    uri = s3.bucket("endless-listing")
    s3.client.put_object(Bucket="endless-listing", Key="photographs/a.jpg", Body=b"1")
    filesystem, _ = open_filesystem(uri)
    ask = filesystem.call_s3
    monkeypatch.setattr(filesystem, "call_s3", lambda *args, **kwargs: {**ask(*args, **kwargs), "IsTruncated": True})
    with pytest.raises(RunError, match=r"cannot be listed: .* not where its listing goes on"):
        list(list_images(f"{uri}/photographs"))
