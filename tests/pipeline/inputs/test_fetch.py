"""Reading: right bytes or a row that says why not; transient faults are retried, wrong bytes never accepted."""

import asyncio
import hashlib
from contextlib import nullcontext
from functools import partial

import pyarrow as pa
import pytest
from fsspec.asyn import AsyncFileSystem
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ErrorCode, ImageError, RunError, StoreUnavailableError
from pipeline.input_spec import InputSpec
from pipeline.inputs.fetch import FetchImages, _joined
from pipeline.inputs.reads import ListedImage, ReadImage
from pipeline.inputs.verified import MAX_OBJECT_BYTES, request_seconds
from pipeline.schema import FETCHED, pack_shard, unpack_shard
from tests.support.listed import PlannedImage, list_images, planned_table

DATA = b"encoded image bytes" * 50
ETAG = hashlib.md5(DATA).hexdigest()


class FakeStore(AsyncFileSystem):
    """Answers each read with the next of `answers`: bytes, or an exception to raise. Looks like S3 to `read`."""

    protocol = "memory"
    cachable = False

    def __init__(self, *answers, head=None):
        super().__init__()
        self.answers = list(answers)
        self.head = head or {"ETag": f'"{ETAG}"'}
        self.reads = 0
        self.bodies = []

    def call_s3(self, method, **kwargs):
        raise NotImplementedError

    async def _call_s3(self, method, **kwargs):
        assert method == "get_object"
        self.reads += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        self.bodies.append(FakeBody(answer))
        return {"Body": self.bodies[-1], "ContentLength": len(answer or b""), **self.head}


class FakeBody:
    def __init__(self, data):
        self.data = data
        self.is_open = True

    async def read(self):
        if self.data is None:
            await asyncio.sleep(1000)
        return self.data

    def close(self):
        self.is_open = False


pytestmark = pytest.mark.usefixtures("no_pauses")


def stage_on(store, uri="memory://bucket", **options):
    """A stage that reads all objects from `store`."""
    stage = FetchImages(InputSpec.of(uri), **options)
    stage.reader.filesystems = dict.fromkeys(("memory", "slow"), store)
    return stage


def fetch_one(stage, key, etag=ETAG, size_bytes=len(DATA)):
    """The bytes of an object, or the error."""
    [read] = stage.fetch([ListedImage(key, etag, size_bytes)])
    return read.data if isinstance(read, ReadImage) else read


def fetch(store, etag=ETAG, size_bytes=len(DATA)):
    return fetch_one(stage_on(store), "memory://bucket/a.jpg", etag, size_bytes)


@pytest.mark.parametrize(
    "fault",
    [
        OSError(16, "SlowDown"),
        TimeoutError("read timed out"),
        ConnectionResetError(),
        DATA[:-1],  # a cut body
        DATA[:-1] + b"?",  # a flipped byte
    ],
)
def test_a_passing_fault_is_read_again(fault):
    store = FakeStore(fault, fault, DATA)
    assert fetch(store) == DATA
    assert store.reads == 3


@pytest.mark.parametrize(
    ("answer", "code", "reads"),
    [
        (FileNotFoundError("gone"), ErrorCode.NOT_FOUND, 1),
        (PermissionError("no"), ErrorCode.ACCESS_DENIED, 1),
        (OSError(5, "broken"), ErrorCode.READ_FAILED, 4),
        (DATA[:-1], ErrorCode.CORRUPT_IN_TRANSIT, 4),
        (DATA[:-1] + b"?", ErrorCode.CORRUPT_IN_TRANSIT, 4),
    ],
)
def test_a_lasting_fault_is_a_row_with_its_code(answer, code, reads):
    store = FakeStore(answer)
    result = fetch(store)
    assert isinstance(result, ImageError) and result.code is code and result.message
    assert store.reads == reads


def test_a_replaced_object_is_not_read_as_the_planned_one():
    store = FakeStore(b"other bytes", head={"ETag": '"another"'})
    result = fetch(store)
    assert isinstance(result, ImageError) and result.code is ErrorCode.CHANGED


def test_the_body_of_a_replaced_object_is_not_read():
    store = FakeStore(None, head={"ETag": '"another"'})  # would sleep
    result = fetch(store)
    assert isinstance(result, ImageError) and result.code is ErrorCode.CHANGED
    assert [body.is_open for body in store.bodies] == [False]


def test_an_etag_of_a_multipart_upload_is_no_digest():
    etag = "0123456789abcdef0123456789abcdef-3"
    assert fetch(FakeStore(DATA, head={"ETag": f'"{etag}"'}), etag=etag) == DATA
    replaced = fetch(FakeStore(DATA[::-1], head={"ETag": f'"{"f" * 32}-3"'}), etag=etag)  # of the same size
    assert isinstance(replaced, ImageError) and replaced.code is ErrorCode.CHANGED


def test_an_etag_of_an_encrypted_object_is_no_digest():
    etag = "0" * 32
    kms = {"ETag": f'"{etag}"', "ServerSideEncryption": "aws:kms"}
    assert fetch(FakeStore(DATA, head=kms), etag=etag) == DATA
    plain = {"ETag": f'"{etag}"', "ServerSideEncryption": "AES256"}
    result = fetch(FakeStore(DATA, head=plain), etag=etag)
    assert isinstance(result, ImageError) and result.code is ErrorCode.CORRUPT_IN_TRANSIT


def test_an_object_of_a_bucket_is_one_request_also_where_it_was_replaced(s3):
    folder = s3.bucket("one-get")
    stage = FetchImages(InputSpec.of(folder))
    filesystem, root = stage.reader.place(folder)
    filesystem.pipe_file(f"{root}/a.jpg", DATA)
    [image] = list_images(folder)
    requests = []
    filesystem.s3.meta.events.register("before-send.s3", lambda request, **_: requests.append(request.method))
    assert fetch_one(stage, image.image_key, image.etag, image.size_bytes) == DATA
    result = fetch_one(stage, image.image_key, "0" * 32, image.size_bytes)
    assert isinstance(result, ImageError) and result.code is ErrorCode.CHANGED
    assert requests == ["GET", "GET"]


def test_local_files_that_changed_or_went_are_rows(tmp_path):
    for name in ("same", "longer", "touched", "gone"):
        (tmp_path / name).write_bytes(DATA)
    listed = {image.image_key.rsplit("/", 1)[1]: image for image in list_images(str(tmp_path))}
    (tmp_path / "longer").write_bytes(DATA + b"!")
    (tmp_path / "touched").write_bytes(DATA[::-1])
    (tmp_path / "gone").unlink()
    stage = FetchImages(InputSpec.of(str(tmp_path)))
    got = {n: fetch_one(stage, i.image_key, i.etag, i.size_bytes) for n, i in listed.items()}
    assert got["same"] == DATA
    assert {n: r.code for n, r in got.items() if n != "same"} == {
        "longer": ErrorCode.CHANGED,
        "touched": ErrorCode.CHANGED,
        "gone": ErrorCode.NOT_FOUND,
    }


def test_a_shard_keeps_its_order_and_every_image_has_bytes_or_an_error(tmp_path):
    for index in range(40):
        (tmp_path / f"{index:02d}").write_bytes(b"x" * index)
    listed = list(list_images(str(tmp_path)))
    (tmp_path / "07").unlink()
    planned = planned_table(PlannedImage(**vars(image)) for image in listed)
    shard, images = unpack_shard(FetchImages(InputSpec.of(str(tmp_path)))(pack_shard(5, planned)))
    assert shard == 5 and images.schema.equals(FETCHED)
    assert images.column("image_key").to_pylist() == [image.image_key for image in listed]
    for index, row in enumerate(images.to_pylist()):
        expected = (None, "not_found") if index == 7 else (b"x" * index, None)
        assert (row["data"], row["error_code"]) == expected


def test_of_a_shard_nothing_is_read_if_the_run_stops_and_only_then(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(DATA)
    row = pack_shard(5, planned_table(PlannedImage(**vars(image)) for image in list_images(str(tmp_path))))
    answers = [None, False, True]  # None: of a Tell that says nothing
    stage = FetchImages(InputSpec.of(str(tmp_path)), tell=lambda *args: nullcontext(answers.pop(0)))
    read = [stage(row) for _ in range(2)]
    assert [unpack_shard(one)[1].column("data").to_pylist() for one in read] == [[DATA], [DATA]]
    monkeypatch.setattr(stage, "fetch_all", lambda images: pytest.fail("something is read"))
    left = stage(row)
    assert left.num_rows == 0 and left.schema.equals(read[0].schema)


def test_an_object_too_large_for_an_image_is_not_read():
    store = FakeStore(DATA)
    result = fetch(store, size_bytes=MAX_OBJECT_BYTES + 1)
    assert isinstance(result, ImageError) and result.code is ErrorCode.TOO_LARGE
    assert store.reads == 0


def test_a_node_that_has_not_the_input_ends_the_run_and_calls_no_image_missing(tmp_path):
    stage = FetchImages(InputSpec.of(str(tmp_path / "only on the driver")))
    row = pack_shard(0, planned_table([PlannedImage("file:///a", "e", 1)]))
    with pytest.raises(RunError, match=r"--input .* does not exist on "):
        stage(row)


class SlowStore(AsyncFileSystem):
    """Answers after `seconds`; counts what was asked and what was cancelled, which no time-out of fsspec does."""

    protocol = "slow"
    cachable = False

    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.asked, self.cancelled = seconds, 0, 0

    async def _info(self, path, **kwargs):
        return {"name": path, "type": "file", "size": len(DATA), "ETag": f'"{ETAG}"'}

    async def _cat_file(self, path, **kwargs):
        self.asked += 1
        try:
            await asyncio.sleep(self.seconds if self.asked == 1 else 0)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return DATA


def test_a_read_that_takes_too_long_is_cancelled_and_asked_for_again(monkeypatch):
    monkeypatch.setattr(
        "pipeline.inputs.reads.request_seconds", lambda size, attempt, timeout: (0.2, 600.0)[attempt - 1]
    )
    store = SlowStore(seconds=100)
    assert fetch_one(stage_on(store, step_timeout=6000.0), "slow://bucket/a.jpg") == DATA
    assert (store.asked, store.cancelled) == (2, 1)


def test_a_store_that_never_answers_gives_a_row_that_names_object_and_seconds_before_the_watchdog_would():
    store = SlowStore(seconds=100)
    store._cat_file = partial(never, store)
    result = fetch_one(stage_on(store, step_timeout=2.0), "slow://bucket/a.jpg")
    assert str(result) == "read_failed: TimeoutError: bucket/a.jpg was not read within 0.5 s"
    assert 1 <= store.asked == store.cancelled <= 2, "twice 0.5 s on a free machine; more would be the watchdog's"


def test_a_connection_that_sleeps_is_given_up_soon_and_a_slow_store_is_given_longer(monkeypatch):
    seconds = [request_seconds(1_000_000, attempt, step_timeout=600.0) for attempt in (1, 2, 3, 4)]
    assert seconds == pytest.approx([10.2, 30.6, 91.8, 150.0])
    assert request_seconds(500_000_000, 1, step_timeout=600.0) == pytest.approx(110.0)
    monkeypatch.setattr("pipeline.inputs.verified._FIRST_SECONDS", 0.2)
    monkeypatch.setattr("pipeline.inputs.verified._LONGER", 1000.0)  # the second time, on whatever machine, is enough
    store = SlowStore(seconds=100)
    assert fetch_one(stage_on(store, step_timeout=600.0), "slow://bucket/a.jpg") == DATA
    assert (store.asked, store.cancelled) == (2, 1)


def test_a_body_that_falls_asleep_is_closed_with_its_connection():
    store = FakeStore(None, DATA)
    assert fetch_one(stage_on(store, step_timeout=2.0), "memory://bucket/a.jpg") == DATA
    assert [body.is_open for body in store.bodies] == [False, False]


async def never(store, path, **kwargs):
    store.asked += 1
    try:
        await asyncio.sleep(1000)
    except asyncio.CancelledError:
        store.cancelled += 1
        raise


def test_what_a_store_calls_a_time_out_keeps_its_words():
    class Impatient(SlowStore):
        async def _cat_file(self, path, **kwargs):
            raise OSError(110, "idle for 20 seconds")

    result = fetch_one(stage_on(Impatient(0), step_timeout=2.0), "slow://bucket/a.jpg")
    assert str(result) == "read_failed: TimeoutError: [Errno 110] idle for 20 seconds"


def shard_of(*reasons):
    return pack_shard(
        7, planned_table(PlannedImage(f"memory://b/{name}", ETAG, len(DATA), reason=reason) for name, reason in reasons)
    )


def fetch_shard(store, *reasons):
    stage = stage_on(store, "memory://b", step_timeout=60)
    return unpack_shard(stage(shard_of(*enumerate(reasons))))[1]


@pytest.mark.parametrize("error", [PermissionError("the token has expired"), OSError(5, "no route to host")])
def test_where_no_image_of_a_shard_can_be_read_it_is_the_store_and_the_run_breaks(error):
    said = f"--input: none of the 8 images of shard 7 could be read.*credentials; the first error: .*{error.args[-1]}"
    with pytest.raises(StoreUnavailableError, match=said):
        fetch_shard(FakeStore(error), *["new"] * 8, "removed")


class PartlyForbidden(FakeStore):
    """Objects whose key holds `word` may not be read."""

    def __init__(self, word, error):
        super().__init__(DATA)
        self.word, self.error = word, error

    async def _call_s3(self, method, **kwargs):
        if self.word in kwargs["Key"]:
            raise self.error
        return await super()._call_s3(method, **kwargs)


ARCHIVED = PermissionError("InvalidObjectState: the object is archived")


@pytest.mark.parametrize(
    ("word", "error", "elsewhere", "is_row"),
    [
        ("0", ARCHIVED, ["a/00", "b/1"], True),  # a prefix is archived or forbidden, and others are read
        ("0", ARCHIVED, ["a/00", "c/03"], False),  # nothing that was asked for may be read: credentials, more likely
        ("0", ARCHIVED, [], False),
        ("0", ARCHIVED, ["c/03", "film"], False),  # of which nothing is asked: it is too large for an image
        ("0", OSError(5, "no route to host"), ["b/1"], False),  # no answer at all is no matter of images
    ],
)
def test_a_shard_that_may_not_be_read_is_rows_where_others_may(word, error, elsewhere, is_row):
    sizes = {"film": 2**30}
    asked = [ListedImage(f"memory://b/{key}", ETAG, sizes.get(key, len(DATA))) for key in elsewhere]
    stage = stage_on(PartlyForbidden(word, error), "memory://b", step_timeout=60, elsewhere=asked)
    shard = shard_of(*((f"0{n}", "new") for n in range(8)))
    if not is_row:
        with pytest.raises(StoreUnavailableError, match="none of the 8 images of shard 7 could be read"):
            stage(shard)
        return
    assert unpack_shard(stage(shard))[1].column("error_code").to_pylist() == ["access_denied"] * 8


def test_images_that_could_not_be_read_before_do_not_break_the_run():
    """A forbidden prefix is planned again every night, and on a quiet one there is nothing else in the plan."""
    images = fetch_shard(FakeStore(ARCHIVED), *["retry"] * 20)
    assert images.column("error_code").to_pylist() == ["access_denied"] * 20
    with pytest.raises(StoreUnavailableError, match="none of the 8 images"):
        fetch_shard(FakeStore(ARCHIVED), *["retry"] * 20, *["new"] * 8)


@pytest.mark.parametrize(
    ("store", "num_images"),
    [
        (FakeStore(PermissionError("no")), 7),  # a few may well be forbidden
        (FakeStore(FileNotFoundError("gone")), 20),  # the input was emptied: a matter of the images
        (FakeStore(DATA, PermissionError("no")), 20),
    ],
)
def test_other_failures_are_rows(store, num_images):
    images = fetch_shard(store, *["new"] * num_images)
    assert images.column("error_code").null_count <= 1 and images.num_rows == num_images


def test_an_image_that_is_gone_from_the_input_is_not_read():
    store = FakeStore(DATA)
    images = fetch_shard(store, "new", "removed")
    assert images.column("data").to_pylist() == [DATA, None]
    assert images.column("error_code").to_pylist() == [None, None] and store.reads == 1


@given(st.lists(st.none() | st.binary(max_size=20), min_size=1, max_size=30))
def test_bytes_are_put_together_as_pyarrow_does_it(values):
    joined = _joined(values)
    joined.validate(full=True)
    assert joined.equals(pa.array(values, pa.large_binary()))
