"""A run from S3 to S3 on a real server: odd keys, integrity, tables that every reader agrees on, no leaked secrets.

The run is a job that `ray job submit` hands to a cluster, which has the credentials in its environment.
"""

import hashlib
import io
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import duckdb
import polars
import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
import s3fs
from boto3.s3.transfer import TransferConfig
from PIL import Image
from pycocotools import mask as coco_mask

from m2f_core.user_cache import user_cache
from pipeline.config import Settings
from pipeline.input_spec import InputSpec
from pipeline.inputs.fetch import FetchImages
from pipeline.layout import Output
from pipeline.nights.seen import seen_nights
from pipeline.schema import TABLES
from pipeline.segment.checkpoint import stage_model
from pipeline.store.filesystem import open_filesystem, path_of, uri_of
from tests.support.listed import list_images
from tests.support.planning import planned
from tests.support.ray_head import Submission, make_working_dir, ray_head
from tests.support.s3_server import ACCESS_KEY, SECRET_KEY

BUCKET = "m2f-s3"
SMALL = ("--image-size", "96:160", "--device", "cpu")

# As an administrator gives them to the nodes. Nothing listens at the proxy, which only https would use.
OTHER_SECRETS = {
    "HF_TOKEN": "hf_tokenOfTheNodes0123456789",
    "AZURE_STORAGE_SAS_TOKEN": "sv=2026&sig=signatureOfTheNodes",
    "HTTPS_PROXY": "http://user:password-of-the-nodes@127.0.0.1:9",
}

# Whatever a URL, a glob, a format string or a Hive path would read something into.
ODD_KEYS = (
    "a b.png",
    " .png",
    "100%.png",
    "a%20b.png",
    "a%2Fb.png",
    "a+b.png",
    "a=b&c=d.png",
    "x#y.png",
    "q?v=1.png",
    "s[a-c]*.png",
    "{run_id}.png",
    'it\'s "quoted".png',
    "tab\tand\nline.png",
    "run=1/nested/deep/er/z.png",
    "é/ü 日本 🐈.png",
    ".hidden",
    "_under/no_extension",
)


@dataclass(frozen=True)
class Job:
    """A finished run: what it read, where it wrote, and how it was submitted."""

    objects: dict[str, bytes]  # by key
    output: str
    run_id: str
    submission: Submission | None = None
    listed: str = ""  # its status in `ray list jobs`
    of_ray: dict[str, str] = field(default_factory=dict)  # what Ray keeps: its answer about the job, files by path

    def files(self, table: str) -> str:
        return f"{self.output}/{table}/run={self.run_id}/*.parquet"


@pytest.fixture(scope="module")
def bucket(s3) -> Any:
    """The server, with the bucket of this module made: the server needs a second for the first write to a bucket."""
    s3.bucket(BUCKET)
    return s3


@pytest.fixture(scope="module")
def small_photographs(photographs) -> list[bytes]:
    """The photographs as PNGs of at most 160 pixels: real content that a test can afford."""
    encoded = []
    for path in sorted(photographs.iterdir()):
        with Image.open(path) as image:
            image.thumbnail((160, 160))
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            encoded.append(buffer.getvalue())
    return encoded


def upload(s3, prefix: str, objects: dict[str, bytes]) -> str:
    """Put `objects` (by key below `prefix`) and return the prefix as a URI."""

    def put(item: tuple[str, bytes]) -> None:
        s3.client.put_object(Bucket=BUCKET, Key=f"{prefix}/{item[0]}", Body=item[1])

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(put, objects.items()))
    return f"s3://{BUCKET}/{prefix}"


def keys_below(s3, prefix: str) -> list[str]:
    pages = s3.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
    return [entry["Key"] for page in pages for entry in page.get("Contents", ())]


def body(s3, key: str) -> bytes:
    return s3.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()


@pytest.fixture(scope="module")
def model_uri(bucket, tiny_checkpoint) -> str:
    """The tiny checkpoint in the bucket, with what must never be fetched beside it."""
    files = {path.name: path.read_bytes() for path in tiny_checkpoint.iterdir()}
    return upload(bucket, "models/tiny", {**files, "pytorch_model.bin": b"a pickle", "checkpoint-9/optimizer.pt": b"x"})


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Without checkpoints, but with the user's machine code of the kernels, which takes 15 s to compile."""
    folder = tmp_path_factory.mktemp("cache")
    kernels = user_cache() / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    (folder / "m2f-pipeline").mkdir()
    (folder / "m2f-pipeline" / "kernels").symlink_to(kernels)
    return folder


@pytest.fixture(scope="module")
def job(bucket, tmp_path_factory, small_photographs, model_uri, cache) -> Job:
    """Photographs under odd keys and one object that is no image, from S3 to S3, with a model from S3."""
    if not Path("/proc").is_dir():
        pytest.skip("finds the processes of the cluster in /proc")
    objects = {key: small_photographs[i % len(small_photographs)] for i, key in enumerate(ODD_KEYS)}
    objects["notes.txt"] = b"not an image"
    source = upload(bucket, "photos", {**objects, "nested/": b""})
    upload(bucket, "photos-old", {"not-below-the-prefix.png": small_photographs[0]})
    output = f"s3://{BUCKET}/tables"
    working_dir = tmp_path_factory.mktemp("working_dir")
    make_working_dir(working_dir)
    with ray_head(**OTHER_SECRETS) as head:
        submission = head.submit(
            "good",
            working_dir,
            *("--input", source, "--output", output, "--model", model_uri, *SMALL),
            *("--run-id", "nightly", "--images-per-shard", "5", "--max-failure-rate", "0.1"),
            OMP_NUM_THREADS="1",
            XDG_CACHE_HOME=str(cache),
        )
        assert submission.returncode == 0, submission.said + submission.logs
        of_ray = {"api": json.dumps(head.get("/api/jobs/good")), **head.files()}
        return Job(objects, output, "nightly", submission, head.listed("good"), of_ray)


def test_the_submitted_job_succeeds_and_its_own_copy_of_the_program_runs(job):
    """In the driver and in the actors, and not a package that happens to be installed on the nodes."""
    submission = job.submission
    assert submission.status == job.listed == "SUCCEEDED" and "Job 'good' succeeded" in submission.said
    assert f"{job.output}/segments (Delta table, version 1)" in submission.logs
    lines = re.findall(r"^(.*?)pipeline is (\S+)", submission.logs, flags=re.MULTILINE)  # Ray puts the actor in front
    assert all("working_dir_files" in path for _, path in lines), lines
    assert {bool(origin) for origin, _ in lines} == {False, True}, "no line of the driver, or none of an actor"


# --- reading the tables back ------------------------------------------------------------------------------------------


def with_pyarrow(server, job: Job, table: str) -> pa.Table:
    filesystem = pyarrow.fs.S3FileSystem(
        access_key=ACCESS_KEY,
        secret_key=SECRET_KEY,
        endpoint_override=urlsplit(server.url).netloc,
        scheme="http",
        region="us-east-1",
    )
    folder = os.path.dirname(job.files(table)).removeprefix("s3://")
    return pyarrow.dataset.dataset(folder, filesystem=filesystem, format="parquet").to_table()


def with_duckdb(server, job: Job, table: str) -> pa.Table:
    """Through fsspec. With access to DuckDB's extensions it takes two statements instead, and no Python in the way:

    INSTALL httpfs; CREATE SECRET (TYPE s3, PROVIDER credential_chain);
    """
    with duckdb.connect() as connection:
        connection.register_filesystem(open_filesystem(job.output)[0])
        return connection.sql(f"SELECT * FROM read_parquet('{job.files(table)}')").to_arrow_table()


def with_polars(server, job: Job, table: str) -> pa.Table:
    options = {
        "aws_access_key_id": ACCESS_KEY,
        "aws_secret_access_key": SECRET_KEY,
        "aws_region": "us-east-1",
        "aws_endpoint_url": server.url,
        "aws_allow_http": "true",
    }
    return polars.scan_parquet(job.files(table), storage_options=options).collect().to_arrow()


def rows(table: str, content: pa.Table) -> list[dict[str, Any]]:
    """The columns of the schema, sorted. Readers may add the column `run` from the path."""
    names = TABLES[table].names
    assert set(content.column_names) - {"run"} == set(names)
    keys = ("image_key", "segment_id")
    return sorted(content.select(names).to_pylist(), key=lambda row: tuple(row[k] for k in keys if k in row))


@pytest.fixture(scope="module")
def tables(bucket, job) -> dict[str, list[dict[str, Any]]]:
    return {table: rows(table, with_pyarrow(bucket, job, table)) for table in TABLES}


@pytest.mark.parametrize("reader", [with_duckdb, with_polars])
@pytest.mark.parametrize("table", TABLES)
def test_every_reader_sees_the_same_rows(bucket, job, tables, reader, table):
    assert len(tables[table]) > 0
    assert rows(table, reader(bucket, job, table)) == tables[table]


def test_every_object_has_one_row_with_the_etag_of_the_store(bucket, job, tables):
    by_key = {row["image_key"].removeprefix(f"s3://{BUCKET}/photos/"): row for row in tables["images"]}
    assert len(tables["images"]) == len(by_key)
    assert set(by_key) == set(job.objects)
    for key, row in by_key.items():
        head = bucket.client.head_object(Bucket=BUCKET, Key=f"photos/{key}")
        assert row["etag"] == head["ETag"].strip('"') == hashlib.md5(job.objects[key]).hexdigest()
        assert row["size_bytes"] == head["ContentLength"]
        expected = ("failed", "unsupported") if key == "notes.txt" else ("ok", None)
        assert (row["status"], row["error_code"]) == expected, key


def test_an_image_has_the_same_segments_under_every_key(job, tables):
    """The same bytes lie below several keys: what is found must not depend on the name or the shard."""
    by_content: dict[bytes, list[list[Any]]] = {}
    for key, content in job.objects.items():
        found = [row for row in tables["segments"] if row["image_key"] == f"s3://{BUCKET}/photos/{key}"]
        facts = [[row[name] for name in ("segment_id", "category_id", "area", "segmentation")] for row in found]
        by_content.setdefault(content, []).append(facts)
    assert max(map(len, by_content.values())) > 1
    assert all(facts == same[0] for same in by_content.values() for facts in same)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own
def test_every_mask_decodes_with_pycocotools_to_its_area(tables):
    sizes = {row["image_key"]: [row["height"], row["width"]] for row in tables["images"]}
    covered: dict[str, Any] = {}
    for row in tables["segments"]:
        rle = row["segmentation"]
        assert rle["size"] == sizes[row["image_key"]]
        mask = coco_mask.decode(rle)
        assert mask.sum() == row["area"] == coco_mask.area(rle)
        assert row["bbox"] == coco_mask.toBbox(rle).tolist()
        covered[row["image_key"]] = covered.get(row["image_key"], 0) + mask
    assert covered and all(count.max() == 1 for count in covered.values()), "segments of an image overlap"
    numbers = {row["image_key"]: row["num_segments"] for row in tables["images"]}
    assert sum(numbers.values()) == len(tables["segments"])


def test_the_output_holds_what_is_documented_and_nothing_else(bucket, job):
    keys = set(keys_below(bucket, "tables"))
    journal = {key for key in keys if key.startswith("tables/_runs/nightly/journal/")}
    receipts = [json.loads(line) for key in journal for line in body(bucket, key).splitlines()]
    assert len(receipts) == 4  # 18 images, 5 a shard
    expected = {f"tables/{part['path']}" for receipt in receipts for part in receipt["parts"].values()}
    # One transaction made each table, one published the run.
    expected |= {f"tables/{table}/_delta_log/{number:020d}.json" for table in TABLES for number in range(2)}
    expected |= {f"tables/_runs/nightly/{name}" for name in ("run.json", "report.json", "plan/000000.parquet")}
    expected |= {f"tables/_runs/nightly/page/{name}" for name in ("report.html", "report.json")}
    expected |= {"tables/_runs/format.json", "tables/_runs/lease.json", "tables/_runs/nightly/attempts/000001.json"}
    assert {key for key in keys - journal if "/_nights/" not in key} == expected
    [night] = seen_nights(Output.open(job.output))
    assert (night.outcome, night.record.run_id) == ("finished", "nightly")


def test_credentials_appear_nowhere(bucket, job):
    """Not in what the job and Ray say, and not in any byte that they write, also not inside compressed columns."""
    said = {"ray job submit": job.submission.said, "stdout and stderr": job.submission.logs, **job.of_ray}
    assert any("/worker-" in name for name in said) and any("raylet" in name for name in said)
    for key in keys_below(bucket, "tables"):
        content = body(bucket, key)
        said[key] = content.decode("latin-1")
        if key.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(content))
            said[f"{key} (columns)"] = f"{table.to_pylist()} {table.schema.metadata}"
    assert len(said) > 3
    assert any("/_runs/_nights/" in name for name in said)
    secrets = (SECRET_KEY, ACCESS_KEY, OTHER_SECRETS["HF_TOKEN"], "signatureOfTheNodes", "password-of-the-nodes")
    assert [(name, secret) for name, text in said.items() for secret in secrets if secret in text] == []


# --- the model from a bucket ------------------------------------------------------------------------------------------


def test_the_model_was_fetched_once_and_without_pickles(job, cache, tiny_checkpoint):
    [folder] = [path for path in (cache / "m2f-pipeline" / "models").iterdir() if path.is_dir()]
    assert {path.name for path in folder.iterdir()} == {path.name for path in tiny_checkpoint.iterdir()}
    for path in tiny_checkpoint.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_a_second_start_does_not_fetch_again(job, cache, model_uri, fresh_s3, monkeypatch):
    fetched = []

    async def count(self, source, *args, **kwargs):
        fetched.append(source)

    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(s3fs.S3FileSystem, "_get_file", count)  # looked up when an instance is made, hence fresh_s3
    assert (stage_model(model_uri).path / "config.json").is_file()
    assert fetched == []


def test_a_replaced_model_is_fetched_anew(bucket, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files = {path.name: path.read_bytes() for path in tiny_checkpoint.iterdir()}
    uri = upload(bucket, "models/replaced", files)
    before = stage_model(uri).path
    upload(bucket, "models/replaced", {"config.json": files["config.json"] + b"\n"})
    after = stage_model(f"{uri}/").path
    assert after != before and before.is_dir(), "a run that still uses the old one keeps it"
    assert (after / "config.json").read_bytes() == files["config.json"] + b"\n"


# --- integrity --------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_objects_that_changed_or_went_after_the_plan_are_rows(bucket, drivers, small_photographs, tiny_checkpoint):
    """Planned here, changed, then taken up by the job: the same as a bucket that changes while a long run goes on."""
    first, second = small_photographs[:2]
    names = ("same.png", "replaced.png", "same_size.png", "deleted.png")
    source = upload(bucket, "changing", dict.fromkeys(names, first))
    parts = TransferConfig(multipart_threshold=1, multipart_chunksize=5 * 2**20)
    large = first + b"\0" * (6 * 2**20)  # decoders ignore what follows the picture
    for name in ("multipart.png", "multipart_same_size.png"):
        bucket.client.upload_fileobj(io.BytesIO(large), BUCKET, f"changing/{name}", Config=parts)
    output = f"s3://{BUCKET}/changed"
    settings = Settings(source, output, str(tiny_checkpoint), image_size="96:160", device="cpu")
    run_id = planned(settings).run_id
    etags = {
        name: bucket.client.head_object(Bucket=BUCKET, Key=f"changing/{name}")["ETag"].strip('"') for name in names
    }
    digest = hashlib.md5(_md5(large[: 5 * 2**20]) + _md5(large[5 * 2**20 :])).hexdigest()
    etags["multipart.png"] = etags["multipart_same_size.png"] = f"{digest}-2"

    upload(bucket, "changing", {"replaced.png": second, "same_size.png": first[::-1], "came_later.png": first})
    bucket.client.upload_fileobj(io.BytesIO(large[::-1]), BUCKET, "changing/multipart_same_size.png", Config=parts)
    bucket.client.delete_object(Bucket=BUCKET, Key="changing/deleted.png")
    places = ("--input", source, "--output", output, "--model", str(tiny_checkpoint))
    driver = drivers.start(*places, *SMALL, "--max-failure-rate", "1")
    said = driver.finish()
    assert driver.returncode == 0, said

    images = rows("images", with_pyarrow(bucket, Job({}, output, run_id), "images"))
    by_name = {row["image_key"].rpartition("/")[2]: row for row in images}
    assert {name: row["error_code"] for name, row in by_name.items()} == {
        "same.png": None,
        "multipart.png": None,
        "multipart_same_size.png": "changed",
        "replaced.png": "changed",
        "same_size.png": "changed",
        "deleted.png": "not_found",
    }
    assert {name: row["etag"] for name, row in by_name.items()} == etags, "rows name the object that was planned"
    assert by_name["same.png"]["num_segments"] == by_name["multipart.png"]["num_segments"]
    assert etags["replaced.png"] in by_name["replaced.png"]["error_message"]


def _md5(data: bytes) -> bytes:
    return hashlib.md5(data).digest()


# --- listing ----------------------------------------------------------------------------------------------------------


def test_more_objects_than_a_page_holds(bucket):
    objects = {f"{i % 7}/{i:04d}.jpg": b"%d" % i for i in range(1010)}
    source = upload(bucket, "many", objects)
    assert bucket.client.list_objects_v2(Bucket=BUCKET, Prefix="many/")["IsTruncated"]
    listed = list(list_images(source))
    assert [image.image_key for image in listed] == sorted(f"{source}/{key}" for key in objects)
    for image in listed:
        content = objects[image.image_key.removeprefix(f"{source}/")]
        assert (image.etag, image.size_bytes) == (hashlib.md5(content).hexdigest(), len(content))


@pytest.mark.parametrize("end", ["", "/", "//"])
def test_markers_and_neighbours_are_not_listed(bucket, end):
    source = upload(bucket, "neighbours/a", {"": b"", "b/": b"", "b/1.jpg": b"1", "2.jpg": b"22", "empty.jpg": b""})
    upload(bucket, "neighbours", {"a.jpg": b"x", "a-old/3.jpg": b"x"})
    assert [image.image_key for image in list_images(source + end)] == [
        f"{source}/2.jpg",
        f"{source}/b/1.jpg",
        f"{source}/empty.jpg",  # no image, but no marker either: it gets a row
    ]


@pytest.mark.parametrize("protocol", ["s3", "s3a"])
def test_one_object_may_be_the_input(bucket, protocol):
    upload(bucket, "one", {"a b?#%.jpg": b"123"})
    [image] = list_images(f"{protocol}://{BUCKET}/one/a b?#%.jpg")
    assert (image.image_key, image.size_bytes) == (f"s3://{BUCKET}/one/a b?#%.jpg", 3)
    assert image.etag == hashlib.md5(b"123").hexdigest()
    [read] = FetchImages(InputSpec.of(f"{protocol}://{BUCKET}/one")).fetch([image])
    assert read.data == b"123"


@pytest.mark.parametrize("key", ["a//b.jpg", "//a.jpg", "./a/../b.jpg", "a/b/", "a\\b.jpg", *ODD_KEYS])
def test_a_key_goes_over_the_wire_as_it_is(s3, key):
    """Also those that this server (not S3) tidies or refuses; a signed URL shows what would be sent."""
    filesystem, _ = open_filesystem("s3://bucket/prefix")
    uri = uri_of(filesystem, f"bucket/{key}")
    assert unquote(urlsplit(filesystem.sign(path_of(filesystem, uri))).path) == f"/bucket/{key}"
