"""What cannot start ends with exit code 2, one line that names the thing, and nothing written."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from safetensors.numpy import load_file, save_file

from jobs import nights
from jobs.segment_bucket import PROG, main
from pipeline.config import Settings
from pipeline.drill.fault_proxy import FaultProxy, Rule
from pipeline.layout import Output
from pipeline.nights.seen import seen_nights
from pipeline.schema import SCHEMA_VERSION, TABLES
from pipeline.store import filesystem
from tests.pipeline.test_shown_text import HOSTILE
from tests.support.last_line import last_line
from tests.support.places import ROOT
from tests.support.planning import planned
from tests.support.s3_server import READ_ONLY_ACCESS_KEY, READ_ONLY_SECRET_KEY

BUCKET = "m2f-bad-input"


@pytest.fixture
def folder(tmp_path, photographs) -> Path:
    """A folder with one photograph."""
    (tmp_path / "photographs").mkdir()
    shutil.copy(photographs / "camera.png", tmp_path / "photographs")
    return tmp_path / "photographs"


@pytest.fixture
def model(tmp_path, tiny_checkpoint) -> Path:
    """A checkpoint to break."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


@pytest.fixture
def output(tmp_path) -> Path:
    """Where nothing may appear."""
    return tmp_path / "tables"


@pytest.fixture(autouse=True)
def quiet_log():
    """main() gives the package's logger a handler; take it away again."""
    log = logging.getLogger("pipeline")
    before = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.level, log.propagate = before


@pytest.fixture(scope="module")
def bucket(s3):
    """The server, with one photograph (to be listed, not to be decoded) in the bucket of this module."""
    s3.bucket(BUCKET)
    s3.client.put_object(Bucket=BUCKET, Key="photographs/a.jpg", Body=b"1")
    return s3


def check_line(stderr: str, *named: object) -> str:
    """After lines that say what the job is doing, one line from us that holds everything in `named`: that line."""
    line = last_line(stderr)
    assert line.startswith(f"{PROG}: error: ") and stderr.endswith("\n"), stderr
    missing = [str(word) for word in named if str(word) not in line]
    assert not missing, f"{missing} not in: {line}"
    return line


@pytest.fixture
def refused(capfd):
    """Call main() in this process: it must refuse, in one line that holds everything in `named`."""

    def check(source: object, output: object, model: object, *args: str, named: tuple[object, ...]) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(["--input", str(source), "--output", str(output), "--model", str(model), *args])
        assert stop.value.code == 2
        return check_line(capfd.readouterr().err, *named)

    return check


def tree(folder: Path, records: bool = True) -> dict[str, bytes]:
    """The files below `folder`, with or without the records of nights."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): path.read_bytes() for path in files if records or "/_runs/_nights/" not in str(path)}


def objects(server) -> dict[str, str]:
    """Every object of the bucket with its ETag."""
    pages = server.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    return {entry["Key"]: entry["ETag"] for page in pages for entry in page.get("Contents", ())}


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--nonsense", "1"], ["--nonsense"]),
        (["--batch-size", "0"], ["--batch-size", "0", "1 .. 4,096"]),
        (["--images-per-shard", "0"], ["--images-per-shard"]),
        (["--shard-mib", "4096"], ["--shard-mib", "1,024"]),
        (["--limit", "0"], ["--limit"]),
        (["--max-image-pixels", "0"], ["--max-image-pixels"]),
        (["--max-failure-rate", "1.5"], ["--max-failure-rate"]),
        (["--score-threshold", "2"], ["--score-threshold", "2"]),
        (["--overlap-threshold", "-0.1"], ["--overlap-threshold", "-0.1"]),
        (["--mask-threshold", "1"], ["--mask-threshold", "1"]),  # would be empty masks; 0 would be full ones
        (["--mask-threshold", "0"], ["--mask-threshold", "0"]),
        (["--gpu-actors", "3:1"], ["--gpu-actors", "3:1"]),
        (["--gpu-actors", "0"], ["--gpu-actors", "0"]),
        (["--gpu-actors", "many"], ["--gpu-actors", "many"]),
        (["--image-size", "banana"], ["--image-size", "banana", "800:1333", "384x384"]),
        (["--tile", "2048"], ["--tile", "'2048'", "SIZE:OVERLAP", "2048:256"]),
        (["--tile", "64:33"], ["--tile", "overlap by 1 to 32 pixels, not 33"]),
        (["--tile", "64:16", "--postprocess", "hf"], ["--tile", "leave out --postprocess hf"]),
        (["--image-size", "800:600"], ["--image-size", "800:600"]),
        (["--image-size", "0x0"], ["--image-size"]),
        (["--run-id", "a/b"], ["--run-id", "a/b"]),
        (["--run-id", ".."], ["--run-id", ".."]),
        (["--run-id", "a" * 65], ["--run-id", "64"]),
        # Objects of the output, not folders of runs: such a run locked the output for good.
        (["--run-id", "format.json"], ["--run-id format.json", ".json"]),
        (["--run-id", "lease.JSON"], ["--run-id lease.JSON", ".json"]),
        (["--run-id", "night.lock"], ["--run-id night.lock", ".lock"]),
        (["--run-id", "night."], ["--run-id night.", "a dot"]),
        (["--run-id", "Nul.1"], ["--run-id Nul.1", "Windows"]),
        (["--run-id", "_nights"], ["--run-id '_nights'", "begin"]),
        (["--run-id", "n\u0131ght"], ["--run-id", "ASCII"]),
        (["--run-id", "night\n"], ["--run-id 'night\\n'", "ASCII"]),
        (["--device", "tpu"], ["--device", "tpu"]),
        (["--label-ids-to-fuse", "-1"], ["--label-ids-to-fuse", "-1"]),
        (["--label-ids-to-fuse", "99"], ["--label-ids-to-fuse", "99", "0 .. 7"]),
        (["--task", "depth"], ["--task", "depth", "panoptic", "instance", "semantic"]),
        (["--task", "instance", "--top-k", "0"], ["--top-k", "0", "1 .. "]),
        (["--top-k", "50"], ["--top-k", "--task instance", "panoptic"]),
        (["--task", "semantic", "--score-threshold", "0"], ["--score-threshold", "--task panoptic and instance"]),
        (["--task", "semantic", "--top-k", "50"], ["--top-k", "--task instance", "semantic"]),
        (["--task", "instance", "--overlap-threshold", "0.8"], ["--overlap-threshold", "--task panoptic", "instance"]),
        (["--task", "instance", "--mask-threshold", "0.5"], ["--mask-threshold", "--task panoptic", "instance"]),
        (["--task", "instance", "--label-ids-to-fuse"], ["--label-ids-to-fuse", "--task panoptic", "instance"]),
        (["--config", "/no/such/file.yaml"], ["--config", "/no/such/file.yaml"]),
        (["--output", ""], ["--output", "empty"]),
    ],
)
def test_bad_values(refused, folder, output, tiny_checkpoint, args, named):
    refused(folder, output, tiny_checkpoint, *args, named=tuple(named))
    assert not output.exists() or only_a_record(output), "a record if the checkpoint shows that the value is wrong"


@pytest.mark.parametrize(
    ("yaml", "named"),
    [("nonsense: 1", ["nonsense"]), ("batch_size: four", ["batch-size", "four"]), ("- a list", ["list"])],
)
def test_bad_files_of_settings(refused, folder, output, tiny_checkpoint, tmp_path, yaml, named):
    (tmp_path / "settings.yaml").write_text(yaml)
    refused(folder, output, tiny_checkpoint, "--config", str(tmp_path / "settings.yaml"), named=tuple(named))
    assert not output.exists()


def only_a_lease(output: Path) -> bool:
    """What is found out under the lease leaves it, released, and records of nights; nothing else."""
    return set(tree(output, records=False)) == {f"{output}/_runs/lease.json", f"{output}/_runs/lease.json.lock"}


def only_a_record(output: Path) -> bool:
    """A night that is refused leaves its record, and nothing else."""
    nights = seen_nights(Output.open(str(output)))
    return bool(nights) and {night.outcome for night in nights} == {"refused"} and not tree(output, records=False)


def test_more_than_the_cluster_has(refused, ray_session, folder, output, tiny_checkpoint):
    refused(folder, output, tiny_checkpoint, "--cpus-per-actor", "500", named=("500", "--cpus-per-actor"))
    refused(folder, output, tiny_checkpoint, "--device", "cpu", "--gpu-actors", "64", named=("64", "--gpu-actors"))
    if not ray.cluster_resources().get("GPU"):
        refused(folder, output, tiny_checkpoint, "--device", "cuda", named=("--device cuda", "no GPU"))
    assert only_a_lease(output)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def change_config(model: Path, **changes: object) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **changes}))


def change_weights(model: Path, drop: str = "", **add: object) -> None:
    weights = load_file(model / "model.safetensors")
    weights.pop(drop, None)
    save_file({**weights, **add}, model / "model.safetensors")


def an_empty_folder(model):
    shutil.rmtree(model)
    model.mkdir()
    return "config.json"


def no_weights(model):
    (model / "model.safetensors").unlink()
    return "model.safetensors"


def pickled_weights(model):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    return "pytorch_model.bin"


def weights_of_noise(model):
    (model / "model.safetensors").write_bytes(os.urandom(1000))
    return "model.safetensors"


def weights_cut_short(model):
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    return "model.safetensors"


def a_config_of_noise(model):
    (model / "config.json").write_bytes(b"\xff\x00{")
    return "config.json"


def another_architecture(model):
    change_config(model, model_type="detr")
    return "detr"


def another_backbone(model):
    change_config(model, backbone_config={"model_type": "convnext"})
    return "convnext"


def another_width(model):
    change_config(model, num_queries=3)
    return "queries"


def a_missing_weight(model):
    change_weights(model, drop="class_predictor.weight")
    return "class_predictor.weight"


def an_unexpected_weight(model):
    change_weights(model, surprise=load_file(model / "model.safetensors")["class_predictor.bias"])
    return "surprise"


def a_missing_shard_of_weights(model):
    index = {"weight_map": {"class_predictor.weight": "model-00001-of-00002.safetensors"}}
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return "model-00001-of-00002.safetensors"


def a_preprocessor_of_noise(model):
    (model / "preprocessor_config.json").write_text("[1, 2]")
    return "preprocessor_config.json"


@pytest.mark.parametrize(
    "break_it",
    [
        an_empty_folder,
        no_weights,
        pickled_weights,
        weights_of_noise,
        weights_cut_short,
        a_config_of_noise,
        another_architecture,
        another_backbone,
        another_width,
        a_missing_weight,
        an_unexpected_weight,
        a_missing_shard_of_weights,
        a_preprocessor_of_noise,
    ],
)
def test_a_checkpoint_that_does_not_fit(refused, folder, output, model, break_it):
    what = break_it(model)
    refused(folder, output, model, named=("--model", model, what))
    assert only_a_record(output)


def test_instances_of_a_checkpoint_without_things(refused, folder, output, model):
    categories = json.loads((model / "config.json").read_text())["categories"]
    change_config(model, categories=[{**category, "isthing": 0} for category in categories])
    refused(folder, output, model, "--task", "instance", named=("--task instance", "8 classes", "--model", "stuff"))
    assert only_a_record(output)


def test_a_model_that_is_nowhere(refused, folder, output, tmp_path):
    refused(folder, output, tmp_path / "nowhere", named=("--model", "nowhere"))
    refused(folder, output, folder / "camera.png", named=("--model", "camera.png"))  # a file
    assert only_a_record(output)


def test_a_model_that_is_not_in_the_bucket(refused, bucket, folder, output, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for uri in (f"s3://{BUCKET}/no-model", "s3://m2f-no-such-bucket/model", f"s3://{BUCKET}/photographs"):
        refused(folder, output, uri, named=("--model", uri))
    assert only_a_record(output)


def test_a_night_that_is_refused_leaves_a_record_with_the_line(refused, folder, output, tmp_path, capfd):
    line = refused(folder, output, tmp_path / "nowhere", "--run-id", "night-1", named=("--model",))
    [night] = seen_nights(Output.open(str(output)))
    assert (night.outcome, night.record.exit_code, night.record.run_id) == ("refused", 2, None)
    assert line == f"{PROG}: error: {night.reason}" and night.record.counts == {}
    assert night.record.command[:3] == (PROG, "--input", str(folder))
    assert nights.main(["--output", str(output), "--expect-within", "26h"]) == 1
    said = capfd.readouterr()
    assert "refused" in said.out and night.reason in said.out
    assert re.fullmatch(
        rf"nights.py: no night of {output} has finished or found nothing to do within 26h; the newest night started at "
        r"[\d-]+ \d\d:\d\d: refused\n",
        said.err,
    )


# --- inputs -----------------------------------------------------------------------------------------------------------


def test_inputs_that_are_missing_or_empty(refused, output, tiny_checkpoint, tmp_path):
    (tmp_path / "empty" / "sub").mkdir(parents=True)
    refused(tmp_path / "nowhere", output, tiny_checkpoint, named=("--input", tmp_path / "nowhere", "does not exist"))
    refused(tmp_path / "empty", output, tiny_checkpoint, named=("--input", tmp_path / "empty", "no objects"))
    refused("gopher://photos", output, tiny_checkpoint, named=("gopher",))
    assert only_a_record(output)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission(refused, folder, output, tiny_checkpoint):
    folder.chmod(0)
    try:
        refused(folder, output, tiny_checkpoint, named=("no permission to list --input", folder))
    finally:
        folder.chmod(0o755)
    assert only_a_record(output)


def test_buckets_that_are_missing_or_empty(refused, bucket, output, tiny_checkpoint):
    for uri, what in (
        ("s3://m2f-no-such-bucket/photographs", "does not exist"),
        (f"s3://{BUCKET}/no-such-prefix", "no objects"),
        (f"s3://{BUCKET}/photo", "no objects"),  # the beginning of a name is no prefix
        ("s3://Not_A_Name!/photographs", "cannot be listed"),
    ):
        refused(uri, output, tiny_checkpoint, named=("--input", uri, what))
    assert only_a_record(output)


WRONG_ENVIRONMENTS = {
    "wrong secret": {"AWS_SECRET_ACCESS_KEY": "wrong"},
    "unknown key": {"AWS_ACCESS_KEY_ID": "unknown"},
    "no credentials": {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"},
    "no such profile": {"AWS_PROFILE": "no-such-profile"},
    "no endpoint": {"AWS_ENDPOINT_URL": "127.0.0.1"},
    "nobody there": {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
}


@pytest.mark.parametrize("role", ["input", "output", "model"])
@pytest.mark.parametrize("what", WRONG_ENVIRONMENTS)
def test_a_store_that_cannot_be_used(
    refused, bucket, fresh_s3, folder, output, tiny_checkpoint, monkeypatch, role, what
):
    for name, value in WRONG_ENVIRONMENTS[what].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(filesystem._S3_OPTIONS["config_kwargs"]["retries"], "total_max_attempts", 1)  # for the last
    uri = f"s3://{BUCKET}/photographs"
    places = {"source": folder, "output": output, "model": tiny_checkpoint}
    places["source" if role == "input" else role] = uri
    before = objects(bucket)
    refused(*places.values(), named=(uri,))
    # Before the record, the job compares both places: an output inside the input would be listed by the next night.
    assert only_a_record(output) if role == "model" else not output.exists() or only_a_record(output)
    assert objects(bucket) == before


# --- outputs ----------------------------------------------------------------------------------------------------------


def test_an_output_that_may_not_be_written(refused, ray_session, bucket, fresh_s3, tiny_checkpoint, monkeypatch):
    """The credentials may read: everything is in order until the first write."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READ_ONLY_ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READ_ONLY_SECRET_KEY)
    before = objects(bucket)
    target = f"s3://{BUCKET}/tables"
    refused(f"s3://{BUCKET}/photographs", target, tiny_checkpoint, named=("no permission to use --output", target))
    assert objects(bucket) == before


def test_an_output_in_a_bucket_that_is_missing(refused, ray_session, bucket, folder, tiny_checkpoint):
    target = "s3://m2f-no-such-bucket/tables"
    refused(folder, target, tiny_checkpoint, named=("--output", target, "not exist"))
    assert "m2f-no-such-bucket" not in [b["Name"] for b in bucket.client.list_buckets()["Buckets"]]


@pytest.mark.parametrize("fault", ["ignore_conditions", "refuse_conditions"])
def test_an_output_on_a_store_without_conditional_writes(
    refused, bucket, fresh_s3, folder, tiny_checkpoint, monkeypatch, fault
):
    """Two drivers would both hold the lease there."""
    before = objects(bucket)
    target = f"s3://{BUCKET}/tables"
    with FaultProxy(bucket.url, [Rule("^PUT ", fault)], sign=True) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        refused(
            folder, target, tiny_checkpoint, named=(f"--output {target}: the store at {store.url}", "another store")
        )
    after = objects(bucket)
    assert {key: etag for key, etag in after.items() if "/_nights/" not in key} == {
        key: etag for key, etag in before.items() if "/_nights/" not in key
    }


def test_an_output_that_is_a_file(refused, ray_session, folder, tmp_path, tiny_checkpoint):
    (tmp_path / "file").write_bytes(b"mine")
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        refused(folder, target, tiny_checkpoint, named=("--output", target))
    assert (tmp_path / "file").read_bytes() == b"mine"


@pytest.mark.parametrize("place", ["", "/", "/tables", "/../photographs/tables"])
def test_an_output_inside_the_input(refused, bucket, folder, tiny_checkpoint, place):
    before, before_s3 = tree(folder), objects(bucket)
    refused(folder, f"{folder}{place}", tiny_checkpoint, named=("--output", "inside"))
    assert tree(folder) == before
    if ".." not in place:
        uri = f"s3://{BUCKET}/photographs"
        refused(uri, f"{uri}{place}", tiny_checkpoint, named=("--output", "inside"))
        refused(uri, f"{uri}{place}".replace("s3:", "s3a:"), tiny_checkpoint, named=("--output", "inside"))
        refused(f"s3://{BUCKET}", f"{uri}{place}", tiny_checkpoint, named=("--output", "inside"))
        assert objects(bucket) == before_s3


def test_an_output_inside_the_input_by_a_link(refused, folder, tmp_path, tiny_checkpoint):
    (tmp_path / "link").symlink_to(folder)
    before = tree(folder)
    refused(tmp_path / "link", folder / "tables", tiny_checkpoint, named=("--output", "inside"))
    refused(folder, tmp_path / "link" / "tables", tiny_checkpoint, named=("--output", "inside"))
    assert tree(folder) == before


@pytest.mark.parametrize("name", [*TABLES, "_runs"])
def test_an_input_where_the_tables_would_go(refused, tmp_path, folder, tiny_checkpoint, name):
    """--input s3://b/images --output s3://b looks harmless, but the table is called `images` too."""
    source = folder.rename(tmp_path / name)
    before = tree(source)
    refused(source, tmp_path, tiny_checkpoint, named=("--output", name))
    assert tree(source) == before


def test_an_output_of_another_schema_version(refused, folder, output, tiny_checkpoint):
    (output / "_runs").mkdir(parents=True)
    (output / "_runs" / "format.json").write_text('{"schema_version": 999}')
    before = tree(output)
    refused(folder, output, tiny_checkpoint, named=("--output", "999", SCHEMA_VERSION))
    assert tree(output) == before


def test_an_output_with_a_damaged_version_file(refused, folder, output, tiny_checkpoint):
    (output / "_runs").mkdir(parents=True)
    (output / "_runs" / "format.json").write_text("{")
    before = tree(output)
    refused(folder, output, tiny_checkpoint, named=("--output", "format.json"))
    assert tree(output) == before


def test_a_run_id_of_other_settings(refused, folder, output, tiny_checkpoint, photographs):
    settings = Settings(str(folder), str(output), str(tiny_checkpoint), run_id="nightly", image_size="96:160")
    planned(settings)
    before = tree(output, records=False)
    for source, args in (
        (folder, []),  # another image size
        (folder, ["--image-size", "96:160", "--limit", "1"]),
        (folder, ["--image-size", "96:160", "--score-threshold", "0.1"]),
        (photographs, ["--image-size", "96:160"]),
    ):
        refused(source, output, tiny_checkpoint, "--run-id", "nightly", *args, named=("--run-id nightly",))
    assert tree(output, records=False) == before


# --- text of others ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
def test_names_reach_the_terminal_as_text(refused, folder, output, model, tmp_path, hostile):
    name = f"a{hostile}b"
    line = refused(tmp_path / name, output, model, named=("--input", "does not exist"))
    assert hostile not in line and "\\" in line
    if hostile not in ("\udcff", "\n"):  # no name of a tensor
        change_weights(model, **{name: load_file(model / "model.safetensors")["class_predictor.bias"]})
        line = refused(folder, output, model, named=("--model",))
        assert hostile not in line


@pytest.mark.parametrize("role", ["input", "output", "model"])
def test_credentials_in_a_uri_are_refused_and_not_repeated(refused, folder, output, model, role):
    places = {"source": folder, "output": output, "model": model}
    places["source" if role == "input" else role] = "s3://KEY:SECRET@bucket/x"
    line = refused(*places.values(), named=(f"--{role} s3://***@bucket/x holds credentials", "AWS_PROFILE"))
    assert "SECRET" not in line
    assert not output.exists()


# --- as a user sees it ------------------------------------------------------------------------------------------------


def run_job(*args: object, **environment: str) -> str:
    """stderr of the real program, which must end with exit code 2 and say nothing on stdout."""
    run = subprocess.run(
        [sys.executable, "jobs/segment_bucket.py", *map(str, args)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2, run.stdout + run.stderr
    assert run.stdout == ""
    return run.stderr


def test_the_program_refuses_an_unknown_flag(folder, output, tiny_checkpoint):
    stderr = run_job("--input", folder, "--output", output, "--model", tiny_checkpoint, "--batchsize", "4")
    check_line(stderr, "--batchsize", "--batch-size")
    assert not output.exists()


def test_the_program_refuses_a_missing_model(drivers, folder, output, tmp_path):
    driver = drivers.start("--input", folder, "--output", output, "--model", tmp_path / "nowhere")
    check_line(driver.finish(), "--model", tmp_path / "nowhere")
    assert driver.returncode == 2 and only_a_record(output)


def test_the_program_refuses_an_output_that_may_not_be_written(bucket, tiny_checkpoint):
    """Known only at the first write: Ray has been started and must end without a word."""
    before = objects(bucket)
    target = f"s3://{BUCKET}/tables"
    stderr = run_job(
        *("--input", f"s3://{BUCKET}/photographs", "--output", target, "--model", tiny_checkpoint),
        AWS_ACCESS_KEY_ID=READ_ONLY_ACCESS_KEY,
        AWS_SECRET_ACCESS_KEY=READ_ONLY_SECRET_KEY,
    )
    check_line(stderr, "no permission to use --output", target)
    assert objects(bucket) == before


def test_ray_that_cannot_start(drivers, folder, output, tiny_checkpoint, tmp_path):
    """Its temporary folder would lie below a file."""
    (tmp_path / "file").touch()
    flags = ["--input", folder, "--output", output, "--model", tiny_checkpoint, "--device", "cpu"]
    driver = drivers.start(*flags, RAY_TMPDIR=str(tmp_path / "file"))
    check_line(driver.finish(), "Ray cannot start on this machine: ", tmp_path / "file")
    assert driver.returncode == 2 and "Traceback" not in driver.said()
