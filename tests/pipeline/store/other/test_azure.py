"""Azure Blob Storage, on Azurite."""

import shutil

import pytest

pytest.importorskip("adlfs", reason="needs the extra `azure`")
if shutil.which("azurite-blob") is None:
    pytest.skip("needs Azurite on the PATH: npm install -g azurite", allow_module_level=True)

from pipeline.errors import ErrorCode, RunError
from pipeline.input_spec import Access, InputSpec
from pipeline.inputs.fetch import FetchImages
from pipeline.inputs.listing import list_inputs
from pipeline.store.objects import TooManyBytesError
from pipeline.store.other import azure
from pipeline.store.other.answer import Answer, PassingError
from pipeline.store.other.azure import AzureFileSystem
from pipeline.store.other.opening import open_input
from tests.support.azure_server import azure_server
from tests.support.listed import list_images
from tests.support.other_stores import ask, read_all
from tests.support.tars import member, tar_of

DATA = b"encoded image bytes" * 50
KEYS = ("a.jpg", "in/b c.jpg", "in/ü%20.jpg", "in/x?y=1&z", "in/x?versionid=3", "in/photo#123", "in.jpg", "zz")
pytestmark = pytest.mark.usefixtures("no_pauses")


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with azure_server(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture
def server(running, monkeypatch):
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    AzureFileSystem.clear_instance_cache()
    running.statuses.clear()
    yield running
    AzureFileSystem.clear_instance_cache()


def test_the_blobs_of_a_container_are_listed_and_read_under_their_names(server, monkeypatch):
    monkeypatch.setattr(azure, "_PAGE", 3)
    container = server.container("photos", {key: DATA + key.encode() for key in KEYS})
    assert read_all(container) == {f"{container}/{key}": DATA + key.encode() for key in KEYS}
    assert read_all("az://photos/in.jpg") == {"abfs://photos/in.jpg": DATA + b"in.jpg"}
    assert set(read_all(f"{container}/in")) == {f"{container}/{key}" for key in KEYS if key.startswith("in/")}
    filesystem, path = open_input(f"{container}/in")
    assert filesystem.isdir(path) and not filesystem.isfile(path) and filesystem.isfile("photos/in.jpg")
    assert not filesystem.dircache
    for missing in ("abfs://photos/none", "abfs://no-container", "abfs://no-container/x"):
        with pytest.raises(RunError, match="does not exist"):
            list(list_inputs(InputSpec.of(missing)))


def test_marks_of_folders_are_no_images(server):
    container = server.container("marks", {"a/x.jpg": DATA, "b/": b""})
    server.put("marks/a", b"", metadata={"hdi_isfolder": "true"})
    assert set(read_all(container)) == {f"{container}/a/x.jpg"}


def test_a_blob_is_one_request_and_changes_are_told_by_its_etag(server):
    container = server.container("one", {"a.jpg": DATA})
    [image] = list_images(container)
    server.asked.clear()
    assert ask(image.image_key, image.etag) == Answer(image.etag, len(DATA), DATA)
    assert ask(image.image_key) == Answer(image.etag, len(DATA), DATA)
    assert ask(image.image_key, image.etag, (3, 4)) == Answer(image.etag, len(DATA), DATA[3:7])
    assert len(server.asked) == 3
    assert ask(image.image_key, image.etag, (len(DATA), 4)) == Answer(image.etag, len(DATA), b"")
    with pytest.raises(TooManyBytesError):
        ask(image.image_key, most_bytes=len(DATA) - 1)
    server.put("one/a.jpg", DATA[::-1])
    [now] = list_images(container)
    for part in (None, (0, 5)):
        assert ask(image.image_key, image.etag, part) == Answer(now.etag, len(DATA), b"")
    assert FetchImages(InputSpec.of(container)).fetch([image])[0].code is ErrorCode.CHANGED


def test_a_tar_is_read_by_ranges(server):
    members = {f"{n}.jpg": DATA + bytes([n]) for n in range(20)}
    tar = tar_of(member(name, data) for name, data in members.items())
    container = server.container("tars", {"train.tar": tar})
    assert read_all(container) == {f"{container}/train.tar#{name}": data for name, data in members.items()}


def test_bytes_that_do_not_match_the_checksum_are_not_taken(server, monkeypatch):
    container = server.container("sums", {"a.jpg": DATA})
    [image] = list_images(container)
    assert ask(image.image_key).is_whole
    monkeypatch.setattr(server, "damages", True)
    assert not ask(image.image_key).is_whole
    assert FetchImages(InputSpec.of(container)).fetch([image])[0].code is ErrorCode.CORRUPT_IN_TRANSIT


def test_errors_that_may_pass_are_tried_again(server):
    container = server.container("storm", {"a.jpg": DATA})
    server.statuses[:] = [503, 500, 0]
    [image] = list_images(container)
    server.statuses[:] = [503, 500, 0]
    [found] = FetchImages(InputSpec.of(container)).fetch([image])
    assert found.data == DATA
    server.statuses[:] = [503]
    with pytest.raises(PassingError, match="503") as error:
        ask(image.image_key)
    assert error.value.retry_cause == "throttled"


def test_a_refusal_is_one_line_and_not_tried_again(server):
    container = server.container("closed", {"a.jpg": DATA})
    [image] = list_images(container)
    server.statuses[:] = [403]
    assert FetchImages(InputSpec.of(container)).fetch([image])[0].code is ErrorCode.ACCESS_DENIED
    server.statuses[:] = [403]
    with pytest.raises(RunError, match=r"no permission to list --input abfs://closed: .*403"):
        list(list_inputs(InputSpec.of(container)))
    assert not server.statuses


def test_credentials_that_cannot_be_had_are_a_refusal(server, monkeypatch):
    """Azure's library raises an error without an answer, as for a body that ends early."""
    from azure.identity.aio import EnvironmentCredential
    from azure.storage.blob.aio import BlobServiceClient

    container = server.container("secret", {"a.jpg": DATA})
    [image] = list_images(container)
    client = BlobServiceClient("https://127.0.0.1:9", credential=EnvironmentCredential())
    monkeypatch.setattr(open_input(container)[0], "service_client", client)
    [error] = FetchImages(InputSpec.of(container)).fetch([image])
    assert error.code is ErrorCode.ACCESS_DENIED and "EnvironmentCredential authentication unavailable" in error.message


def test_a_redirect_is_not_followed(server):
    server.container("moved", {"a.jpg": DATA})
    server.asked.clear()
    server.statuses[:] = [302]
    with pytest.raises(OSError):
        ask("abfs://moved/a.jpg")
    assert not server.statuses and len(server.asked) == 1


def test_anonymous_sends_no_credentials(server):
    container = server.container("public", {"a.jpg": DATA}, public="container")
    for anonymous in (False, True):
        server.asked.clear()
        assert read_all(container, access=Access(anonymous=anonymous)) == {f"{container}/a.jpg": DATA}
        assert len(server.asked) == 2
        assert all(("authorization" in headers) != anonymous for _, _, headers in server.asked)


def test_what_is_missing_in_the_environment_is_one_line(monkeypatch):
    for name in ("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)
    AzureFileSystem.clear_instance_cache()
    with pytest.raises(RunError, match=r"cannot open abfs://photos: .*account_name"):
        open_input("abfs://photos")
    with pytest.raises(RunError, match="--requester-pays is for s3:// and gs://, not abfs://"):
        open_input("abfs://photos", Access(requester_pays=True))
