"""Headers are read in few requests, whatever the sizes of members; errors of the store are retried, then one line."""

import tarfile
import threading
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import RunError
from pipeline.input_spec import InputSpec
from pipeline.inputs import listing, verified
from pipeline.inputs.container import Container, LeftOut
from pipeline.inputs.fetch import FetchImages
from pipeline.inputs.listing import list_inputs
from pipeline.inputs.reads import ReadImage
from pipeline.inputs.tar import range_file
from pipeline.inputs.tar.index import index_tar
from pipeline.inputs.tar.range_file import RangeFile, TooLongError
from pipeline.store.filesystem import open_filesystem
from tests.support.listed import list_images
from tests.support.tars import member, tar_of

KIB, MIB = 2**10, 2**20


class MemoryFile(RangeFile):
    """A file of bytes in place of a store; notes each request."""

    def __init__(self, data, size=None):
        filesystem, _ = open_filesystem("memory://")
        spec = InputSpec.of("memory://in")
        super().__init__(Container(filesystem, "memory://in/a.tar", "e", size or len(data), spec, LeftOut()))
        self.data, self.requests = data, []

    def _request(self, first, length):
        self.requests.append((first, length))
        return self.data[first : first + length]


class SparseFile(MemoryFile):
    """Headers at given places, and zeros between: a tar of many gigabytes takes no memory."""

    def __init__(self, sizes):
        self.headers, place = {}, 0
        for number, size in enumerate(sizes):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = size
            self.headers[place] = info.tobuf(tarfile.USTAR_FORMAT)
            place += 512 + -(-size // 512) * 512
        self.places = list(self.headers)
        super().__init__(b"", place + 1024)

    def _request(self, first, length):
        self.requests.append((first, length))
        data = bytearray(length)
        for place in self.places[bisect_left(self.places, first - 511) : bisect_left(self.places, first + length)]:
            part = self.headers[place][max(0, first - place) : first + length - place]
            data[max(0, place - first) : max(0, place - first) + len(part)] = part
        return bytes(data)


@given(st.binary(max_size=3000), st.data(), st.integers(1, 700))
def test_the_bytes_are_those_of_the_file_whatever_the_blocks_are(data, draw, block):
    file, position = MemoryFile(data), 0
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(range_file, "_LEAST_BLOCK", block)
        patched.setattr(range_file, "_MOST_BLOCK", 2 * block)
        patched.setattr(range_file, "_NEAR_BYTES", block)
        for _ in range(draw.draw(st.integers(1, 10))):
            if draw.draw(st.booleans()):
                position = draw.draw(st.integers(0, len(data) + 100))
                file.seek(position)
            number = draw.draw(st.integers(0, 900))
            file.allow(number)
            assert file.peek(number) == file.read(number) == data[position : position + number]
            position = min(position + number, max(position, len(data)))
            assert file.tell() == position
    assert all(0 <= first < first + length <= len(data) for first, length in file.requests)


def test_a_header_cannot_ask_for_any_number_of_bytes():
    file = MemoryFile(b"x" * 1000)
    file.allow(700)
    file.read(500)
    for wrong in (201, -1, 2**70):
        with pytest.raises(TooLongError):
            file.read(wrong)
    with pytest.raises(ValueError, match="no byte -1"):
        file.seek(-1)


@pytest.mark.parametrize(
    ("sizes", "most_requests", "most_bytes"),
    [
        ([100 * KIB] * 10_000, 140, 1.01),  # streamed through: 0.014 requests an image
        ([1 * KIB, 100 * KIB] * 5_000, 75, 1.01),
        ([1 * MIB] * 1_000, 145, 1.01),
        ([5 * MIB] * 500, 501, 0.02),  # a request for each header, and the data is skipped
        ([5 * MIB, 1 * KIB] * 500, 502, 0.02),
        ([100 * KIB] * 1_000 + [2**30] * 20 + [100 * KIB] * 1_000, 70, 0.02),
        ([0] * 20_000, 8, 1.01),
    ],
)
def test_few_requests_find_all_headers(sizes, most_requests, most_bytes):
    file = SparseFile(sizes)
    index = index_tar(file)
    assert index.images["size_bytes"].to_pylist() == sizes and index.damage is None
    assert len(file.requests) <= most_requests
    assert sum(length for _, length in file.requests) <= most_bytes * file.size


def test_who_wants_one_image_reads_one_block():
    file = SparseFile([100 * KIB] * 1_000)
    assert index_tar(file, lambda key: key == "memory://in/a.tar#0.jpg").images.num_rows == 1
    assert [length for _, length in file.requests] == [64 * KIB]


def test_a_tar_in_a_bucket_is_listed_and_read_in_a_few_requests(s3):
    bucket = s3.bucket("tars")
    images = {f"{number:03d}.jpg": bytes([number % 256]) * 9_000 for number in range(300)}
    members = [one for name, data in images.items() for one in (member(name, data), member(f"{name}.json", b"{}"))]
    s3.client.put_object(Bucket="tars", Key="a.tar", Body=tar_of(members))
    requests = []
    filesystem, _ = open_filesystem(bucket)
    filesystem.s3.meta.events.register(
        "before-send.s3", lambda request, **_: requests.append(request.headers.get("Range"))
    )
    listed = list(list_images(bucket))
    assert [image.image_key for image in listed] == [f"{bucket}/a.tar#{name}" for name in images]
    assert {image.etag for image in listed} == {s3.client.head_object(Bucket="tars", Key="a.tar")["ETag"].strip('"')}
    # The listing, and blocks of 64, 128, ... KiB, each from the first header that the block before did not hold.
    assert len(requests) <= 7 and requests[:2] == [None, b"bytes=0-65535"]
    requests.clear()
    read = FetchImages(InputSpec.of(bucket)).fetch_all(listed)
    assert [result.data for result in read] == list(images.values()) and len(requests) == 1


def test_a_tar_that_was_replaced_since_it_was_listed_is_a_row_that_is_tried_again(s3, monkeypatch):
    bucket = s3.bucket("replaced-tars")
    s3.client.put_object(Bucket="replaced-tars", Key="a.tar", Body=tar_of([member("a.jpg", b"1")]))
    list_of = list(list_images(bucket))
    read_range = verified.read_range

    def replaced(*args):
        s3.client.put_object(Bucket="replaced-tars", Key="a.tar", Body=tar_of([member("a.jpg", b"2")]))
        return read_range(*args)

    monkeypatch.setattr(verified, "read_range", replaced)
    [image] = list_images(bucket)
    assert image.image_key == f"{bucket}/a.tar" and image.fault.startswith("changed: the object had ETag ")
    [result] = FetchImages(InputSpec.of(bucket)).fetch_all(list_of)
    assert str(result).startswith("changed: the object had ETag ")


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize(
    ("errors", "said"),
    [
        ([OSError(16, "SlowDown")] * 3, None),
        ([TimeoutError("slow")] * 9, r"--input: file://.*/a\.tar cannot be read: slow"),
        ([OSError(5, "broken")] * 9, r"--input: file://.*/a\.tar cannot be read: .*broken"),
        ([PermissionError("forbidden")], "access_denied: forbidden"),
        ([FileNotFoundError("gone")], ""),
    ],
)
def test_errors_of_the_store_are_retried_then_one_line_that_names_the_tar(tmp_path, monkeypatch, errors, said):
    (tmp_path / "a.tar").write_bytes(tar_of([member("a.jpg", b"1")]))
    read_range, left = verified.read_range, list(errors)

    def failing(*args):
        if left:
            raise left.pop(0)
        return read_range(*args)

    monkeypatch.setattr(verified, "read_range", failing)
    if len(errors) == 9:
        with pytest.raises(RunError, match=said):
            list(list_inputs(InputSpec.of(str(tmp_path))))
        assert len(left) == 4  # of 9, five attempts have failed
        return
    found = [image.fault or image.image_key.rpartition("#")[2] for image in list_images(str(tmp_path))]
    assert found == ([said] if said else ["a.jpg"] if said is None else [])


def test_a_place_that_holds_no_header_is_read_twice_and_then_a_row(tmp_path, monkeypatch):
    path = tmp_path / "a.tar"
    path.write_bytes(tar_of(member(f"{number}.jpg", bytes([number]) * 600) for number in range(4)))
    images = list(list_images(str(tmp_path)))
    wrong = [
        images[0],
        images[1].__class__(**{**vars(images[1]), "position": images[1].position + 512}),
        images[2].__class__(**{**vars(images[2]), "size_bytes": 599}),
        images[3].__class__(**{**vars(images[3]), "position": 100}),
    ]
    requests, read_range = [], verified.read_range
    monkeypatch.setattr(
        "pipeline.inputs.reads.read_range", lambda *args: (requests.append(args[3:5]), read_range(*args))[1]
    )
    monkeypatch.setattr("pipeline.store.retries.sleep", lambda seconds: None)
    results = FetchImages(InputSpec.of(str(tmp_path))).fetch_all(wrong)
    assert isinstance(results[0], ReadImage) and results[0].data == bytes(600)
    said = [str(result) for result in results[1:]]
    assert said[0].startswith("damaged_container: no file of 600 bytes lies at byte 2560 of the tar: ")
    assert (
        said[1]
        == "damaged_container: no file of 599 bytes lies at byte 3584 of the tar: the header there says 600 bytes"
    )
    assert said[2].endswith("no header fits before it")
    assert requests == [(0, 4183)] * 2


def test_a_tar_that_nobody_wants_any_more_is_not_read_on(tmp_path, monkeypatch):
    """Ctrl-C ends the threads that read headers; a tar of gigabytes would take them minutes."""
    (tmp_path / "0.tar").write_bytes(tar_of([member("a.jpg", b"1")]))
    (tmp_path / "1.tar").write_bytes(tar_of(member(f"{n}.jpg", bytes(100_000)) for n in range(40)))
    begun, may_go_on, requests, read_range = threading.Event(), threading.Event(), [], verified.read_range
    stops, set_at_end = [], listing._set_on_break

    def slow(*args):
        if args[1].endswith("1.tar"):
            requests.append(args[3])
            begun.set()
            assert may_go_on.wait(60)
        return read_range(*args)

    monkeypatch.setattr(verified, "read_range", slow)
    monkeypatch.setattr(listing, "_set_on_break", lambda event: (stops.append(event), set_at_end(event))[1])
    tables = list_inputs(InputSpec.of(str(tmp_path)))
    assert next(tables)["image_key"].to_pylist() == [f"file://{tmp_path}/0.tar#a.jpg"]
    assert begun.wait(60)
    closing = threading.Thread(target=tables.close)
    closing.start()
    assert stops[0].wait(60)
    may_go_on.set()
    closing.join(60)
    assert not closing.is_alive() and len(requests) == 1
