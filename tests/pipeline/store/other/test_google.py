"""Google Cloud Storage, on gcp-storage-emulator: as it comes, and with what Google does besides."""

import pytest

pytest.importorskip("gcsfs", reason="needs the extra `gcs`")
pytest.importorskip("gcp_storage_emulator", reason="needs gcp-storage-emulator")

from pipeline.config import Settings
from pipeline.errors import ErrorCode, RunError
from pipeline.input_spec import Access, InputSpec
from pipeline.inputs.fetch import FetchImages
from pipeline.inputs.listing import list_inputs
from pipeline.inputs.sources import input_spec
from pipeline.runs.places import usable_output, with_whole_places
from pipeline.store.filesystem import store_errors_as
from pipeline.store.other.answer import Answer, PassingError
from pipeline.store.other.google import GoogleFileSystem
from pipeline.store.other.opening import open_input
from tests.support.google_server import google_server
from tests.support.listed import list_images
from tests.support.other_stores import ask, read_all
from tests.support.tars import member, tar_of

DATA = b"encoded image bytes" * 50
# Names that URLs, patterns and gcsfs could take for something else.
KEYS = ("a.jpg", "in/b c.jpg", "in/ü%20.jpg", "in/x?y=1&z", "in/photo#123", "in/+plus", "in.jpg", "zz")
pytestmark = pytest.mark.usefixtures("no_pauses")


def running(monkeypatch, is_google):
    with google_server(is_google=is_google) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
        GoogleFileSystem.clear_instance_cache()
        yield server
        GoogleFileSystem.clear_instance_cache()


@pytest.fixture
def server(monkeypatch):
    yield from running(monkeypatch, True)


@pytest.fixture(params=["as it comes", "with pages, generations and checksums"])
def any_server(request, monkeypatch):
    yield from running(monkeypatch, request.param != "as it comes")


def test_the_objects_of_a_bucket_are_listed_and_read_under_their_names(any_server):
    any_server.page_size = 3
    bucket = any_server.bucket("photos", {key: DATA + key.encode() for key in KEYS})
    assert read_all(bucket) == {f"{bucket}/{key}": DATA + key.encode() for key in KEYS}
    assert set(read_all(f"{bucket}/in")) == {f"{bucket}/{key}" for key in KEYS if key.startswith("in/")}
    assert set(read_all(f"{bucket}/in.jpg")) == {f"{bucket}/in.jpg"}
    assert read_all(f"{bucket}/in/photo#123") == {f"{bucket}/in/photo#123": DATA + b"in/photo#123"}
    filesystem, path = open_input(f"{bucket}/in")
    assert filesystem.isdir(path) and not filesystem.isfile(path) and filesystem.isfile("photos/in.jpg")
    for missing in ("gs://photos/none", "gs://no-bucket", "gs://no-bucket/x"):
        with pytest.raises(RunError, match="does not exist"):
            list(list_inputs(InputSpec.of(missing)))


def test_pages_are_asked_for_one_by_one_and_not_kept(server):
    bucket = server.bucket("photos", {f"{n:03}": DATA for n in range(30)} | {"marker/": b""})
    server.page_size, server.asked[:] = 10, []
    filesystem, path = open_input(bucket)
    listed = filesystem.objects(path)
    assert [next(listed).path for _ in range(10)] == [f"photos/{n:03}" for n in range(10)]
    assert len(server.asked) == 1
    assert [one.path for one in listed][-1] == "photos/029" and len(server.asked) == 4
    assert not filesystem.dircache


def test_an_object_is_one_request_and_its_etag_is_the_generation(server):
    bucket = server.bucket("photos", {"a.jpg": DATA})
    [image] = list_images(bucket)
    assert image.etag.isdigit() and image.size_bytes == len(DATA)
    server.asked.clear()
    assert ask(image.image_key, image.etag) == Answer(image.etag, len(DATA), DATA)
    assert ask(image.image_key) == Answer(image.etag, len(DATA), DATA)
    assert ask(image.image_key, image.etag, (3, 4)) == Answer(image.etag, len(DATA), DATA[3:7])
    assert ask(image.image_key, image.etag, (len(DATA), 4)) == Answer(image.etag, len(DATA), b"")
    assert len(server.asked) == 4
    assert all(headers["accept-encoding"] == "gzip" for _, headers in server.asked)  # else Google inflates some
    filesystem, path = open_input(image.image_key)
    assert filesystem.isfile(path) and len(server.asked) == 5


@pytest.mark.parametrize("part", [None, (0, 5)])
def test_an_object_that_changes_between_listing_and_reading_is_not_read(part, any_server):
    bucket = any_server.bucket("photos", {"a.jpg": DATA})
    [image] = list_images(bucket)
    any_server.put("photos/a.jpg", DATA[::-1])
    [now] = list_images(bucket)
    assert now.etag != image.etag
    if not any_server.is_google:
        return  # the emulator knows no conditions, and does not say what it sends
    assert ask(image.image_key, image.etag, part) == Answer(now.etag, len(DATA), b"")
    assert FetchImages(InputSpec.of(bucket)).fetch([image])[0].code is ErrorCode.CHANGED


def test_a_tar_is_read_by_ranges(any_server):
    members = {f"{n}.jpg": DATA + bytes([n]) for n in range(20)}
    bucket = any_server.bucket("tars", {"train.tar": tar_of(member(name, data) for name, data in members.items())})
    assert read_all(bucket) == {f"{bucket}/train.tar#{name}": data for name, data in members.items()}


def test_bytes_that_do_not_match_the_checksum_are_not_taken(server):
    bucket = server.bucket("photos", {"a.jpg": DATA})
    assert ask(f"{bucket}/a.jpg").is_whole
    server.damage = b"!"
    assert not ask(f"{bucket}/a.jpg").is_whole
    assert read_all(bucket)[f"{bucket}/a.jpg"].code is ErrorCode.CORRUPT_IN_TRANSIT


def test_errors_that_may_pass_are_tried_again(server):
    bucket = server.bucket("photos", {"a.jpg": DATA})
    server.statuses = [503, 429, 500]
    [image] = list_images(bucket)
    server.statuses = [503, 0, 0, 500]
    [found] = FetchImages(InputSpec.of(bucket)).fetch([image])
    assert found.data == DATA
    server.statuses = [503]
    with pytest.raises(PassingError, match="a planned 503") as error:
        ask(image.image_key)
    assert error.value.retry_cause == "throttled"


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_one_line_and_not_tried_again(status, server):
    bucket = server.bucket("photos", {"a.jpg": DATA})
    [image] = list_images(bucket)
    server.statuses = [status]
    assert FetchImages(InputSpec.of(bucket)).fetch([image])[0].code is ErrorCode.ACCESS_DENIED
    server.statuses = [status]
    with pytest.raises(RunError, match=rf"no permission to list --input gs://photos: .*{status}.*a planned {status}"):
        list(list_inputs(InputSpec.of(bucket)))
    assert not server.statuses


# --- who asks, and who pays -------------------------------------------------------------------------------------------


def test_credentials_are_sent_and_anonymous_sends_none(server, monkeypatch):
    from google.oauth2.credentials import Credentials

    bucket = server.bucket("photos", {"a.jpg": DATA})
    monkeypatch.setattr("google.auth.default", lambda **_: (Credentials("ya29.TOKEN"), "a-project"))
    for anonymous in (False, True):
        server.asked.clear()
        assert len(list(list_images(bucket, access=Access(anonymous=anonymous)))) == 1
        sent = [headers.get("authorization") for _, headers in server.asked]
        assert sent == [None if anonymous else "Bearer ya29.TOKEN"]


def test_a_run_without_credentials_looks_for_none(server, tmp_path, monkeypatch):
    """Looking takes Google's library 16 s on a machine that has none."""
    sought = []
    monkeypatch.setattr("google.auth.default", lambda **_: sought.append("credentials") or (None, None))
    bucket = server.bucket("photos", {"a.jpg": DATA})
    settings = with_whole_places(Settings(input=(f"{bucket}/*.jpg",), output=str(tmp_path / "out"), anonymous=True))
    usable_output(settings)
    [table] = list_inputs(input_spec(settings))
    assert table["image_key"].to_pylist() == [f"{bucket}/a.jpg"] and not sought


def test_the_project_that_pays_is_named_in_each_request(server, monkeypatch):
    bucket = server.bucket("photos", {"a.jpg": DATA})
    server.requester_pays = True
    with pytest.raises(RunError, match=r"requester pays bucket .*\(give --requester-pays\)"):
        list(list_images(bucket))
    fields = {"access": Access(requester_pays=True)}
    with pytest.raises(RunError, match="--requester-pays needs a project that pays; set GOOGLE_CLOUD_PROJECT"):
        list(list_images(bucket, **fields))
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "who-pays")
    server.asked.clear()
    assert read_all(bucket, **fields) == {f"{bucket}/a.jpg": DATA}
    assert all("userProject=who-pays" in path for path, _ in server.asked) and len(server.asked) == 2


def test_requester_pays_needs_the_credentials_that_anonymous_leaves_out():
    with pytest.raises(RunError, match="--requester-pays needs the credentials that --anonymous leaves out"):
        open_input("gs://photos", Access(anonymous=True, requester_pays=True))


def test_other_errors_of_gcsfs_are_one_line_too():
    from gcsfs.retry import HttpError

    said = pytest.raises(RunError, match="cannot be read: Invalid Credentials, 401")
    with said, store_errors_as(RunError, "cannot be read"):
        raise HttpError({"code": 401, "message": "Invalid Credentials"})
