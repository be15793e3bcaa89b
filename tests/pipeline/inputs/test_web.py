"""Inputs behind http(s) URLs: single objects, manifests of them, tars and Parquet; and folders of any other store."""

import threading
from datetime import timedelta

import fsspec
import pyarrow.parquet as pq
import pytest

from pipeline.config import Settings
from pipeline.errors import ErrorCode, ImageError, RunError, StoreUnavailableError
from pipeline.input_spec import InputSpec
from pipeline.inputs.container import LeftOut
from pipeline.inputs.fetch import FetchImages
from pipeline.inputs.listing import list_inputs
from pipeline.inputs.objects import list_objects
from pipeline.inputs.reads import ListedImage
from pipeline.inputs.sources import input_spec
from pipeline.inputs.verified import ChangedError, read_range, read_verified
from pipeline.schema import pack_shard, unpack_shard
from pipeline.store.other import web
from pipeline.store.other.ask import _versions_differ
from tests.support.listed import PlannedImage, list_images, planned_table
from tests.support.other_stores import read_all
from tests.support.parquet_files import hugging_face
from tests.support.tars import member, tar_of
from tests.support.web_server import web_server

DATA = b"encoded image bytes" * 50
LISTS = {"format": "manifest", "allow_schemes": ("http",)}
pytestmark = pytest.mark.usefixtures("no_pauses")


@pytest.fixture
def server():
    with web_server() as running:
        yield running


def test_objects_behind_urls_are_images_with_their_versions(server):
    uris = [server.add(f"/photos/{n}.jpg", DATA + bytes([n]), etag=f'"v{n}"') for n in range(3)]
    assert [(i.image_key, i.etag, i.size_bytes) for i in list_images(*uris)] == [
        (uri, f"v{n}", len(DATA) + 1) for n, uri in enumerate(uris)
    ]
    assert read_all(*uris) == {uri: DATA + bytes([n]) for n, uri in enumerate(uris)}
    with pytest.raises(RunError, match=r"--input .*/gone\.jpg does not exist"):
        list(list_inputs(InputSpec.of(server.uri("/gone.jpg"))))
    with pytest.raises(RunError, match=r"http:// has no folders, so give objects or a manifest of them"):
        input_spec(Settings(input=(server.uri("/photos/*.jpg"),), output="out"))


def test_an_object_without_a_version_is_told_changed_by_its_size_only_and_a_warning_says_so(server, caplog):
    uri = server.add("/a.jpg", DATA, etag=None)
    assert [(i.etag, i.size_bytes) for i in list_images(uri)] == [("", len(DATA))]
    assert "1 images come without an ETag, so that later runs see changes of them only by their size" in caplog.text


def test_a_manifest_names_objects_of_the_web_only_if_the_flag_says_so(server, tmp_path):
    uris = [server.add(f"/{n}.jpg", DATA) for n in range(3)]
    (tmp_path / "list.txt").write_text("\n".join(uris))
    on_the_web = server.add("/list.txt", "\n".join(uris).encode())
    for manifest in (str(tmp_path / "list.txt"), on_the_web):
        with pytest.raises(RunError, match=r"line 1 is an object of http://, .* only with --allow-scheme http$"):
            read_all(manifest, format="manifest")
        with pytest.raises(RunError, match=r"--allow-scheme http$"):
            read_all(manifest, format="manifest", allow_schemes=("https",))
        assert read_all(manifest, **LISTS) == dict.fromkeys(uris, DATA)


def test_each_failure_of_an_object_is_its_own_row(server, tmp_path):
    never = threading.Event()
    wanted = {
        server.add("/good", DATA, statuses=[503, 500, 429]): DATA,
        server.uri("/gone"): ErrorCode.NOT_FOUND,
        server.add("/forbidden", statuses=[403] * 9): ErrorCode.ACCESS_DENIED,
        server.add("/broken", statuses=[500] * 9): ErrorCode.READ_FAILED,
        server.add("/reset", statuses=[0] * 9): ErrorCode.READ_FAILED,
        server.add("/cut", DATA, sent_bytes=7): ErrorCode.READ_FAILED,
        server.add("/slow", DATA, waits_for=never): ErrorCode.READ_FAILED,
        server.add("/elsewhere", redirect="http://169.254.169.254/latest"): ErrorCode.ACCESS_DENIED,
        server.add("/zipped", DATA, headers={"Content-Encoding": "gzip"}): ErrorCode.ACCESS_DENIED,
        "http://169.254.169.254/latest/meta-data": ErrorCode.ACCESS_DENIED,
    }
    (tmp_path / "list.txt").write_text("\n".join(wanted))
    found = read_all(str(tmp_path / "list.txt"), step_timeout=4, **LISTS)
    never.set()
    assert {key: r.code if isinstance(r, ImageError) else r for key, r in found.items()} == wanted
    assert "was not read within" in found[server.uri("/slow")].message


def test_an_object_larger_than_an_image_is_not_read(server, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.inputs.verified.MAX_OBJECT_BYTES", 100)
    uri = server.add("/film", DATA, says_size=False, waits_for=threading.Event())
    (tmp_path / "list.txt").write_text(uri)
    assert read_all(str(tmp_path / "list.txt"), **LISTS)[uri].code is ErrorCode.TOO_LARGE


def test_an_object_that_changes_between_listing_and_reading_is_changed(server):
    uri = server.add("/a.jpg", DATA)
    [listed] = list_images(uri)
    server.objects["/a.jpg"].data = DATA[::-1]
    [result] = FetchImages(InputSpec.of(uri)).fetch([listed])
    assert result.code is ErrorCode.CHANGED


def planned(uris: list[str]):
    return pack_shard(7, planned_table(PlannedImage(uri, "", None, reason="new") for uri in uris))


def test_a_server_that_is_gone_costs_its_own_images_if_others_answer(server):
    """In a list of the whole web, some server is always gone; a shard may hold its images only."""
    dead = [f"http://127.0.0.1:9/{n}" for n in range(8)]
    alive = [ListedImage(server.add("/a", DATA), "", None)]
    fields = {"format": "manifest", "allow_schemes": ("http",)}
    spec = InputSpec(InputSpec.of("file:///list.txt").sources, **fields)
    _, images = unpack_shard(FetchImages(spec, elsewhere=alive)(planned(dead)))
    assert images["error_code"].to_pylist() == ["read_failed"] * 8
    with pytest.raises(StoreUnavailableError, match="none of the 8 images of shard 7"):
        FetchImages(spec, elsewhere=[ListedImage(dead[0], "", None)])(planned(dead))


# --- containers -------------------------------------------------------------------------------------------------------


@pytest.fixture
def tar() -> bytes:
    return tar_of(member(f"{n}.jpg", DATA + bytes([n])) for n in range(20))


def test_a_tar_is_read_by_ranges(server, tar):
    uri = server.add("/train.tar", tar)
    assert read_all(uri) == {f"{uri}#{n}.jpg": DATA + bytes([n]) for n in range(20)}
    assert all(ranges for method, _, ranges in server.asked if method == "GET")


def test_a_parquet_file_is_read_by_ranges(server, tmp_path):
    pq.write_table(hugging_face([DATA + bytes([n]) for n in range(20)]), tmp_path / "a.parquet", row_group_size=5)
    uri = server.add("/a.parquet", (tmp_path / "a.parquet").read_bytes())
    assert read_all(uri) == {f"{uri}#{n:05}.png": DATA + bytes([n]) for n in range(20)}
    assert all(ranges for method, _, ranges in server.asked if method == "GET")


def test_a_tar_of_a_server_that_knows_no_ranges_is_read_if_it_is_small(server, tar, monkeypatch):
    uri = server.add("/train.tar", tar, has_ranges=False)
    assert read_all(uri) == {f"{uri}#{n}.jpg": DATA + bytes([n]) for n in range(20)}
    monkeypatch.setattr(web, "_MOST_SKIPPED_BYTES", 1000)
    [result] = read_all(uri).values()
    assert result.code is ErrorCode.UNSUPPORTED and "sends no parts of objects" in result.message


@pytest.mark.parametrize("etag", ["of the content", None])
def test_a_tar_that_changes_between_listing_and_reading_gives_no_other_bytes(etag, server, tar):
    uri = server.add("/train.tar", tar, etag=etag)
    listed = list(list_images(uri))
    server.objects["/train.tar"].data = tar_of(member(f"{n}.jpg", DATA + b"longer" * n) for n in range(20))
    found = FetchImages(InputSpec.of(uri)).fetch_all(listed)
    wanted = ErrorCode.CHANGED if etag else ErrorCode.DAMAGED_CONTAINER  # of the rest, only the headers tell
    codes = [r.code if isinstance(r, ImageError) else None for r in found]
    assert codes[1:] == [wanted] * 19 and codes[0] in (wanted, None)


def test_an_inventory_is_not_read_from_the_web(server):
    with pytest.raises(RunError, match="an inventory is read from a store or a folder"):
        list(list_images(server.add("/manifest.json", b"{}"), format="inventory"))


# --- any other store of fsspec ----------------------------------------------------------------------------------------


@pytest.fixture
def memory():
    filesystem = fsspec.filesystem("memory")
    for number in range(1500):
        filesystem.pipe_file(f"/walked/{number % 7}/{number % 3}/{number:05}.jpg", DATA)
    filesystem.pipe_file("/walked/0.jpg", DATA)
    yield filesystem
    filesystem.store.clear()


def test_a_store_without_pages_is_listed_folder_by_folder(memory, monkeypatch):
    everything = sorted(f"memory://{path}" for path in memory.find("/walked"))
    monkeypatch.setattr(memory, "find", None)
    tables = list_objects(memory, "/walked", LeftOut())
    first = next(tables)
    assert first.num_rows == 1000
    keys = [key for table in (first, *tables) for key in table["image_key"].to_pylist()]
    assert keys == everything
    assert [image.size_bytes for image in list_images("memory://walked/0.jpg")] == [len(DATA)]
    with pytest.raises(FileNotFoundError):
        list(list_objects(memory, "/walked/not there", LeftOut()))


@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize("data", [DATA + b"!", DATA[::-1]])
def test_an_object_of_any_store_that_changes_between_listing_and_reading_is_not_read(part, data, memory):
    memory.store["/walked/0.jpg"].created -= timedelta(minutes=1)
    [listed] = list_images("memory://walked/0.jpg")

    def read() -> bytes:
        if part:
            return read_range(memory, "/walked/0.jpg", listed.etag, 3, 4, 10.0)
        return read_verified(memory, "/walked/0.jpg", listed.etag, listed.size_bytes, 10.0)[0]

    assert read() == (DATA[3:7] if part else DATA)
    memory.pipe_file("/walked/0.jpg", data)
    with pytest.raises(ChangedError):
        read()


@pytest.mark.parametrize(
    ("listed", "now", "differ"),
    [
        ("1796026652.03-9", "1796026652-9", False),
        ("1796026652-9", "1796026653-9", True),
        ("1796026652-9", "1796026652-8", True),
        ("1796026652-9", "D41D8", False),  # nothing can be told
        ("D41D8", "D41D9", True),
    ],
)
def test_versions_that_a_store_words_in_two_ways_are_compared_by_what_both_say(listed, now, differ):
    assert _versions_differ(listed, now) == differ
