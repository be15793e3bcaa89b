"""Listing and grouping: every object in exactly one shard, whatever the bounds."""

import itertools
import os
import shutil
from dataclasses import replace

import fsspec
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import RunError
from pipeline.input_spec import InputSpec
from pipeline.inputs.container import LeftOut
from pipeline.inputs.objects import _list_folder
from pipeline.inputs.selection import Selection
from pipeline.layout import Output
from pipeline.plan.plan_files import is_below, read_plan_file, spread_over
from pipeline.plan.shards import group_into_shards, write_plan
from pipeline.plan.taper import LEAST_IMAGES, ShardSize
from pipeline.schema import PLAN
from tests.support.listed import PlannedImage, list_images, planned_images, planned_table

PLANNED = st.lists(
    st.builds(
        PlannedImage,
        st.just(""),
        st.just(""),
        st.integers(0, 50),
        reason=st.sampled_from(["new", "removed", "retry"]),
    ),
    max_size=60,
)


def grouped(images, pages=1, **bounds) -> list[list[PlannedImage]]:
    """Shards of images that come in tables of about equal length."""
    cuts = [len(images) * page // pages for page in range(pages + 1)]
    tables = [planned_table(images[start:end]) for start, end in itertools.pairwise(cuts)]
    return [planned_images(shard) for shard in group_into_shards(tables, ShardSize(**bounds))]


def written(images, output, **bounds):
    return write_plan(group_into_shards([planned_table(images)], ShardSize(**bounds)), output.filesystem, output.root)


@given(PLANNED, st.integers(1, 10), st.integers(1, 100))
def test_shards_partition_the_listing_within_the_bounds(images, max_images, max_bytes):
    shards = grouped(images, 3, max_images=max_images, max_bytes=max_bytes)
    assert [image for shard in shards for image in shard] == images
    for shard in shards:
        assert 1 <= len(shard) <= max_images
        assert len(shard) == 1 or sum(image.bytes_to_read for image in shard) <= max_bytes


@given(PLANNED, st.integers(1, 10), st.integers(1, 100))
def test_a_shard_ends_only_where_the_next_image_does_not_fit(images, max_images, max_bytes):
    shards = grouped(images, 3, max_images=max_images, max_bytes=max_bytes)
    for shard, following in itertools.pairwise(shards):
        together = sum(image.bytes_to_read for image in [*shard, following[0]])
        assert len(shard) == max_images or together > max_bytes


@given(
    st.lists(st.integers(0, 50), max_size=3000),
    st.integers(1, 600),
    st.integers(1, 12),
    st.integers(1, 4),
    st.booleans(),
)
def test_a_tapered_plan_has_each_image_once_and_never_a_larger_shard(sizes, max_images, actors, pages, few_bytes):
    images = [PlannedImage(str(n), "", size) for n, size in enumerate(sizes)]
    bounds = {"max_images": max_images, "max_bytes": 40 * max_images if few_bytes else 10**9}
    shards = grouped(images, pages, **bounds, num_images=len(images), model_actors=actors)
    assert [image for shard in shards for image in shard] == images
    place = 0
    for shard in shards:
        left = len(images) - place
        assert len(shard) <= max_images
        assert len(shard) == 1 or sum(image.bytes_to_read for image in shard) <= bounds["max_bytes"]
        if actors > 1 and max_images > LEAST_IMAGES:
            assert len(shard) <= max(LEAST_IMAGES, left / (8 * actors)), "an actor would end long after the others"
        place += len(shard)
    if actors == 1 or max_images <= LEAST_IMAGES:
        assert shards == grouped(images, pages, **bounds)


def test_a_tapered_plan_does_not_divide_row_groups():
    images = [PlannedImage(f"a#{n}", "e", 9, object_uri="a", position=n, row_group=n // 100) for n in range(3000)]
    shards = grouped(images, 3, max_images=512, max_bytes=10**9, num_images=3000, model_actors=8)
    assert [image for shard in shards for image in shard] == images
    assert {len(shard) for shard in shards} == {100}


def test_a_plan_is_full_but_for_its_end():
    images = [PlannedImage(str(n), "", 1) for n in range(50_000)]
    lengths = [len(s) for s in grouped(images, 5, max_images=512, max_bytes=10**9, num_images=50_000, model_actors=8)]
    assert lengths == sorted(lengths, reverse=True) and lengths[-2] == LEAST_IMAGES
    assert lengths[:34] == [512] * 34 and len(lengths) < 50_000 / 512 + 16 * 8 + 8


ROWS = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2), st.integers(0, 40)), min_size=1, max_size=40).map(
    lambda rows: sorted(rows, key=lambda row: row[:2])
)


@given(ROWS, st.integers(1, 10), st.integers(40, 150), st.integers(1, 4))
def test_a_row_group_that_fits_into_a_shard_is_not_divided(rows, max_images, max_bytes, pages):
    images = [
        PlannedImage(f"{uri}#{n}", "e", size, object_uri=uri, position=n, row_group=group)
        for n, (uri, group, size) in enumerate(rows)
    ]
    shards = grouped(images, pages, max_images=max_images, max_bytes=max_bytes)
    assert [image for shard in shards for image in shard] == images
    assert all(sum(image.bytes_to_read for image in shard) <= max_bytes for shard in shards)
    for group, of_group in itertools.groupby(images, key=lambda image: (image.object_uri, image.row_group)):
        if sum(image.bytes_to_read for image in of_group) <= max_bytes:
            touched = [shard for shard in shards if group in {(i.object_uri, i.row_group) for i in shard}]
            assert len(touched) == 1


def test_a_row_group_of_very_many_small_images_is_divided():
    """Else the whole file would be one shard: one unit of work, and lost as a whole."""
    images = [PlannedImage(f"a#{n}", "e", 100, object_uri="a", position=n, row_group=0) for n in range(5000)]
    lengths = [len(shard) for shard in grouped(images, 3, max_images=16, max_bytes=10**9)]
    assert lengths == [2048, 2048, 904]
    assert [len(shard) for shard in grouped(images, 3, max_images=4000, max_bytes=10**9)] == [4000, 1000]


@given(st.integers(1, 300), st.integers(1, 7))
def test_a_written_plan_reads_back_shard_by_shard(num_images, per_shard):
    reasons = itertools.cycle(["new", "changed", "removed"])
    images = [PlannedImage(f"s3://b/{i:04d}.jpg", f"etag{i}", i, reason=next(reasons)) for i in range(num_images)]
    output = Output("", fsspec.filesystem("memory"), "/plan-test")
    shards = grouped(images, max_images=per_shard, max_bytes=10**9)
    plan = written(images, output, max_images=per_shard, max_bytes=10**9)
    assert (plan.num_images, plan.num_shards) == (num_images, len(shards))
    assert plan.size_bytes == sum(i for i in range(num_images) if i % 3 != 2), "nothing is read of removed images"
    read = {}
    for file in plan.files:
        wanted = range(file.first_shard, file.first_shard + file.num_shards)
        for shard, table in read_plan_file(output, InputSpec.of("s3://b"), file, wanted):
            read[shard] = planned_images(table)
    assert read == dict(enumerate(shards))


def test_plan_files_have_the_declared_schema(tmp_path):
    filesystem = fsspec.filesystem("file")
    plan = write_plan([planned_table([PlannedImage("file:///a", "e", 3)])], filesystem, str(tmp_path))
    assert pq.read_schema(plan.files[0].path).equals(PLAN)


@given(PLANNED.filter(len), st.integers(1, 3), st.integers(1, 9))
def test_images_from_all_over_a_plan(images, per_shard, number):
    """One of each shard at most, the first that is still there; of all shards, where there are so few."""
    images = [replace(image, image_key=f"s3://b/{place:02d}") for place, image in enumerate(images)]
    shards = grouped(images, max_images=per_shard, max_bytes=10**9)
    output = Output("", fsspec.filesystem("memory"), "/spread")
    plan = written(images, output, max_images=per_shard, max_bytes=10**9)
    found = [image.image_key for image in spread_over(output, InputSpec.of("s3://b"), plan, number)]
    firsts = [next((i.image_key for i in shard if i.reason == "new"), None) for shard in shards]
    places = [firsts.index(key) for key in found]
    assert places == sorted(set(places)) and len(places) <= number
    if number >= len(shards):
        assert found == [key for key in firsts if key is not None]


def test_no_shards_write_nothing(tmp_path):
    plan = write_plan([], fsspec.filesystem("file"), str(tmp_path / "plan"))
    assert plan.files == () and not (tmp_path / "plan").exists()


def test_a_folder_is_listed_in_the_order_of_an_object_store(tmp_path):
    names = ["b.jpg", "a/z.jpg", "a.jpg", "a/b/c d%#?.jpg", ".hidden", "_under/x", "é.png"]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * len(name))
    (tmp_path / "link.jpg").symlink_to(tmp_path / "b.jpg")
    (tmp_path / "linked_folder").symlink_to(tmp_path / "a")
    listed = list(list_images(str(tmp_path)))
    keys = [image.image_key.removeprefix(f"file://{tmp_path}/") for image in listed]
    assert keys == sorted([*names, "link.jpg"])
    assert all(image.size_bytes == os.stat(image.image_key.removeprefix("file://")).st_size for image in listed)


def test_what_goes_while_a_folder_is_listed_is_not_in_the_list(tmp_path):
    """Somebody may be writing there, under names that are changed when a file is whole."""
    (tmp_path / "folder").mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg", "folder/d.jpg"):
        (tmp_path / name).write_bytes(b"x")
    listing = _list_folder(str(tmp_path), LeftOut())
    assert next(listing)[0].endswith("a.jpg")
    (tmp_path / "b.jpg").unlink()
    shutil.rmtree(tmp_path / "folder")
    assert [key.rsplit("/", 1)[1] for key, _, _ in listing] == ["c.jpg"]


def test_a_changed_file_has_another_etag(tmp_path):
    file = tmp_path / "a.jpg"
    file.write_bytes(b"abc")
    before = next(list_images(str(tmp_path))).etag
    os.utime(file, ns=(1, 1))
    assert next(list_images(str(tmp_path))).etag != before


def test_one_file_may_be_the_input(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"abc")
    assert [i.size_bytes for i in list_images(str(tmp_path / "a.jpg"))] == [3]


def test_a_missing_folder_is_one_clear_line(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        list(list_images(str(tmp_path / "nowhere")))


def below_input(uri: str) -> str:
    spec = InputSpec.of(uri)
    return Selection(spec, spec.sources[0]).below


def test_a_key_lies_below_the_input_by_whatever_spelling_of_it(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "out").symlink_to(tmp_path / "other")
    below = below_input(str(tmp_path / "in"))
    for good in ("in/a.jpg", "in/sub/a.jpg", "link/a.jpg", "link/sub/a.jpg"):
        assert is_below(f"file://{tmp_path}/{good}", below)
    for bad in ("other/a.jpg", "in2/a.jpg", "in/../other/a.jpg", "link/out/a.jpg", "a.jpg"):
        assert not is_below(f"file://{tmp_path}/{bad}", below)
    assert is_below("s3://b/in/../x", below_input("s3://b/in/")), "a bucket has no folders"
    for bad in ("s3://b/in2/x", "s3://c/in/x", "file:///in/x", "s3://b/x"):
        assert not is_below(bad, below_input("s3://b/in"))
