"""Several inputs, patterns, --include and --exclude: which objects are images, and which are left out and counted."""

import json

import pytest

from pipeline.config import Settings
from pipeline.errors import RunError
from pipeline.inputs.listing import list_inputs, refuse_empty
from pipeline.inputs.sources import input_spec
from tests.support.listed import list_images

FILES = (
    "a.jpg",
    "b.png",
    "train/c.jpg",
    "train/deep/d.jpg",
    "val/e.jpg",
    "val/[f].jpg",
    ".DS_Store",
    "val/._e.jpg",
    "__MACOSX/train/c.jpg",
    "val/Thumbs.db",
)


@pytest.fixture
def folder(tmp_path):
    for name in FILES:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "in"


def names(folder, *inputs, **flags):
    settings = Settings(tuple(f"{folder}{one}" for one in inputs), f"{folder}-out", **flags)
    keys = [key for table in list_inputs(input_spec(settings)) for key in table["image_key"].to_pylist()]
    return [key.removeprefix(f"file://{folder}/") for key in keys]


IMAGES = ["a.jpg", "b.png", "train/c.jpg", "train/deep/d.jpg", "val/[f].jpg", "val/e.jpg"]


@pytest.mark.parametrize(
    ("inputs", "flags", "expected"),
    [
        ([""], {}, IMAGES),
        (["/val", "/train"], {}, ["val/[f].jpg", "val/e.jpg", "train/c.jpg", "train/deep/d.jpg"]),
        (["/*.jpg"], {}, ["a.jpg"]),
        (["/**/*.jpg"], {}, [name for name in IMAGES if name.endswith("jpg")]),
        (["/{train,val}/*.jpg"], {}, ["train/c.jpg", "val/[f].jpg", "val/e.jpg"]),
        (["/val/[f].jpg"], {}, ["val/[f].jpg"]),  # there is an object of that name
        (["/val/[e].jpg"], {}, ["val/e.jpg"]),
        ([""], {"include": ("*.jpg",), "exclude": ("train/**",)}, ["a.jpg", "val/[f].jpg", "val/e.jpg"]),
        ([""], {"exclude": ("deep/**", "*.png")}, [n for n in IMAGES if n != "b.png"]),  # deep/ is no top folder
        ([""], {"exclude": ("**/deep/**", "/val/*")}, ["a.jpg", "b.png", "train/c.jpg"]),
        (["/a.jpg"], {"include": ("*.jpg",)}, ["a.jpg"]),
        (["/a.jpg"], {"include": ("*.png",)}, []),
    ],
)
def test_which_objects_are_images(folder, inputs, flags, expected):
    assert names(folder, *inputs, **flags) == expected


def test_names_that_programs_leave_are_counted(folder, caplog):
    assert names(folder, "") == IMAGES
    assert "4 names are left out, because they were left by programs, or are excluded by --exclude" in caplog.text


def test_the_same_on_a_bucket(s3):
    uri = s3.bucket("selection")
    for name in FILES:
        s3.client.put_object(Bucket="selection", Key=f"in/{name}", Body=name.encode())
    listed = [image.image_key.removeprefix(f"{uri}/in/") for image in list_images(f"{uri}/in")]
    assert listed == IMAGES
    settings = Settings((f"{uri}/in/val/[f].jpg", f"{uri}/in/t*/*.jpg"), f"{uri}/out")
    keys = [key for table in list_inputs(input_spec(settings)) for key in table["image_key"].to_pylist()]
    assert keys == [f"{uri}/in/val/[f].jpg", f"{uri}/in/train/c.jpg"]


@pytest.mark.parametrize(
    ("inputs", "flags", "said"),
    [
        (("in", "in"), {}, "--input .*in is given twice"),
        (("in",), {"include": ("a[b",)}, r"--include a\[b: the bracket \[ is not closed"),
        (("in/a[b",), {}, r"--input .*a\[b: the bracket"),
        ((), {}, "--input names nothing"),
        (("in", " "), {}, "--input is empty"),
        (("s3://key:secret@bucket/in",), {}, "--input .*credentials"),
        (("in",), {"requester_pays": True}, "--requester-pays is for s3:// and gs://"),
        (("in",), {"anonymous": True}, "--anonymous is for s3://"),
    ],
)
def test_a_wrong_input_is_one_line(tmp_path, inputs, flags, said):
    with pytest.raises(RunError, match=said):
        input_spec(Settings(inputs, str(tmp_path), **flags))


def test_an_input_without_images_is_refused_though_another_has_some(folder):
    settings = Settings((f"{folder}/val", f"{folder}/*.gif"), f"{folder}-out")
    with pytest.raises(RunError, match=r"--input .*\*\.gif holds no objects"):
        refuse_empty(input_spec(settings))


def test_the_settings_of_run_json_are_plain_values():
    settings = Settings("in", "out", include=("*.jpg",))
    assert json.loads(json.dumps(settings.to_dict()))["include"] == ["*.jpg"]
    assert settings.selection_dict() == {"include": ["*.jpg"]}
