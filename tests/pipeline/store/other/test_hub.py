"""Repositories of the Hugging Face hub, on a server that speaks the few addresses that are asked."""

import pytest

pytest.importorskip("huggingface_hub", reason="needs the extra `hub`")

from huggingface_hub import constants

from pipeline.errors import ErrorCode, RunError
from pipeline.input_spec import Access, InputSpec
from pipeline.inputs.fetch import FetchImages
from pipeline.inputs.listing import list_inputs
from pipeline.store.other.answer import Answer
from pipeline.store.other.hub import HubFileSystem
from pipeline.store.other.opening import open_input
from tests.support.hub_server import hub_server
from tests.support.listed import list_images
from tests.support.other_stores import ask, read_all
from tests.support.tars import member, tar_of

DATA = b"encoded image bytes" * 50
REPOSITORY = "hf://datasets/owner/name"
FILES = {"a.jpg": False, "in/b c.jpg": True, "in/ü#1.jpg": False, "in/x?y": True, "in.jpg": True}
pytestmark = pytest.mark.usefixtures("no_pauses")


@pytest.fixture
def server(monkeypatch):
    with hub_server() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_a_token_of_the_environment")
        HubFileSystem.clear_instance_cache()
        yield running
        HubFileSystem.clear_instance_cache()


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/3"])
def test_the_files_of_a_repository_are_listed_and_read_under_their_names(revision, server):
    server.page_size = 2
    for path, is_large in FILES.items():
        server.put(path, DATA + path.encode(), is_large=is_large, revision=revision)
    root = REPOSITORY if revision == "main" else f"{REPOSITORY}@{revision}"
    assert read_all(root) == {f"{root}/{path}": DATA + path.encode() for path in FILES}
    assert set(read_all(f"{root}/in")) == {f"{root}/{path}" for path in FILES if path.startswith("in/")}
    assert set(read_all(f"{root}/in.jpg")) == {f"{root}/in.jpg"}
    filesystem, path = open_input(f"{root}/in")
    assert filesystem.isdir(path) and not filesystem.isfile(path)
    assert not filesystem.dircache
    with pytest.raises(RunError, match="does not exist"):
        list(list_inputs(InputSpec.of(f"{root}/none")))


@pytest.mark.parametrize("is_large", [False, True])
def test_a_file_is_named_by_its_content_and_a_change_is_noticed(is_large, server):
    server.put("a.jpg", DATA, is_large=is_large)
    [image] = list_images(REPOSITORY)
    server.asked.clear()
    assert ask(image.image_key, image.etag) == Answer(image.etag, len(DATA), DATA)
    assert ask(image.image_key) == Answer(image.etag, len(DATA), DATA)
    assert ask(image.image_key, image.etag, (3, 4)) == Answer(image.etag, len(DATA), DATA[3:7])
    assert ask(image.image_key, image.etag, (len(DATA), 4)) == Answer(image.etag, len(DATA), b"")
    assert len(server.asked) == 4
    server.put("a.jpg", DATA[::-1], is_large=is_large)
    server.elsewhere.asked.clear()
    for part in (None, (0, 5)):
        assert ask(image.image_key, image.etag, part).data == b"" and not server.elsewhere.asked
    assert FetchImages(InputSpec.of(REPOSITORY)).fetch([image])[0].code is ErrorCode.CHANGED


def test_bytes_that_are_not_those_of_the_name_are_not_taken(server):
    server.put("a.jpg", DATA, is_large=True)
    [place] = server.elsewhere.objects
    server.elsewhere.objects[place].data = DATA[:-1] + b"?"
    assert read_all(REPOSITORY)[f"{REPOSITORY}/a.jpg"].code is ErrorCode.CORRUPT_IN_TRANSIT


def test_a_tar_is_read_by_ranges(server):
    members = {f"{n}.jpg": DATA + bytes([n]) for n in range(20)}
    server.put("train.tar", tar_of(member(name, data) for name, data in members.items()), is_large=True)
    assert read_all(REPOSITORY) == {f"{REPOSITORY}/train.tar#{name}": data for name, data in members.items()}


def test_the_token_goes_to_the_hub_alone_and_anonymous_sends_none(server):
    server.put("a.jpg", DATA, is_large=True)
    for anonymous in (False, True):
        server.asked.clear()
        read_all(REPOSITORY, access=Access(anonymous=anonymous))
        sent = {headers.get("authorization") for _, _, headers in server.asked}
        assert sent == {None if anonymous else "Bearer hf_a_token_of_the_environment"}
    assert len(server.elsewhere.headers_seen) == 2
    assert not any("authorization" in headers for headers in server.elsewhere.headers_seen)


def test_a_listing_that_goes_on_elsewhere_is_refused(server):
    for number in range(3):
        server.put(f"{number}.jpg", DATA)
    server.page_size, server.next_server = 2, server.elsewhere.uri("")
    with pytest.raises(RunError, match="goes on at another server"):
        list(list_inputs(InputSpec.of(REPOSITORY)))
    assert not server.elsewhere.asked


def test_errors_that_may_pass_are_tried_again_and_others_are_one_line(server):
    server.put("a.jpg", DATA)
    server.statuses[:] = [503, 429]
    [image] = list_images(REPOSITORY)
    server.statuses[:] = [503, 500]
    assert FetchImages(InputSpec.of(REPOSITORY)).fetch([image])[0].data == DATA
    server.statuses[:] = [403]
    assert FetchImages(InputSpec.of(REPOSITORY)).fetch([image])[0].code is ErrorCode.ACCESS_DENIED
    server.statuses[:] = [200] * 5
    with pytest.raises(RunError, match="the answer for hf://datasets/owner/name is no JSON"):
        list(list_inputs(InputSpec.of(REPOSITORY)))
    server.statuses[:] = [401]
    with pytest.raises(RunError, match=r"no permission to list --input hf://.*: .*401 Unauthorized: a planned 401"):
        list(list_inputs(InputSpec.of(REPOSITORY)))
    assert not server.statuses


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("hf://gpt2", "names no files of a repository"),
        ("hf://buckets/owner/name/x", "lies in a bucket of the hub"),
    ],
)
def test_what_is_no_repository_is_one_line(uri, said, server):
    with pytest.raises(RunError, match=said):
        list(list_inputs(InputSpec.of(uri)))


def test_no_request_is_sent_where_the_environment_forbids_it(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match="the variable HF_HUB_OFFLINE forbids requests to the hub"):
        open_input(REPOSITORY)
    with pytest.raises(RunError, match="--requester-pays is for s3:// and gs://, not hf://"):
        open_input(REPOSITORY, Access(requester_pays=True))
