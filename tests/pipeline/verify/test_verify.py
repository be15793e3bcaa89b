"""What has been done to an output by the program's own jobs is no fault, and what cannot be checked is said."""

import json
import os
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from deltalake.transaction import AddAction, RemoveAction
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jobs.verify import main
from m2f_core.masks.rle import encode_mask
from pipeline.commit.write import part_bytes
from pipeline.errors import RunError
from pipeline.layout import Output
from pipeline.runs.roll_back import roll_back
from pipeline.runs.settings import RollBackSettings, TidySettings
from pipeline.tables.publish import compact
from pipeline.tidy.tidy import tidy
from pipeline.verify.facts import RunFacts, TableFile
from pipeline.verify.file.check import whole_images
from pipeline.verify.file.rows import Rows, by_run
from pipeline.verify.file.segments import check_segments
from pipeline.verify.findings import Findings, Kind
from pipeline.verify.settings import VerifySettings
from pipeline.verify.verify import Verdict, verify
from tests.pipeline.verify.conftest import images, quarters, write_night
from tests.support.old_outputs import age
from tests.support.run_books import (
    CATEGORIES,
    FINGERPRINT,
    Found,
    created_at,
    encoded,
    forge,
    spec_of,
    with_value,
    write_report,
    write_run,
)


def check(output: object, **options: object) -> Verdict:
    return verify(VerifySettings(str(output), **{"workers": 1, **options}))


def lines(verdict: Verdict) -> list[str]:
    return [str(finding) for finding in verdict.findings]


# --- sound outputs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["instance", "semantic"])
def test_runs_of_each_task_are_sound(tmp_path, task):
    write_night(str(tmp_path / "out"), task=task)
    assert lines(check(tmp_path / "out")) == []


def test_a_mask_over_all_others_is_a_fault_but_not_among_instances(tmp_path):
    """The same row is right in one task and wrong in another."""
    whole = {"size": [6, 8], "counts": encode_mask(np.ones((6, 8), bool)).decode()}
    for task in ("instance", "panoptic", "semantic"):
        place = tmp_path / task
        write_night(str(place), task=task, shards=[[Found("s3://b/a.jpg", quarters(1, 1, 2, 2), (0, 1))]])
        for field, value in (("segmentation", whole), ("area", 48), ("bbox", [0.0, 0.0, 8.0, 6.0])):
            forge(place, "segments", with_value(field, 0, value))
        found = {one.kind for one in check(place).findings}
        shares, covers = {Kind.SHARED_PIXELS}, {Kind.NOT_COVERED}
        assert found == {"instance": set(), "panoptic": shares, "semantic": shares | covers}[task]


def test_semantic_segments_cover_the_image(tmp_path):
    write_night(str(tmp_path), task="semantic", shards=[[Found("s3://b/a.jpg", quarters(1, 1, 2, 2), (0, 1))]])
    forge(tmp_path, "segments", lambda rows: rows.slice(0, 1))
    forge(tmp_path, "images", with_value("num_segments", 0, 1))
    write_report(str(tmp_path), "night")
    assert [one.kind for one in check(tmp_path).findings] == [Kind.NOT_COVERED]


def test_segments_of_some_classes_need_not_cover_the_image_but_are_of_these(tmp_path):
    """The names are those of --classes."""
    for classes, expected in ((["cat"], []), (["dog"], [Kind.CATEGORY])):
        place = tmp_path / classes[0]
        spec = replace(spec_of("night", "semantic", created_at()), all_classes=False)
        shards = [encoded([Found("s3://b/a.jpg", quarters(1, 1, 0, 0), (0,))], 0, spec)]
        results = {"task": "semantic", "postprocess": "reference", "classes": classes}
        write_run(str(place), "night", shards, task="semantic", created=created_at(), record={"results": results})
        assert [one.kind for one in check(place).findings] == expected


def test_a_semantic_id_is_the_class_of_the_category(tmp_path):
    write_night(str(tmp_path / "out"), task="semantic")
    forge(tmp_path / "out", "segments", with_value("segment_id", 0, 4))
    assert [one.kind for one in check(tmp_path / "out").findings] == [Kind.SEGMENT_IDS]


def test_transformers_may_give_an_id_twice_to_one_mask_but_not_to_two(tmp_path):
    shards = [[Found("s3://b/a.jpg", quarters(1, 2, 2, 2), (2, 2))]]
    write_night(str(tmp_path / "out"), postprocess="hf", shards=shards)

    def shared(rows: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([*rows.to_pylist(), rows.to_pylist()[0]], schema=rows.schema)

    forge(tmp_path / "out", "segments", shared)
    forge(tmp_path / "out", "images", with_value("num_segments", 0, 3))
    found = {one.kind for one in check(tmp_path / "out").findings}
    assert found == {Kind.RECORD, Kind.COUNTS}, "the report alone does not know of the third row"
    forge(tmp_path / "out", "segments", with_value("segment_id", 1, 1))
    assert (Kind.SEGMENT_IDS, "segmentation") in {(one.kind, one.field) for one in check(tmp_path / "out").findings}


def test_after_merging_files(output):
    compact(Output.open(str(output)))
    verdict = check(output)
    assert lines(verdict) == [] and verdict.num_rows == {"images": 6, "segments": 8}
    assert verdict.notes == [
        "4 of 4 parts are no files of the tables any more, as their rows were merged or replaced: the rows were "
        "checked where they are, and hashes only of the other parts"
    ]


def three_nights(place) -> None:
    """Months ago, then again all images with one more that was gone, then some lately."""
    shards = images("panoptic")
    alone = [Found(f"s3://b/{name}.jpg", quarters(1, 2, 2, 2), (0, 1)) for name in ("gone", "kept")]
    write_night(str(place), "first", days_ago=100, shards=[[*alone, *shards[0]]])
    age(place, 100)
    write_night(str(place), "second", days_ago=60, shards=shards)
    age(place, 60)
    write_night(str(place), "third", days_ago=5, shards=shards[:1])
    age(place, 5)


@pytest.mark.parametrize("compacted", [False, True])
def test_after_making_room(tmp_path, compacted):
    """Old rows have left the tables, plans and journals of old runs are gone, and the last run is checked whole."""
    three_nights(tmp_path)
    assert lines(check(tmp_path)) == []
    now = created_at(0) + timedelta(hours=2)
    tidy(TidySettings(str(tmp_path), keep_versions=1, compact=compacted, yes=True), now)
    verdict = check(tmp_path)
    assert lines(verdict) == [] and verdict.runs == ["first", "second", "third"]
    assert any("first, second: jobs/tidy.py has removed plan and journal" in note for note in verdict.notes)
    assert lines(check(tmp_path, run_id="third")) == []


def test_rows_that_a_newer_row_has_replaced_may_be_gone_from_a_run_with_a_plan(tmp_path):
    """A run that was planned early and finished last stays whole when room is made, but for such rows."""
    shards = images("panoptic")
    write_night(str(tmp_path), "early", days_ago=101, shards=shards)
    write_night(str(tmp_path), "later", days_ago=100, shards=shards[:1])
    report = tmp_path / "_runs/early/report.json"
    late = (created_at(99)).isoformat(timespec="seconds")
    report.write_text(json.dumps({**json.loads(report.read_text()), "finished_at": late}))
    age(tmp_path, 99)
    tidy(TidySettings(str(tmp_path), keep_versions=1, yes=True), created_at(0))
    verdict = check(tmp_path)
    assert lines(verdict) == []
    assert any(note.startswith("run early: 4 rows are no longer in the tables") for note in verdict.notes)


def test_after_a_roll_back(tmp_path):
    three_nights(tmp_path)
    roll_back(RollBackSettings(str(tmp_path), "third", yes=True))
    verdict = check(tmp_path)
    assert lines(verdict) == [] and verdict.runs == ["first", "second"]
    assert "not checked: run third, it is rolled back" in verdict.notes
    with pytest.raises(RunError, match="run third cannot be checked: it is rolled back"):
        check(tmp_path, run_id="third")


@pytest.mark.parametrize("published", [False, True])
def test_while_another_run_is_not_finished(output, published):
    """Its rows may be in the tables already; those of the other runs are checked."""
    write_night(str(output), "now", finished=False, published=published)
    verdict = check(output)
    assert lines(verdict) == [] and verdict.runs == ["night"]
    why = "it is not finished; to finish it, repeat the command that started it"
    assert verdict.notes == [f"not checked: run now, {why}"]
    compact(Output.open(str(output)))
    assert lines(check(output)) == []
    with pytest.raises(RunError, match="run now cannot be checked: it is not finished"):
        check(output, run_id="now")


# --- what is chosen ---------------------------------------------------------------------------------------------------


def test_a_fault_of_another_run_is_not_looked_for(output):
    forge(output, "segments", with_value("area", 0, 13))
    write_night(str(output), "second")
    assert lines(check(output, run_id="second")) == []
    assert [one.kind for one in check(output, run_id="night").findings if one.run_id == "night"] == [Kind.NOT_MEASURED]


def test_a_sample_checks_so_many_shards_and_says_so(tmp_path):
    spec_shards = [[Found(f"s3://b/{n}.jpg", quarters(1, 2, 2, 1), (0, 1))] for n in range(10)]
    write_night(str(tmp_path), shards=spec_shards)
    verdict = check(tmp_path, sample=4)
    assert lines(verdict) == [] and (verdict.num_checked, verdict.num_items) == (4, 10)
    assert verdict.num_rows == {"images": 4, "segments": 8} and "a sample" in verdict.notes[-1]
    forge(tmp_path, "images", with_value("num_segments", 0, 4), shard=5)
    assert [one.kind for one in check(tmp_path, sample=4).findings] == [Kind.NUM_SEGMENTS], "shards 0, 2, 5 and 7"
    assert lines(check(tmp_path, sample=2)) != [] and lines(check(tmp_path, sample=3)) == []


def test_processes_find_what_one_process_finds(output):
    forge(output, "segments", with_value("area", 0, 13))
    forge(output, "images", with_value("etag", 0, "another"), shard=1)
    assert check(output, workers=2).to_dict() == check(output, workers=1).to_dict()


def test_segments_of_an_image_in_two_files_are_checked_together(output):
    """A file into which rows were merged, and another with the rest of the rows of an image."""
    table = DeltaTable(str(output / "segments"))
    rows = table.to_pyarrow_table().sort_by([("image_key", "ascending"), ("segment_id", "ascending")])
    counts = encode_mask(np.ones((6, 8), bool)).decode()
    whole = with_value("segmentation", 0, {"size": [6, 8], "counts": counts})
    for number, first in enumerate((rows, whole(rows))):
        added = []
        for name, some in ((f"part-{number}0", first.slice(0, 1)), (f"part-{number}1", first.slice(1))):
            data = part_bytes("segments", some)
            (output / f"segments/{name}.parquet").write_bytes(data)
            added.append(AddAction(f"{name}.parquet", len(data), {}, 0, True, "{}"))
        removed = [RemoveAction(one, True, 0, 0) for one in table.get_add_actions(flatten=True)["path"].to_pylist()]
        table.create_write_transaction([*removed, *added], mode="append", schema=table.schema())
        table.update_incremental()
        found = {one.kind for one in check(output).findings}
        assert found == (set() if first is rows else {Kind.NOT_MEASURED, Kind.SHARED_PIXELS})


def test_rows_of_an_image_stay_together_whatever_the_batches():
    table = pa.table({"image_key": list("aabbbbbcdd")})
    for size in range(1, 11):
        cut = list(whole_images(iter([table.slice(start, size) for start in range(0, 10, size)])))
        assert pa.concat_tables(cut) == table
        keys = [set(piece["image_key"].to_pylist()) for piece in cut]
        assert not any(one & other for n, one in enumerate(keys) for other in keys[n + 1 :])


# --- rows, drawn ------------------------------------------------------------------------------------------------------


def facts(task: str) -> RunFacts:
    categories = tuple((c["id"], c["name"], bool(c["isthing"])) for c in CATEGORIES)
    return RunFacts("night", created_at(), FINGERPRINT, task, False, categories, 1, True, 1)


def found_in(rows: pa.Table, task: str = "panoptic") -> set[Kind]:
    findings = Findings()
    for name in ("image_key", "category_name", "run_id"):
        rows = rows.set_column(rows.schema.get_field_index(name), name, rows[name].combine_chunks().dictionary_encode())
    check_segments(Rows(rows.combine_chunks(), facts(task), TableFile(0, "segments", "x", 1, None), findings))
    return {one.kind for one in findings}


@given(st.lists(hnp.arrays(np.int32, (5, 4), elements=st.integers(0, 3)), min_size=1, max_size=4), st.data())
@settings(deadline=None, max_examples=60)
def test_rows_of_the_encoder_are_sound_and_two_masks_that_share_a_pixel_are_found(maps, data):
    drawn = [Found(f"k{n}", labels, (0, 1, 2)) for n, labels in enumerate(maps)]
    rows = encoded(drawn, 0, spec_of("night", "panoptic", created_at())).tables["segments"]
    shuffled = rows.take(data.draw(st.permutations(range(rows.num_rows)))) if rows.num_rows else rows
    assert found_in(shuffled) == set()
    if rows.num_rows:
        row = data.draw(st.integers(0, rows.num_rows - 1))
        mask = data.draw(hnp.arrays(bool, (5, 4)))
        values = rows.to_pylist()
        key, number = values[row]["image_key"], values[row]["segment_id"]
        values[row]["segmentation"]["counts"] = encode_mask(mask).decode()
        labels = next(image.labels for image in drawn if image.key == key)
        expected = set()
        if not mask.any():
            expected = {Kind.NO_RLE}
        elif not np.array_equal(mask, labels == number):
            shares = bool(np.any(mask & (labels != 0) & (labels != number)))
            expected = {Kind.SHARED_PIXELS} if shares else set()
        changed = pa.Table.from_pylist(values, schema=rows.schema)
        assert found_in(changed) - {Kind.NOT_MEASURED} == expected
        assert found_in(changed, "instance") - {Kind.NOT_MEASURED} == expected - {Kind.SHARED_PIXELS}


def test_a_row_without_a_value_is_found_in_a_merged_file(output):
    """Other writers may leave null, which a part cannot have."""
    rows = pq.read_table(next((output / "segments/run=night").glob("shard-000000-*")), partitioning=None)
    values = [{**row, "score": None} if n == 1 else row for n, row in enumerate(rows.to_pylist())]
    nullable = pa.schema([field.with_nullable(True) for field in rows.schema])
    batch = pa.Table.from_pylist(values, schema=nullable)
    findings = Findings()
    context = type("", (), {"runs": {"night": facts("panoptic")}, "other_runs": frozenset()})()
    [rows_of_run] = by_run(batch, context, TableFile(0, "segments", "x", 1, None), findings)
    left = rows_of_run.with_values()
    assert [(one.kind, one.field, one.count) for one in findings] == [(Kind.NO_VALUE, "score", 1)]
    assert len(left) == rows.num_rows - 1


# --- the job ----------------------------------------------------------------------------------------------------------


def test_the_job_says_what_is_wrong_in_lines_and_in_json(output, tmp_path, capsys):
    assert main(["--tables", str(output), "--workers", "1", "--report", str(tmp_path / "good.json")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "nothing wrong: 6 images and 8 segments of 1 runs checked, 2 of 2 shards and merged files (100.0%)"
    ]
    assert json.loads((tmp_path / "good.json").read_text())["is_good"] is True
    forge(output, "segments", with_value("area", 0, 13))
    assert main(["--tables", str(output), "--workers", "1", "--report", str(tmp_path / "bad.json")]) == 1
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and said[0].startswith("WRONG: 1 segments have an area or a box that is not the one of their")
    place = ("run night", "segments/run=night/shard-000000", "s3://b/a.jpg")
    for word in (*place, "(area)", "segment 1 has 13, its mask 12"):
        assert word in said[0]
    [finding] = json.loads((tmp_path / "bad.json").read_text())["findings"]
    assert (finding["kind"], finding["count"], finding["image_key"]) == ("not_measured", 1, "s3://b/a.jpg")


def refusal(capsys, *args: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    return line


def test_what_cannot_be_checked_is_refused_in_one_line(output, tmp_path, capsys):
    assert "holds no run" in refusal(capsys, "--tables", str(tmp_path / "nothing"))
    assert "holds no run other; its runs: night" in refusal(capsys, "--tables", str(output), "--run-id", "other")
    assert "--sample" in refusal(capsys, "--tables", str(output), "--sample", "0")
    write_night(str(tmp_path / "begun"), finished=False, published=False)
    assert "holds no finished run: night" in refusal(capsys, "--tables", str(tmp_path / "begun"))
    os.rename(output / "images/_delta_log", output / "images/log")
    assert "holds no published tables" in refusal(capsys, "--tables", str(output))
