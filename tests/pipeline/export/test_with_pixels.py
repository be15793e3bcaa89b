"""Cut-outs and Hugging Face data sets: the images are read again, and what cannot be read is said."""

import csv
import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.errors import RunError
from pipeline.export import convert
from pipeline.export.state import State
from pipeline.export.target import Target
from pipeline.input_spec import Access
from pipeline.store.filesystem import local_etag
from tests.support.evaluation_runs import MadeImage, Place
from tests.support.exports import decoded, export, refused, segments_by_key
from tests.support.published_runs import scattered, write_published
from tests.support.published_tables import image_row, publish_run, segment_row
from tests.support.requests_seen import requests_seen
from tests.support.web_server import web_server


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> str:
    """Four images: plain, turned by EXIF, changed since, in a tar."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(3)
    images, segments = [], []
    for name in ("plain.png", "turned.jpg", "changed.png", "x.tar#in.png"):
        size = (20, 30) if name != "turned.jpg" else (30, 20)
        key = f"file://{folder}/{name}"
        etag = "of another day"
        if "#" not in name:
            exif = Image.Exif()
            exif[0x0112] = 6 if name == "turned.jpg" else 1  # turned by a quarter: 20 x 30 pixels become 30 x 20
            Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(folder / name, exif=exif)
            etag = etag if name == "changed.png" else local_etag((folder / name).stat())
        found = scattered(rng, size, 4, disjoint=False)
        images.append(image_row(key, "night", 0, height=size[0], width=size[1], etag=etag, num_segments=len(found)))
        segments += [
            segment_row(key, "night", n, area=s.area, bbox=s.bbox, segmentation=s.rle) for n, s in enumerate(found, 1)
        ]
    tables = str(folder / "tables")
    publish_run(tables, "night", images, segments)
    return tables


def pixels_of(key: str) -> np.ndarray:
    image = Image.open(key.removeprefix("file://"))
    return np.array(image.transpose(Image.Transpose.ROTATE_270) if "turned" in key else image)


def check_left_out(out, printed: str, tables: str) -> list[str]:
    with open(out / "left_out.csv", newline="") as file:
        why = {row["image_key"].rpartition("/")[2]: row["why"] for row in csv.DictReader(file)}
    assert set(why) == {"changed.png", "x.tar#in.png"}
    assert "tar or Parquet file" in why["x.tar#in.png"] and why["changed.png"]
    assert "2 images are left out, because their pixels cannot be had" in printed
    return [key for key in segments_by_key(tables) if key.endswith(("plain.png", "turned.jpg"))]


@pytest.mark.parametrize("form", ["crops", "hf"])
def test_files_and_rows_do_not_wait_until_a_batch_is_complete(photographs, tmp_path, monkeypatch, form):
    whole = export(photographs, tmp_path / "whole", form)
    monkeypatch.setattr(convert, "MOST_WAITING_BYTES", 1000)
    put, put_all = [], Target.put_all
    monkeypatch.setattr(Target, "put_all", lambda self, files: put.append(files) or put_all(self, files))
    parts = export(photographs, tmp_path / "parts", form)
    if form == "hf":
        file = "data/train-000000.parquet"
        assert pq.read_table(parts / file).equals(pq.read_table(whole / file))
        assert [pq.ParquetFile(out / file).num_row_groups for out in (whole, parts)] == [1, 2]
    else:
        cut_outs = [files for files in put if any(name.endswith(".png") for name in files)]
        assert len(cut_outs) == 2
        for file in whole.rglob("*.*"):
            assert (parts / file.relative_to(whole)).read_bytes() == file.read_bytes()


def test_a_row_file_that_fails_in_the_middle_is_not_there(photographs, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "MOST_WAITING_BYTES", 0)
    monkeypatch.setattr(State, "write_batch", lambda *_: pytest.fail("the batch has failed"))
    made, images_of = [], convert.images_of

    def failing(task):
        for image in images_of(task):
            made.append(list((tmp_path / "out/.m2f-export").glob("*.writing")))
            if len(made) == 4:
                raise RunError("damaged")
            yield image

    monkeypatch.setattr(convert, "images_of", failing)
    assert "damaged" in refused(photographs, tmp_path / "out", "hf")
    assert made[-1] and [file.name for file in (tmp_path / "out").rglob("*.*")] == [".m2f-export", "state.json"]


@pytest.fixture
def on_the_web(tmp_path):
    """A published run of two images of a web server; the server, the tables."""
    data = io.BytesIO()
    Image.new("RGB", (4, 3)).save(data, "PNG")
    with web_server() as server:
        keys = [server.add(f"/{name}.png", data.getvalue()) for name in ("first", "second")]
        images = [image_row(key, "night", 0, height=3, width=4, etag="", num_segments=0) for key in keys]
        publish_run(str(tmp_path / "tables"), "night", images, [])
        yield server, str(tmp_path / "tables")


@pytest.mark.parametrize("form", ["crops", "hf"])
def test_a_fault_that_passes_leaves_no_image_out(on_the_web, tmp_path, no_pauses, form):
    server, tables = on_the_web
    server.objects["/first.png"].statuses = [503, 500, 0]
    out = export(tables, tmp_path / "out", form)
    assert (out / "left_out.csv").read_text().splitlines() == ["image_key,why"]


@pytest.mark.parametrize("form", ["crops", "hf"])
def test_a_fault_that_stays_ends_the_export_and_an_image_that_is_gone_does_not(
    on_the_web, tmp_path, no_pauses, monkeypatch, form
):
    server, tables = on_the_web
    server.objects["/first.png"].statuses = [503] * 5
    line = refused(tables, tmp_path / "out", form)
    assert f"the image {server.uri('/first.png')} cannot be read: " in line and "503" in line
    server.objects["/first.png"].statuses = [404]
    monkeypatch.setattr("pipeline.inputs.verified.MAX_OBJECT_BYTES", 10)
    out = export(tables, tmp_path / "out", form)
    with open(out / "left_out.csv", newline="") as file:
        first, second = ((row["image_key"], row["why"]) for row in csv.DictReader(file))
    assert first[0] == server.uri("/first.png") and "404" in first[1]
    assert second[0] == server.uri("/second.png") and "bytes" in second[1]


@pytest.mark.parametrize("form", ["crops", "hf"])
def test_images_are_read_as_the_run_has_read_them(s3, tmp_path, form):
    """With --anonymous, no request is signed; the test server refuses such requests, which is one line."""
    bucket = s3.bucket(f"m2f-export-anonymous-{form}")
    tables = write_published(Place(str(tmp_path)), [MadeImage("a.png", (3, 4))])
    publish_run(tables, "later", [image_row(f"{bucket}/a.png", "later", 9, height=3, width=4, num_segments=0)], [])
    runs = tmp_path / "tables" / "_runs"
    record = json.loads((runs / "night" / "run.json").read_text())
    record |= {"run_id": "later", "settings": {"anonymous": True, "requester_pays": False}}
    (runs / "later").mkdir()
    (runs / "later" / "run.json").write_text(json.dumps(record))
    with requests_seen(Access(anonymous=True)) as unsigned:
        line = refused(tables, tmp_path / "out", form, "--run-id=later")
    assert f"the image {bucket}/a.png cannot be read" in line
    assert unsigned and all("authorization" not in request.headers for request in unsigned)


def test_cut_outs_are_the_pixels_of_the_mask(photographs, tmp_path, capsys):
    out = export(photographs, tmp_path / "out", "crops")
    there = check_left_out(out, capsys.readouterr().out, photographs)
    with open(out / "crops.csv", newline="") as file:
        crops = list(csv.DictReader(file))
    rows = [row for key in there for row in segments_by_key(photographs)[key]]
    assert [(c["image_key"], int(c["segment_id"])) for c in crops] == [(r["image_key"], r["segment_id"]) for r in rows]
    for crop, row in zip(crops, rows, strict=True):
        rgba = np.array(Image.open(out / crop["path"]))
        mask, pixels = decoded(row["segmentation"]), pixels_of(row["image_key"])
        top, left = int(crop["top"]), int(crop["left"])
        alpha = np.zeros(mask.shape, np.uint8)
        alpha[top : top + rgba.shape[0], left : left + rgba.shape[1]] = rgba[..., 3]
        assert np.array_equal(alpha == 255, mask) and np.array_equal(alpha == 0, ~mask)
        window = pixels[top : top + rgba.shape[0], left : left + rgba.shape[1]]
        assert np.array_equal(rgba[..., :3][rgba[..., 3] > 0], window[rgba[..., 3] > 0])


@pytest.mark.parametrize("flags", [(), ("--no-images",)])
def test_a_hugging_face_folder_holds_images_and_masks(photographs, tmp_path, capsys, flags):
    out = export(photographs, tmp_path / "out", "hf", *flags)
    everything = segments_by_key(photographs)
    there = list(everything) if flags else check_left_out(out, capsys.readouterr().out, photographs)
    table = pq.read_table(out / "data" / "train-000000.parquet")
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == table.column_names and ("image" in features) == (not flags)
    found = table.to_pylist()
    assert [row["image_key"] for row in found] == there
    for row in found:
        if not flags:
            assert row["image"]["bytes"] == open(row["image_key"].removeprefix("file://"), "rb").read()  # noqa: SIM115
        for mask, category, expected in zip(row["masks"], row["category"], everything[row["image_key"]], strict=True):
            pixels = np.array(Image.open(io.BytesIO(mask["bytes"])))
            assert np.array_equal(pixels == 255, decoded(expected["segmentation"]))
            assert category == expected["category_name"]
