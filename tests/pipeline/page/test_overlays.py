"""Overlays as files and `show`: upright, the colours of categories where the masks are, names without collisions."""

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import distance_transform_edt

from jobs.report import PROG, main
from m2f_core.masks.colours import category_colour, segment_colour, to_oklab
from pipeline.errors import RunError
from pipeline.page.images.overlays import file_name
from pipeline.page.show import show
from tests.support.page_runs import HOSTILE_CATEGORIES, TURNED
from tests.support.tables import read_table

OPACITY = 0.55


def rows_of(made_page, table: str, name: str) -> list[dict]:
    return [row for row in read_table(made_page.root / "tables", table, "second") if row["image_key"].endswith(name)]


def assert_drawn(made_page, picture: Image.Image, name: str, segments) -> None:
    """Inside of each segment, a few pixels from its edge, the image shines through the colour of its category."""
    with Image.open(made_page.root / "images" / name) as opened:
        upright = np.asarray(opened.convert("RGB") if name != TURNED else opened.rotate(-90, expand=True)).astype(float)
    drawn = np.asarray(picture).astype(float)
    places = {category["id"]: place for place, category in enumerate(HOSTILE_CATEGORIES)}
    image = next(one for one in made_page.now if one.name == name)
    compared = 0
    for segment in segments:
        depths = distance_transform_edt(np.pad(image.found[segment["segment_id"] - 1].mask, 1))[1:-1, 1:-1]
        at = np.unravel_index(depths.argmax(), depths.shape)
        if depths[at] < 3:  # all outline
            continue
        compared += 1
        colour = np.array(category_colour(places[segment["category_id"]]))
        wanted = (1 - OPACITY) * upright[at] + OPACITY * colour
        assert np.abs(drawn[at] - wanted).max() < 14, segment  # JPEG
    assert compared


@pytest.mark.parametrize("name", [TURNED, "plain-003.png"])
def test_show_draws_all_segments_of_an_image_or_one(made_page, name):
    [image], segments = rows_of(made_page, "images", name), rows_of(made_page, "segments", name)
    picture = show(image, made_page.tables)
    assert picture.width >= image["width"] and picture.height > image["height"]  # with a legend
    assert_drawn(made_page, picture, name, segments)
    assert_drawn(made_page, show(segments[0], made_page.tables), name, segments[:1])


def test_show_says_in_one_line_what_it_cannot_show(made_page):
    [image] = rows_of(made_page, "images", TURNED)
    with pytest.raises(RunError, match="the row has no column run_id, shard"):
        show({"image_key": image["image_key"]}, made_page.tables)
    with pytest.raises(RunError, match="cannot be shown: the plan of the run"):
        show({**image, "image_key": "file:///etc/hostname"}, made_page.tables)
    with pytest.raises(RunError, match=r"had ETag \S+ when it was planned"):
        show({**image, "etag": "another"}, made_page.tables)


@pytest.mark.thorough
def test_overlays_of_the_sample_and_of_a_filter(made_page, tmp_path, capsys):
    to = ["--tables", made_page.tables, "--to", str(tmp_path / "page"), "--overlays", str(tmp_path / "all")]
    assert main(to) == 0
    assert f"overlays: {len(made_page.now)} in {tmp_path}/all" in capsys.readouterr().out
    files = sorted(path.name for path in (tmp_path / "all").iterdir())
    keys = [row["image_key"] for row in read_table(made_page.root / "tables", "images", "second") if row["height"]]
    assert files == sorted(map(file_name, keys))
    where = "list_contains(classes, 'road') AND image_key LIKE '%plain-00%' AND num_segments > 0 AND attempt = 1"
    assert main([*to[:4], "--overlays", str(tmp_path / "some"), "--where", where]) == 0
    with_road = {row["image_key"] for row in rows_of(made_page, "segments", "") if row["category_name"] == "road"}
    wanted = {file_name(key) for key in with_road if "plain-00" in key}
    assert {path.name for path in (tmp_path / "some").iterdir()} == wanted and wanted
    with Image.open(tmp_path / "all" / file_name(f"file://{made_page.root}/images/{TURNED}")) as opened:
        assert_drawn(made_page, opened.convert("RGB"), TURNED, rows_of(made_page, "segments", TURNED))


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("no_such_column > 1", "there is no column no_such_column"),
        ("true) --", "is no SQL condition"),
        ("true) OR (true", "is no SQL condition"),
        ("(", "is no SQL condition"),
        ("image_key IN (SELECT content FROM read_text('/etc/hostname'))", "may not hold a query of its own"),
        ("image_key IN (SELECT image_key FROM now_images)", "may not hold a query of its own"),
        ("count(*) > 1", "may not look at other rows"),
        ("image_key::INTEGER = 3", "Could not convert"),
    ],
)
def test_a_condition_that_does_not_parse_gets_one_line_and_writes_nothing(made_page, tmp_path, capsys, where, said):
    with pytest.raises(SystemExit) as stop:
        main(["--tables", made_page.tables, "--to", str(tmp_path / "x"), "--overlays", str(tmp_path), "--where", where])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and said in err and err.startswith(PROG) and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_names_of_files_differ_and_are_plain():
    keys = ["s3://b/a/x.jpg", "s3://b/b/x.jpg", "s3://b/c.tar#x.jpg", "s3://b/\u202e<>.png", "s3://b/\udcff"]
    names = [file_name(key) for key in keys]
    assert len(set(names)) == len(names) and all(name.isascii() and "/" not in name for name in names)


def test_the_colours_of_categories_are_distinct():
    """By distance in OKLab, in which 0.02 is about what an eye just sees; and none is the first of two."""
    lab_N3 = to_oklab(np.array([category_colour(place) for place in range(133)]))
    distances = np.sqrt(((lab_N3[:, None] - lab_N3[None]) ** 2).sum(axis=-1))
    np.fill_diagonal(distances, 1.0)
    assert distances[:20, :20].min() > 0.1 and distances.min() > 0.04
    assert category_colour(0) == category_colour(256) and segment_colour(0) != segment_colour(1)
