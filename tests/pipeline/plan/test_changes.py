"""What the next run has to do: against a naive oracle over random histories, and with more rows than memory."""

import itertools
import os
import tempfile
import threading
import tracemalloc
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Settings
from pipeline.errors import TRANSIENT, ErrorCode, RunError
from pipeline.input_spec import InputSpec, source_of
from pipeline.inputs.listing import list_inputs
from pipeline.inputs.reads import ListedImage
from pipeline.inputs.sources import input_spec
from pipeline.layout import Output
from pipeline.plan import changes, spool
from pipeline.plan.changes import changes_at_once, comparing
from pipeline.schema import IMAGES
from tests.support.listed import PlannedImage, list_images, listed_table, planned_images
from tests.support.published_tables import image_row, publish
from tests.support.run_records import run_json
from tests.support.tars import member, tar_of

# --- a naive oracle over random histories -----------------------------------------------------------------------------

# Weights of the runs of each fingerprint; those of "lost" have no run.json any more.
WEIGHTS = {"now": "w1", "other settings": "w1", "other weights": "w2", "lost": None}

INPUTS = {"s3://bucket/photo": "s3://bucket/photo", "s3://bucket": "s3://bucket", "/data/photo": "file:///data/photo"}
BELOW = ("/x", "/é", "/\U0001f408", "/sub/y", "/sub-y")
BESIDE = ("s2/x", "-1/x", "0", "")  # keys of other inputs; "" is an object that is named as the folder

STATUSES = st.sampled_from([("ok", None), ("failed", "read_failed"), ("failed", "decode_failed"), ("removed", None)])
FACTS = st.sampled_from(
    [("e1", 1), ("e1", 1), ("e1", 1), ("e1", 2), ("e2", 1)]
)  # mostly unchanged: the rest has more rules


@dataclass(frozen=True)
class PastRun:
    night: int
    fingerprint: str
    rows: dict[str, tuple[tuple[str, str | None], tuple[str, int]]]  # end of key -> (status, error code), (etag, size)


RUNS = st.lists(
    st.builds(
        PastRun,
        st.integers(0, 4),
        st.sampled_from(["now", "now", *sorted(WEIGHTS)]),
        st.dictionaries(st.sampled_from(BELOW + BESIDE), st.tuples(STATUSES, FACTS), max_size=6),
    ),
    max_size=4,
)
LISTINGS = st.one_of(
    st.dictionaries(st.sampled_from(BELOW), FACTS),
    st.dictionaries(st.just(""), FACTS, min_size=1),  # the input is one object
)
MODES = st.sampled_from(
    [
        {"mode": mode, "limit": limit, "tombstone_removed": tombstone}
        for mode, limit, tombstone in itertools.product(
            ["incremental", "overwrite", "retry-failed"], [None, 2], [False, True]
        )
        if not (tombstone and (limit or mode == "retry-failed"))
    ]
)


def current_rows(runs: list[PastRun], base: str) -> dict[str, tuple[PastRun, Any]]:
    newest: dict[str, Any] = {}
    for number, run in enumerate(runs):
        for end in run.rows:
            newest[base + end] = max(newest.get(base + end, (-1, -1)), (run.night, number))
    current = {}
    for key, (_, number) in newest.items():
        row = runs[number].rows[key.removeprefix(base)]
        if row[0][0] != "removed":
            current[key] = (runs[number], row)
    return current


def reason_of(run: PastRun | None, row: Any, listed: tuple[str, int], mode: str) -> str:
    if run is None:
        reason = "new"
    elif listed != row[1]:
        reason = "changed"
    elif run.fingerprint != "now":
        reason = "settings_changed" if WEIGHTS[run.fingerprint] == "w1" else "model_changed"
    else:
        reason = "retry" if row[0][1] in [code.value for code in TRANSIENT] else "unchanged"
    if mode == "overwrite" and reason == "unchanged":
        return "overwrite"
    if mode == "retry-failed" and run is not None and row[0][0] == "failed":
        return "retry"
    if mode == "retry-failed" and reason != "unchanged":
        return "not_selected"
    return reason


def oracle(
    runs: list[PastRun], listing: dict[str, tuple[str, int]], settings: Settings, base: str
) -> list[PlannedImage]:
    """Every image of the input, listed or not, in the order of its key's bytes."""
    current = current_rows(runs, base)
    listed = sorted(listing.items(), key=lambda item: item[0].encode())[: settings.limit]
    found = []
    for key, facts in listed:
        run, row = current.get(key, (None, None))
        found.append(PlannedImage(key, *facts, reason=reason_of(run, row, facts, settings.mode)))
    if settings.limit is None:
        gone = [key for key in current if key.startswith(f"{base}/") and key not in listing]
        found += [PlannedImage(key, *current[key][1][1], reason="removed") for key in gone]
    return sorted(found, key=lambda image: image.image_key.encode())


def compared(listing, settings, spec=None, **options):
    given = {"fingerprint": "now", "weights_sha256": "w1", **options}
    spec = spec or InputSpec.of(*settings.input)
    return changes_at_once(comparing(listing, spec, settings, Output.open(settings.output), **given))


@pytest.mark.usefixtures("s3")  # a bucket's file system that was made without credentials would stay for other tests
@given(RUNS, LISTINGS, MODES, st.sampled_from(sorted(INPUTS)), st.booleans())
def test_reasons_are_those_of_a_naive_oracle(runs, listing, mode, source, statistics):
    base = INPUTS[source]
    listing = {base + end: facts for end, facts in listing.items()}
    with tempfile.TemporaryDirectory() as output:
        settings = Settings(source, output, **mode)
        for number, run in enumerate(runs):
            publish_past_run(output, f"run{number}", run, base, statistics)
        images = [ListedImage(key, *facts) for key, facts in sorted(listing.items(), key=lambda i: i[0].encode())]
        with compared(iter([listed_table(images)]), settings) as changes:
            planned = [image for table in changes.images() for image in planned_images(table)]
            again = [image for table in changes.images() for image in planned_images(table)]
            assert again == planned, "a second reading gives the same"
    expected = oracle(runs, listing, settings, base)
    assert changes.counts == Counter(image.reason for image in expected)
    assert changes.size_bytes == sum((Counter({i.reason: i.size_bytes}) for i in expected), Counter())
    left_out = {"unchanged", "not_selected"} | ({"removed"} if not settings.tombstone_removed else set())
    assert planned == [image for image in expected if image.reason not in left_out]
    assert changes.version == (len(runs) or None)  # creating the table is version 0


def publish_past_run(output: str, run_id: str, run: PastRun, base: str, statistics: bool = True) -> None:
    rows = [
        image_row(
            base + end,
            run_id,
            run.night,
            status=status,
            error_code=code,
            etag=etag,
            size_bytes=size,
            fingerprint=run.fingerprint,
        )
        for end, ((status, code), (etag, size)) in run.rows.items()
    ]
    publish(output, "images", run_id, [rows], statistics)
    if WEIGHTS[run.fingerprint] is not None:
        folder = Path(output, "_runs", run_id)
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(run_json(run_id, weights_sha256=WEIGHTS[run.fingerprint]))


@pytest.mark.parametrize("code", ErrorCode)
@pytest.mark.parametrize("mode", ["incremental", "overwrite", "retry-failed"])
def test_a_failure_is_tried_again_where_it_may_pass_or_is_asked_for(tmp_path, code, mode):
    run = PastRun(0, "now", {"/x": (("failed", code.value), ("e1", 1))})
    publish_past_run(str(tmp_path), "run0", run, "file:///in")
    settings = Settings("/in", str(tmp_path), mode=mode)
    listing = [listed_table([ListedImage("file:///in/x", "e1", 1)])]
    with compared(listing, settings) as changes:
        [(reason, _)] = changes.counts.items()
    otherwise = {"incremental": "unchanged", "overwrite": "overwrite", "retry-failed": "retry"}[mode]
    assert reason == ("retry" if code in TRANSIENT else otherwise)


def rows_of(changes) -> list[PlannedImage]:
    return [image for table in changes.images() for image in planned_images(table)]


class SpoolInParts(spool.Spool):
    """A spool whose files are taken one by one, as if the listing were as slow."""

    parts: list[pa.Table]

    def __enter__(self):
        for part in self.parts:
            self._pending = [part]
            self._write()
        self.ended = True
        return self

    def __exit__(self, *exception):
        """No thread was started."""

    def take(self, num_rows):
        if not num_rows:
            return []
        self._taken_files += 1
        self._taken_rows += self.parts[self._taken_files - 1].num_rows
        return [self._path(self._taken_files - 1)]


@given(RUNS, LISTINGS, MODES, st.lists(st.integers(1, 4), max_size=4))
def test_batches_say_together_what_the_whole_listing_says(runs, listing, mode, sizes):
    """However the listing is cut. Some keys have a `#`, so that images of a tar could have them."""
    base, tar = "file:///data/photo", "file:///data/photo/t.tar"
    images = [ListedImage(base + end.replace("y", "#y"), *facts) for end, facts in listing.items()]
    images += [ListedImage(f"{tar}#{end}", *facts, object_uri=tar) for end, facts in listing.items()]
    cuts = [0, *itertools.accumulate(sizes), len(images)]
    with tempfile.TemporaryDirectory() as output, pytest.MonkeyPatch.context() as patch:
        settings, spec = Settings("/data/photo", output, **{**mode, "limit": None}), InputSpec.of("/data/photo")
        for number, run in enumerate(runs):
            publish_past_run(output, f"run{number}", run, base)
        with compared([listed_table(images)], settings, spec) as whole:
            expected = sorted(rows_of(whole), key=str)
        parts = [listed_table(images[first:last]) for first, last in itertools.pairwise(cuts) if first < last]
        parts = parts or [listed_table([])]
        patch.setattr(SpoolInParts, "parts", parts, raising=False)
        patch.setattr(changes, "Spool", SpoolInParts)
        given = {"fingerprint": "now", "weights_sha256": "w1"}
        with comparing([], spec, settings, Output.open(output), **given) as comparison:
            batches = [rows_of(batch) for batch in comparison.batches()]
    assert len(batches) == len(parts)
    assert sorted(itertools.chain(*batches), key=str) == expected
    assert comparison.counts == whole.counts


# --- on real listings -------------------------------------------------------------------------------------------------


def counts(settings: Settings, spec: InputSpec | None = None) -> dict[str, int]:
    spec = spec or InputSpec.of(*settings.input)
    with compared(list_inputs(spec), settings, spec) as changes:
        return changes.counts


@pytest.mark.parametrize("spelling", ["{}", "{}/", "file://{}", "{}/../photos"])
def test_a_folder_is_found_again_however_it_is_spelled(tmp_path, spelling):
    source, output = tmp_path / "photos", str(tmp_path / "out")
    source.mkdir()
    for name in ("a", "b"):
        (source / name).write_bytes(b"x")
    settings = Settings(spelling.format(source), output)
    assert counts(settings) == {"new": 2}
    rows = [image_row(i.image_key, "run0", 0, etag=i.etag, size_bytes=1) for i in list_images(str(source))]
    publish(output, "images", "run0", [rows])
    assert counts(settings) == {"unchanged": 2}
    (source / "a").write_bytes(b"xy")
    (source / "b").unlink()
    assert counts(settings) == {"changed": 1, "removed": 1}


@pytest.mark.parametrize("spelling", ["s3://m2f-increments/photos", "s3a://m2f-increments/photos/"])
def test_a_prefix_of_a_bucket_is_found_again_and_its_neighbours_are_left_alone(s3, spelling):
    if "m2f-increments" not in [bucket["Name"] for bucket in s3.client.list_buckets()["Buckets"]]:
        s3.bucket("m2f-increments")
    for key in ("photos/a", "photos/b c#é", "photos2/c"):
        s3.client.put_object(Bucket="m2f-increments", Key=key, Body=b"x")
    settings = Settings(spelling, f"s3://m2f-increments/out-{spelling[:3].strip(':')}")
    everything = [*list_images("s3://m2f-increments/photos"), *list_images("s3://m2f-increments/photos2")]
    rows = [image_row(image.image_key, "run0", 0, etag=image.etag, size_bytes=1) for image in everything]
    publish(settings.output, "images", "run0", [rows])
    assert counts(settings) == {"unchanged": 2}


def test_patterns_leave_earlier_images_alone_and_overlapping_inputs_count_once(tmp_path):
    source, output = tmp_path / "photos", str(tmp_path / "out")
    for name in ("a.jpg", "sub/b.jpg", "sub/c.png"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"x")
    rows = [image_row(i.image_key, "run0", 0, etag=i.etag, size_bytes=1) for i in list_images(str(source))]
    rows.append(image_row(f"file://{source}/sub/gone.jpg", "run0", 0))
    publish(output, "images", "run0", [rows])

    def counted(*inputs, **flags):
        settings = Settings(tuple(f"{source}{one}" for one in inputs), output, **flags)
        spec = input_spec(settings)
        return counts(settings, spec)

    assert counted("") == {"unchanged": 3, "removed": 1}
    assert counted("", "/sub") == {"unchanged": 3, "removed": 1}
    assert counted("", include=("*.png",)) == {"unchanged": 1}
    assert counted("", exclude=("*.jpg",)) == {"unchanged": 1}
    assert counted("/sub/*.jpg") == {"unchanged": 1, "removed": 1}
    assert counted("/*.jpg") == {"unchanged": 1}


def test_a_key_that_stands_for_two_objects_is_one_line(tmp_path):
    images = [ListedImage("k", "e1", 1, object_uri="s3://b/1"), ListedImage("k", "e2", 1, object_uri="s3://b/2")]
    spec = replace(InputSpec.of("/list.csv"), format="manifest")
    settings = Settings("/list.csv", str(tmp_path))
    with pytest.raises(RunError, match="2 images have the key k and lie in different places"):
        compared([listed_table(images)], settings, spec)
    with compared([listed_table(images[:1] * 3)], settings, spec) as changes:
        assert changes.counts == {"new": 1}


def test_images_of_a_tar_that_cannot_be_read_are_not_removed(tmp_path):
    source, output = tmp_path / "photos", str(tmp_path / "out")
    source.mkdir()
    tars = {name: source / name for name in ("a.tar", "b#1.tar", "b.tar")}
    for path in tars.values():
        path.write_bytes(tar_of(member(f"{number}#.jpg", b"x") for number in range(3)))
    (source / "c.jpg").write_bytes(b"x")
    rows = [image_row(i.image_key, "run0", 0, etag=i.etag, size_bytes=1) for i in list_images(str(source))]
    publish(output, "images", "run0", [rows])
    assert counts(Settings(str(source), output)) == {"unchanged": 10}
    tars["a.tar"].write_bytes(b"no tar")
    tars["b#1.tar"].write_bytes(tars["b#1.tar"].read_bytes()[: 1024 + 100])
    tars["b.tar"].unlink()
    assert counts(Settings(str(source), output)) == {"unchanged": 1, "new": 2, "changed": 1, "removed": 3}
    assert counts(Settings(str(source / "a.tar"), output)) == {"new": 1}


def test_an_object_with_the_key_of_an_image_in_a_tar_is_one_line(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_of([member("1.jpg", b"x")]))
    (tmp_path / "a.tar#1.jpg").write_bytes(b"x")
    with pytest.raises(RunError, match=r"2 images have the key file://.*/a\.tar#1\.jpg and lie in different places"):
        counts(Settings(str(tmp_path), str(tmp_path / "out")))


def test_what_the_input_does_not_say_is_not_compared(tmp_path):
    """An ETag or a size that nobody knows, and the size of a row of a Parquet file, which is an estimate."""
    listed = [
        ListedImage("a", "", None, object_uri="s3://b/a"),
        ListedImage("b", "", 7, object_uri="s3://b/b"),
        ListedImage("s3://b/t.parquet#0", "e", 99, object_uri="s3://b/t.parquet", position=0, row_group=0),
        ListedImage("d", "e", None, object_uri="s3://b/d"),
    ]
    rows = [image_row(image.image_key, "run0", 0, etag="e", size_bytes=3, fingerprint="now") for image in listed]
    publish(str(tmp_path), "images", "run0", [rows])
    spec = replace(InputSpec.of("/list.csv"), format="manifest")
    with compared([listed_table(listed)], Settings("/list.csv", str(tmp_path)), spec) as changes:
        assert changes.counts == {"unchanged": 3, "changed": 1}
        assert [table["image_key"].to_pylist() for table in changes.images()] == [["b"]]


def test_a_name_that_is_not_utf8_is_left_out_and_said(tmp_path, caplog):
    with open(os.fsencode(tmp_path) + b"/bad\xff.jpg", "wb") as file:
        file.write(b"x")
    (tmp_path / "good.jpg").write_bytes(b"x")
    assert counts(Settings(str(tmp_path), str(tmp_path / "out"))) == {"new": 1}
    assert "1 names are left out" in caplog.text


def test_a_listing_that_breaks_off_says_why_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def breaks_off():
        yield listed_table([ListedImage("file:///a", "e", 1)])
        raise RunError("the store went away")

    with pytest.raises(RunError, match="went away"):
        settings = Settings("/a", str(tmp_path / "out"))
        compared(breaks_off(), settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no file that is always full")
def test_a_full_tmpdir_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "full").symlink_to("/dev/full")  # the writer removes what it could not write
    monkeypatch.setattr(spool.Spool, "_path", lambda self, number: str(tmp_path / "full"))
    listing = spool.Spool((table for table in [listed_table([])]), str(tmp_path), threading.Event())
    with listing, pytest.raises(RunError, match=r"too little space in .* \(TMPDIR\): .*No space left on device"):
        listing.take(1)


def test_a_listing_that_breaks_off_does_not_wait_for_the_table(tmp_path, monkeypatch):
    """Ctrl-C while a bucket is listed, for example: the rows of earlier runs are read beside."""
    running, ended = threading.Event(), threading.Event()

    def takes_hours(cursor, output, columns, below):
        running.set()
        try:
            cursor.execute("SELECT sum(a.range * b.range) FROM range(10_000_000) a, range(10_000_000) b")
        finally:
            ended.set()

    monkeypatch.setattr(changes, "load_current", takes_hours)

    def breaks_off():
        assert running.wait(60)
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        compared(breaks_off(), Settings("/a", str(tmp_path / "out")))
    assert ended.is_set()


def test_images_without_sizes_are_counted(tmp_path):
    """The dry run adds up sizes; a manifest need not say them."""
    spec = replace(InputSpec.of("/list.csv"), format="manifest")
    listing = [listed_table([ListedImage("s3://b/a", "", None), ListedImage("s3://b/c", "", None)])]
    with compared(listing, Settings("/list.csv", str(tmp_path)), spec) as changes:
        assert (changes.counts, changes.size_bytes) == ({"new": 2}, {"new": 0})


def test_images_of_a_tar_with_a_hash_in_its_name_are_removed_with_it(tmp_path):
    tar = f"file://{tmp_path}/in/a#b.tar"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "other.tar").write_bytes(b"")
    publish(str(tmp_path / "out"), "images", "run0", [[image_row(f"{tar}#x.jpg", "run0", 0)]])
    spec = InputSpec((source_of(f"{tmp_path}/in/*.tar", lambda uri: False),))
    settings = Settings(f"{tmp_path}/in/*.tar", str(tmp_path / "out"))
    with compared([], settings, spec) as changes:
        assert changes.counts == {"removed": 1}


def test_a_damaged_run_json_is_one_clear_line(tmp_path):
    publish_past_run(
        str(tmp_path), "run0", PastRun(0, "other weights", {"/x": (("ok", None), ("e1", 1))}), "file:///in"
    )
    (tmp_path / "_runs" / "run0" / "run.json").write_text("{")
    with pytest.raises(RunError, match=r"run\.json is damaged, .* not JSON"):
        compared([], Settings("/in", str(tmp_path)))


# --- more rows than memory --------------------------------------------------------------------------------------------

NUM_MANY = 100_000
MEMORY_MIB = 64


def many_rows(run_id: str, night: int, first: int, last: int) -> pa.Table:
    numbers = range(first, last)
    row = image_row("", run_id, night)
    columns = {
        name: pa.repeat(pa.scalar(row.get(name), IMAGES.field(name).type), last - first) for name in IMAGES.names
    }
    columns["image_key"] = pa.array([many_key(number) for number in numbers])
    columns["etag"] = pa.array([many_etag(number) for number in numbers])
    return pa.table(columns, schema=IMAGES)


def many_key(number: int) -> str:
    return f"s3://bucket/a/folder/with/a/name/as/they/have/in/practice/{number:012d}.jpg"


def many_etag(number: int) -> str:
    return f"{number * 2654435761 % 2**64:016x}{number:016x}"


def test_more_rows_than_memory_are_compared_on_disk(tmp_path):
    output, step = str(tmp_path), 20_000
    history = 0
    for night in range(8):
        shards = [many_rows(f"run{night}", night, first, first + step) for first in range(0, NUM_MANY, step)]
        history += sum(shard.select(["image_key", "etag", "run_id"]).nbytes for shard in shards)
        publish(output, "images", f"run{night}", shards)
    assert history > 1.4 * MEMORY_MIB * 2**20, "the limit is below what is compared"
    del shards

    def listing():
        for first in range(1000, NUM_MANY + 1000, 1000):
            yield listed_table(
                ListedImage(many_key(number), "another" if number % 100 == 0 else many_etag(number), 1000)
                for number in range(first, first + 1000)
            )

    settings = Settings("s3://bucket/a", output, mode="overwrite", tombstone_removed=True)
    compared([], settings).close()  # imports, and what botocore reads, count not
    tracemalloc.start()
    try:
        with compared(listing(), settings, memory_mib=MEMORY_MIB) as changes:
            keys = (key for table in changes.images() for key in table["image_key"].to_pylist())
            assert all(many_key(number) == key for number, key in zip(range(NUM_MANY + 1000), keys, strict=True))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert changes.counts == {
        "changed": (NUM_MANY - 1000) // 100,
        "new": 1000,
        "overwrite": (NUM_MANY - 1000) // 100 * 99,
        "removed": 1000,
    }
    # A page of the listing; all images would be 45 MB.
    assert peak < 20 * 2**20
