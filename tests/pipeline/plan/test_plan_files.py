"""The plan of a run whose images stand in a list: only objects of schemes that the list may name are read."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.commit.run_record import PlanFile
from pipeline.errors import RunError
from pipeline.input_spec import InputSpec
from pipeline.layout import Output
from pipeline.plan.plan_files import read_plan_file
from pipeline.schema import PLAN

IN_A_BUCKET, ON_A_DISK = "s3://lists/m.csv", "/lists/m.csv"


def read_plan(folder, image: dict, source: str, **fields) -> dict:
    path = folder / "_runs" / "r" / "plan" / "000000.parquet"
    path.parent.mkdir(parents=True)
    row = {"shard": 0, "etag": "", "size_bytes": None, "reason": "new", **image}
    pq.write_table(pa.Table.from_pylist([row], schema=PLAN), path)
    spec = InputSpec(InputSpec.of(source).sources, format="manifest", **fields)
    [(_, images)] = read_plan_file(Output.open(str(folder)), spec, PlanFile(str(path), 0, 1), [0])
    return images.to_pylist()[0]


READ = [
    ({"image_key": "s3://another/a"}, IN_A_BUCKET, ()),
    ({"image_key": "gs://another/a"}, IN_A_BUCKET, ()),
    ({"image_key": "a key", "object_uri": "s3://another/a"}, IN_A_BUCKET, ()),
    ({"image_key": "s3://b/t.tar#a", "object_uri": "s3://b/t.tar", "position": 512}, IN_A_BUCKET, ()),
    ({"image_key": "file:///photos/a"}, IN_A_BUCKET, ("file",)),
    ({"image_key": "file:///photos/a"}, ON_A_DISK, ()),
    ({"image_key": "s3://another/a"}, ON_A_DISK, ()),
]
REFUSED = [
    ({"image_key": "file:///etc/passwd"}, IN_A_BUCKET, ()),
    ({"image_key": "s3://b/a", "object_uri": "file:///etc/passwd"}, IN_A_BUCKET, ()),
    ({"image_key": "http://169.254.169.254/latest"}, IN_A_BUCKET, ("file",)),
    ({"image_key": "http://169.254.169.254/latest"}, ON_A_DISK, ()),
    ({"image_key": "/etc/passwd"}, ON_A_DISK, ()),
    ({"image_key": "s3"}, IN_A_BUCKET, ()),
    ({"image_key": "zip://a::s3://b/c"}, IN_A_BUCKET, ()),
    ({"image_key": "memory:///x"}, IN_A_BUCKET, ()),
    ({"image_key": "S3://b/c"}, IN_A_BUCKET, ()),
]


@pytest.mark.parametrize(("image", "source", "allowed"), READ)
def test_objects_that_a_list_may_name_are_read(image, source, allowed, tmp_path):
    assert read_plan(tmp_path, image, source, allow_schemes=allowed).items() >= image.items()


@pytest.mark.parametrize(("image", "source", "allowed"), REFUSED)
def test_other_objects_are_a_line(image, source, allowed, tmp_path):
    with pytest.raises(RunError, match=r"000000\.parquet.* which does not lie below the input") as refused:
        read_plan(tmp_path, image, source, allow_schemes=allowed)
    assert "\n" not in str(refused.value)
