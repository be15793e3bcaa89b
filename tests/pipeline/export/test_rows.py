"""Which rows an export holds: the current view or a run, filtered; with ids that stay the same."""

import csv
import json
import os
import shutil
from dataclasses import replace

import pytest

from pipeline.errors import RunError
from pipeline.export import export as exporting
from pipeline.export.conditions import wanted_rows
from pipeline.export.settings import ExportSettings
from pipeline.tables import stream_table
from tests.support.exports import export, refused, segments_by_key
from tests.support.published_tables import image_row, publish_run, segment_row


def rows_of(out) -> list[dict[str, str]]:
    with open(out / "segments.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv_holds_each_column(tables, tmp_path):
    out = export(tables, tmp_path / "out", "csv")
    expected = [row for rows in segments_by_key(tables).values() for row in rows]
    assert len(expected) > 10
    for found, row in zip(rows_of(out), expected, strict=True):
        assert all(found[name] == str(row[name]) for name in ("image_key", "segment_id", "category_id", "area"))
        assert found["category_name"] == row["category_name"] and float(found["score"]) == row["score"]
        assert [float(found[f"bbox_{name}"]) for name in ("x", "y", "width", "height")] == row["bbox"]
        assert found["counts"] == row["segmentation"]["counts"] and found["isthing"] == str(row["isthing"]).lower()
    with open(out / "images.csv", newline="", encoding="utf-8") as file:
        images = list(csv.DictReader(file))
    assert [(i["image_key"], int(i["num_segments"])) for i in images] == [
        (key, len(rows)) for key, rows in segments_by_key(tables).items()
    ]


@pytest.mark.parametrize(
    ("flags", "holds", "all_images"),
    [
        (["--classes", "cat", "92"], lambda row: row["category_name"] in ("cat", "sky"), True),
        (["--min-score=0.5"], lambda row: row["score"] >= 0.5, True),
        (["--min-area=50"], lambda row: row["area"] >= 50, True),
        (["--where", "score < 0.5 AND bbox[1] < 10"], lambda row: row["score"] < 0.5 and row["bbox"][0] < 10, False),
        (["--where", "image_key LIKE '%/a/%'", "--classes=dog"], lambda row: row["category_name"] == "dog", False),
    ],
)
def test_filters_choose_segments(tables, tmp_path, flags, holds, all_images):
    out = export(tables, tmp_path / "out", "csv", *flags)
    everything = segments_by_key(tables)
    if "--where" in flags and "LIKE" in flags[1]:
        everything = {key: rows for key, rows in everything.items() if "/a/" in key}
    expected = [(row["image_key"], row["segment_id"]) for rows in everything.values() for row in rows if holds(row)]
    assert [(row["image_key"], int(row["segment_id"])) for row in rows_of(out)] == expected
    assert 0 < len(expected) < sum(map(len, segments_by_key(tables).values()))
    num_images = len((out / "images.csv").read_text().splitlines()) - 1
    assert (num_images == len(segments_by_key(tables))) == all_images


def test_an_image_keeps_its_id_whatever_else_is_exported(tables, tmp_path):
    whole = export(tables, tmp_path / "whole", "coco-instances")
    again = export(tables, tmp_path / "again", "coco-instances")
    part = export(tables, tmp_path / "part", "coco-instances", "--where", "image_key LIKE '%/b/%'")
    assert (whole / "instances.json").read_bytes() == (again / "instances.json").read_bytes()
    ids = [
        {i["image_key"]: i["id"] for i in json.loads((out / "instances.json").read_text())["images"]}
        for out in (whole, part)
    ]
    assert ids[1].items() < ids[0].items()


def test_the_rows_of_an_older_run(tmp_path):
    tables = str(tmp_path / "tables")
    publish_run(
        tables,
        "first",
        [image_row("s3://in/a", "first", 0), image_row("s3://in/b", "first", 0)],
        [segment_row("s3://in/a", "first", score=0.25), segment_row("s3://in/b", "first")],
    )
    publish_run(
        tables, "second", [image_row("s3://in/a", "second", 1)], [segment_row("s3://in/a", "second", score=0.75)]
    )
    found = {}
    for name, flags in (("current", []), ("old", ["--run-id=first"])):
        out = export(tables, tmp_path / name, "csv", *flags)
        found[name] = [(row["image_key"], float(row["score"])) for row in rows_of(out)]
    assert found["current"] == [("s3://in/a", 0.75), ("s3://in/b", 0.5)]
    assert found["old"] == [("s3://in/a", 0.25), ("s3://in/b", 0.5)]
    assert "has no rows of run third" in refused(tables, tmp_path / "third", "csv", "--run-id=third")


def test_the_rows_of_a_run_are_read_from_its_files_alone(tmp_path, monkeypatch):
    tables = str(tmp_path / "tables")
    for night, run in enumerate(("first", "second")):
        publish_run(tables, run, [image_row("s3://in/a", run, night)], [segment_row("s3://in/a", run)])
    read, read_once = [], stream_table.read_once
    monkeypatch.setattr(stream_table, "read_once", lambda *of: read.append(of[1]) or read_once(*of))
    assert len(rows_of(export(tables, tmp_path / "out", "csv", "--run-id=first"))) == 1
    assert {part for path in read for part in path.split("/") if part.startswith("run=")} == {"run=first"}
    assert {path.split("/tables/")[1].split("/")[0] for path in read} == {"images", "segments"}


def test_runs_with_several_label_maps_are_not_mixed(tmp_path):
    tables = str(tmp_path / "tables")
    publish_run(tables, "first", [image_row("s3://in/a", "first", 0)], [segment_row("s3://in/a", "first")])
    other = segment_row("s3://in/b", "second", category_name="truck")
    publish_run(tables, "second", [image_row("s3://in/b", "second", 1)], [other])
    line = refused(tables, tmp_path / "out", "csv")
    assert "category 17 is 'cat' in some rows and 'truck' in others" in line and "--run-id" in line
    assert len(rows_of(export(tables, tmp_path / "out", "csv", "--run-id=second"))) == 1


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("score >", "is no SQL condition"),
        ("score > 0.5; DROP TABLE found", "is no SQL condition"),
        ("true) UNION SELECT (1", "is no SQL condition"),
        ("1) OR (1=1", "is no SQL condition"),
        ("true LIMIT 3", "more than one SQL condition"),
        ("true ORDER BY 1", "more than one SQL condition"),
        ("true UNION SELECT 1", "more than one SQL condition"),
        ("true GROUP BY 1", "more than one SQL condition"),
        ("(SELECT count(*) FROM read_csv('/etc/passwd')) > 0", "may not hold a query"),
        ("EXISTS (FROM '/etc/passwd')", "may not hold a query"),
        ("random() < 0.5", "another value each time"),
        ("now() > run_created", "another value each time"),
        ("age(run_created) < INTERVAL 3 DAYS", "age may have another value each time"),
        ("run_created.age() < INTERVAL 3 DAYS", "age may have another value each time"),
        ("ago(INTERVAL 1 DAY) < run_created", "ago may have another value each time"),
        ("run_created < pg_conf_load_time()", "another value each time"),
        ("current_localtimestamp() > run_created::TIMESTAMP", "another value each time"),
        ("current_timestamp > run_created", "there is no column current_timestamp"),
        ("sum(score) > 1", "may not look at other rows"),
        ("row_number() OVER () = 1", "may not look at other rows"),
        ("COLUMNS(*) IS NOT NULL", "names its columns"),
        ("score > $1", "may not hold parameters"),
        ("sccore > 1", "there is no column sccore"),
        ("segmentation IS NULL", "masks cannot be compared"),
        ("category_name > 3", "is no SQL condition"),
        ("getenv('HOME') = 'x'", "is no SQL condition"),
        ("NOT " * 900 + "true", "is no SQL condition"),
        (" + ".join(["score"] * 400) + " > 1", "is no SQL condition"),
    ],
)
def test_a_where_that_is_no_condition_is_one_line(where, why):
    with pytest.raises(RunError, match=why) as refusal:
        wanted_rows(ExportSettings(tables="a", to="b", format="csv", where=where))
    assert str(refusal.value).startswith("--where ") and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "where",
    [
        "age(run_created, TIMESTAMPTZ '2026-01-01 00:00:00Z') < INTERVAL 3 DAYS",
        "nullif(category_name, 'cat') IS NULL",
        "list_sum(bbox) > 10 AND split_part(image_key, '/', 3) = 'in' AND category_name.lower() = 'cat'",
    ],
)
def test_functions_and_macros_that_stay_the_same_are_conditions(where):
    assert wanted_rows(ExportSettings(tables="a", to="b", format="csv", where=where)).rows == where


@pytest.mark.parametrize(
    ("given", "said"),
    [("Cat", "near names: cat"), ("dogg", "near names: dog"), ("920", "near names: 92"), ("zebra", "there are ")],
)
def test_a_class_that_no_run_has_is_one_line(tables, tmp_path, given, said):
    line = refused(tables, tmp_path / "out", "csv", "--classes", "sky", given)
    assert f"--classes {given!r} is neither the name nor the id of a category" in line and said in line


def test_tables_without_their_segments_are_one_line(tmp_path):
    tables = str(tmp_path / "tables")
    publish_run(tables, "first", [image_row("s3://in/a", "first", 0)], [segment_row("s3://in/a", "first")])
    shutil.rmtree(tmp_path / "tables" / "segments")
    assert "has no published table segments, but 1 of its images have segments" in refused(
        tables, tmp_path / "o", "csv"
    )


def test_an_export_goes_on_from_another_working_directory(tables, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    first = ExportSettings(tables=os.path.relpath(tables), to=str(tmp_path / "out"), format="csv", workers=1)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(exporting, "_convert", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        exporting.export(first)
    monkeypatch.chdir(tmp_path / "other")
    exporting.export(replace(first, tables=os.path.relpath(tables)))
    assert (tmp_path / "out" / "segments.csv").exists()


def test_a_where_that_fails_for_a_row_is_one_line(tables, tmp_path):
    line = refused(tables, tmp_path / "out", "csv", "--where", "category_name::INTEGER = 3")
    assert "--where 'category_name::INTEGER = 3': " in line and "Could not convert" in line
    assert "nothing to export" in refused(tables, tmp_path / "out", "csv", "--where", "score > 2")
    assert not (tmp_path / "out").exists()
