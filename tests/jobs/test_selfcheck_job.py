"""`--selfcheck` of the main job: it says what it compared and how fast the device is, and writes nothing."""

import pytest

from jobs import plan_bucket, segment_bucket
from pipeline.runs import selfcheck


def flags(source, output, model, *more) -> list[str]:
    places = ["--input", source, "--output", output, "--model", model, "--image-size", "64:128", "--selfcheck"]
    return [str(flag) for flag in (*places, *more)]


@pytest.mark.usefixtures("ray_session")
def test_it_compares_and_times_and_writes_nothing(photographs, tiny_checkpoint, tmp_path, capsys):
    output = tmp_path / "output"
    assert segment_bucket.main(flags(photographs, output, tiny_checkpoint, "--limit", "3", "--batch-size", "2")) == 0
    said = capsys.readouterr().out
    assert "CPU, " in said and "fp32, against plain PyTorch" in said
    rows = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in said.splitlines() if "│" in line}
    assert rows["images compared"] == "3"
    assert rows["verdict"] == "rounding"
    assert float(rows["images/s"].split()[0].replace(",", "")) > 0
    assert rows["batches"] == "at most 2 images"
    assert not output.exists()


@pytest.mark.usefixtures("ray_session")
def test_differences_that_rounding_does_not_explain_are_exit_code_1(
    photographs, tiny_checkpoint, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(selfcheck._MOST_FLIPPED, "fp32", -1.0)
    assert segment_bucket.main(flags(photographs, tmp_path / "output", tiny_checkpoint, "--limit", "1")) == 1
    assert "MORE THAN ROUNDING" in capsys.readouterr().out


@pytest.mark.usefixtures("ray_session")
def test_input_that_holds_no_image_is_one_line(tiny_checkpoint, tmp_path, capsys):
    folder = tmp_path / "input"
    folder.mkdir()
    (folder / "notes.txt").write_text("no image")
    with pytest.raises(SystemExit) as stop:
        segment_bucket.main(flags(folder, tmp_path / "output", tiny_checkpoint))
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith(
        "segment_bucket.py: error: --selfcheck: none of the first 1 images can be decoded; the last: "
    )


def test_planning_has_no_such_flag(photographs, tiny_checkpoint, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        plan_bucket.main(flags(photographs, tmp_path / "output", tiny_checkpoint))
    assert stop.value.code == 2
    assert capsys.readouterr().err == "plan_bucket.py: error: --selfcheck belongs to segment_bucket.py\n"
