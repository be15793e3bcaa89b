"""The command line: every setting has a flag, a help text and a place in the docs; files and flags mix as promised."""

import importlib
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

import m2f_core
from jobs import (
    drill,
    evaluate,
    export_model,
    finetune,
    make_scenes,
    nights,
    plan_bucket,
    publish,
    roll_back,
    segment_bucket,
    selfcheck,
    tidy,
    verify,
)
from jobs.common.command_line import COMMANDS, as_called, parse, program
from jobs.segment_bucket import PROG, main
from m2f_core.inference.settings import InstanceSettings, PanopticSettings
from pipeline.config import Settings
from pipeline.drill.settings import DrillSettings
from pipeline.evaluate.settings import EvaluationSettings
from pipeline.export_model.settings import ExportModelSettings
from pipeline.nights.settings import NightsSettings
from pipeline.scenes.settings import ScenesSettings
from pipeline.setting_fields import Section, help_texts, marker
from pipeline.store_check.settings import StoreCheckSettings
from pipeline.train.settings import FinetuneSettings
from tests.pipeline.test_shown_text import HOSTILE
from tests.support.command_line_page import PAGE, page
from tests.support.places import ROOT

REQUIRED = ["--input", "in", "--output", "out", "--model", "model"]

# The surface that people write scripts against. A flag that goes breaks them; a flag that comes needs documentation.
FLAGS = (
    "--allow-scheme",
    "--allow-unsafe-store",
    "--anonymous",
    "--batch-size",
    "--classes",
    "--compact",
    "--cpus-per-actor",
    "--deadline",
    "--device",
    "--embeddings",
    "--exclude",
    "--exif",
    "--forecast",
    "--gate",
    "--gpu-actors",
    "--gpus-per-actor",
    "--helper-nodes",
    "--image-column",
    "--image-size",
    "--images-per-shard",
    "--include",
    "--input",
    "--input-format",
    "--keep-columns",
    "--keep-logits",
    "--key-column",
    "--label-ids-to-fuse",
    "--lease-seconds",
    "--limit",
    "--log-format",
    "--mask-threshold",
    "--max-batch-pixels",
    "--max-cost",
    "--max-failure-rate",
    "--max-failures",
    "--max-image-pixels",
    "--mode",
    "--model",
    "--model-nodes",
    "--otlp-endpoint",
    "--output",
    "--overlap-threshold",
    "--page",
    "--page-images",
    "--postprocess",
    "--precision",
    "--preprocess",
    "--prices",
    "--progress-seconds",
    "--publish-every",
    "--requester-pays",
    "--run-id",
    "--scaled-jpeg",
    "--score-threshold",
    "--shard-mib",
    "--step-timeout",
    "--task",
    "--tile",
    "--time-zone",
    "--tombstone-removed",
    "--top-k",
)


def settings(*args: str) -> Settings:
    return parse(Settings, [*REQUIRED, *args], prog=PROG)


def written(tmp_path: Path, text: str) -> str:
    """The path of a YAML file that holds `text`."""
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    return str(file)


def refusal(capsys, *args: str) -> str:
    """The message of a command line that must not parse."""
    with pytest.raises(SystemExit) as stop:
        settings(*args)
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{PROG}: error: ")
    return line


@pytest.fixture(scope="module")
def shown_help() -> str:
    """--help without frames and line breaks."""
    run = subprocess.run(
        [sys.executable, "jobs/segment_bucket.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stderr == ""
    return " ".join(re.sub("[╭╮╰╯│─]", " ", run.stdout).split())


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


# --- help ------------------------------------------------------------------------------------------------------------


def test_the_flags_are_those_that_people_know():
    assert tuple(sorted(flag_of(field.name) for field in fields(Settings))) == FLAGS, (
        "a flag came or went: write docs/command-line.md (python -m tests.support.command_line_page), "
        "then change FLAGS here"
    )


def test_help_loads_neither_torch_nor_ray():
    """The real script, with Python's own record of what it imported."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "jobs/segment_bucket.py", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in run.stderr.splitlines()}
    assert {"tyro", "pipeline", "jobs"} <= loaded
    assert not loaded & {"torch", "ray", "numpy", "pyarrow", "numba", "fsspec", "s3fs", "botocore", "yaml", "PIL"}


def test_wrong_arguments_are_refused_before_torch_and_ray_load():
    code = "import sys\nfrom jobs.segment_bucket import main\ntry:\n    main(['--nonsense'])\nexcept SystemExit: pass\n"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint(*sys.modules)"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not set(run.stdout.split()) & {"torch", "ray", "numpy", "pyarrow"}


@pytest.mark.parametrize("name", [field.name for field in fields(Settings)])
def test_every_setting_has_a_help_text_and_help_shows_it(name, shown_help):
    text = help_texts(Settings)[name]
    assert len(text) > 10 and text.endswith("."), f"write one sentence below Settings.{name}"
    # tyro breaks lines at hyphens, so spaces are not compared.
    assert flag_of(name) in shown_help
    assert text.replace(" ", "") in shown_help.replace(" ", "")


@pytest.mark.parametrize("flag", [*FLAGS, "--config"])
def test_every_flag_is_documented(flag):
    assert re.search(rf"(?<![\w-]){flag}(?![\w-])", PAGE.read_text()), f"{flag} is not in {PAGE.relative_to(ROOT)}"


def test_the_page_is_the_one_that_the_settings_make():
    assert PAGE.read_text() == page(), "write it again: python -m tests.support.command_line_page"


def test_help_has_sections_and_begins_with_what_everyone_needs(shown_help):
    sections = [
        "input and output options",
        "model and task options",
        "result options",
        "resource options",
        "run control options",
        "publishing options",
    ]
    places = [shown_help.index(title) for title in sections]
    assert places == sorted(places)
    flags = re.findall(r" (--[a-z-]+) [A-Z\[{]", shown_help[places[0] :])
    assert flags[:2] == ["--input", "--output"]
    assert marker(Settings.__dataclass_fields__["top_k"], Section).title in sections[2]
    assert places[2] < shown_help.index("--top-k INT") < places[3]


@pytest.mark.parametrize(
    "settings_class",
    [
        Settings,
        FinetuneSettings,
        EvaluationSettings,
        ExportModelSettings,
        ScenesSettings,
        DrillSettings,
        StoreCheckSettings,
        NightsSettings,
    ],
)
def test_every_setting_stands_in_a_section(settings_class):
    assert not [field.name for field in fields(settings_class) if marker(field, Section) is None]


def test_help_shows_bounds_and_defaults_and_no_none(shown_help):
    assert "(default: 128; 1 .. 1,024)" in shown_help  # --shard-mib
    assert "(above 0.0 and below 1.0)" in shown_help  # --mask-threshold
    assert "(default: on)" in shown_help  # --exif
    assert "None" not in shown_help and "--label-ids-to-fuse [INT ...]" in shown_help


def test_help_names_config_and_its_order(shown_help):
    assert "--config FILE reads settings from a YAML file with the same names; flags win." in shown_help


def test_default_numbers_in_help_are_the_real_ones():
    texts = help_texts(Settings)

    def defaults(settings_class, name):
        return [getattr(settings_class.defaults(mode), name) for mode in ("reference", "hf")]

    for task, settings_class in (("panoptic", PanopticSettings), ("instance", InstanceSettings)):
        [stated] = re.findall(rf"{task} (\d\.\d)/(\d\.\d)", texts["score_threshold"])
        assert [float(number) for number in stated] == defaults(settings_class, "score_threshold")
    for name in ("overlap_threshold", "mask_threshold"):
        [stated] = re.findall(r"Default: ([\d.]+)\.$", texts[name])
        assert [float(stated)] * 2 == defaults(PanopticSettings, name)
    [stated] = re.findall(r"reference (\d+), hf as many as queries", texts["top_k"])
    assert [int(stated), None] == defaults(InstanceSettings, "top_k")


def test_defaults_are_the_documented_ones():
    """Defaults decide what is written: changing one is a change of the interface."""
    assert settings() == Settings(
        input="in",
        output="out",
        model="model",
        task="panoptic",
        preprocess="reference",
        postprocess="reference",
        score_threshold=None,
        overlap_threshold=None,
        mask_threshold=None,
        label_ids_to_fuse=None,
        top_k=None,
        image_size=None,
        exif=True,
        max_image_pixels=None,
        tile=None,
        precision="fp32",
        images_per_shard=None,
        shard_mib=128,
        batch_size=None,
        max_batch_pixels=None,
        device="auto",
        gpu_actors=None,
        cpus_per_actor=None,
        gpus_per_actor=None,
        limit=None,
        run_id=None,
        max_failure_rate=0.01,
        progress_seconds=10.0,
        log_format="text",
    )


# --- text of others --------------------------------------------------------------------------------------------------

JOBS = (
    segment_bucket,
    plan_bucket,
    selfcheck,
    drill,
    evaluate,
    export_model,
    finetune,
    make_scenes,
    nights,
    roll_back,
    tidy,
    verify,
    publish,
)
LONG_SECRET = "SECRET" * 30  # as long as a session token: a frame would break the line within


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize(
    "word", ["--output={}", "--tables={}", "--outputt={}", "{}", "--images={}", "--no-such {}", "--model={}"]
)
def test_a_secret_in_a_uri_is_refused_by_every_job_and_not_repeated(job, word, tmp_path, capfd):
    args = word.format(f"s3://KEY:{LONG_SECRET}@bucket/x").split()
    config = written(tmp_path, f"output: s3://KEY:{LONG_SECRET}@bucket/x")
    for given in (args, ["--config", config]):
        with pytest.raises(SystemExit) as stop:
            job.main(given)
        [line] = capfd.readouterr().err.splitlines()
        assert stop.value.code == 2 and "SECRET" not in line
        assert "s3://***@bucket/x holds credentials or a query" in line or "unknown names output" in line


def test_a_file_of_settings_that_is_no_yaml_is_not_repeated_with_its_secret(tmp_path, capsys):
    assert "SECRET" not in refusal(capsys, "--config", written(tmp_path, "input: s3://K:SECRET@b\n  output: : x"))


@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
@pytest.mark.parametrize("args", [["--inputt", "x{}y"], ["x{}y"], ["--mode=x{}y"], ["--run-id", "x{}y"]])
def test_a_flag_reaches_the_terminal_as_text(args, hostile, capsys):
    with pytest.raises(SystemExit):
        settings(*(word.format(hostile) for word in args))
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and hostile not in said.removesuffix("\n")


# --- YAML and flags --------------------------------------------------------------------------------------------------

EVERYTHING = """
input: s3://bucket/photos      # names as in --help, with _ or -
output: s3://bucket/tables
model: s3://bucket/model
postprocess: hf
score-threshold: 0.25
overlap_threshold: 1
label_ids_to_fuse: [5, 7]
image_size: 384x384
exif: false
limit: null
run_id: nightly.2026-11-23
gpu_actors: "1:8"
max_failure_rate: 1e-3
"""


def test_a_file_may_hold_everything(tmp_path):
    parsed = parse(Settings, ["--config", written(tmp_path, EVERYTHING)], prog=PROG)
    assert parsed == Settings(
        input="s3://bucket/photos",
        output="s3://bucket/tables",
        model="s3://bucket/model",
        postprocess="hf",
        score_threshold=0.25,
        overlap_threshold=1.0,
        label_ids_to_fuse=(5, 7),
        image_size="384x384",
        exif=False,
        limit=None,
        run_id="nightly.2026-11-23",
        gpu_actors="1:8",
        max_failure_rate=0.001,
    )


@pytest.mark.parametrize("form", ["--config FILE", "--config=FILE"])
@pytest.mark.parametrize("place", ["before", "after"])
def test_flags_win_wherever_the_file_is_named(tmp_path, form, place):
    file = written(tmp_path, "batch_size: 4\nscore_threshold: 0.25\nexif: false\nlabel_ids_to_fuse: [5, 6]\nlimit: 9")
    from_file = form.replace("FILE", file).split(" ")
    flags = ["--batch-size", "2", "--exif", "--label-ids-to-fuse", "7", "--limit", "None"]
    parsed = settings(*from_file, *flags) if place == "before" else settings(*flags, *from_file)
    assert (parsed.batch_size, parsed.exif, parsed.label_ids_to_fuse, parsed.limit) == (2, True, (7,), None)
    assert parsed.score_threshold == 0.25


@pytest.mark.parametrize(
    ("args", "yaml", "name", "value"),
    [
        (["--no-exif"], "exif: false", "exif", False),
        (["--exif"], "exif: true", "exif", True),
        (["--label-ids-to-fuse", "5", "7"], "label_ids_to_fuse: [5, 7]", "label_ids_to_fuse", (5, 7)),
        (["--label-ids-to-fuse"], "label_ids_to_fuse: []", "label_ids_to_fuse", ()),
        (["--label-ids-to-fuse", "None"], "label_ids_to_fuse: null", "label_ids_to_fuse", None),
        (["--score-threshold", "None"], "score_threshold:", "score_threshold", None),
        (["--task", "instance", "--top-k", "9"], "task: instance\ntop_k: 9", "top_k", 9),
        (["--image-size=800:1333"], "image_size: 800:1333", "image_size", "800:1333"),
        (["--run-id", "7"], "run_id: 7", "run_id", "7"),
        (["--max_image_pixels", "9"], "max-image-pixels: 9", "max_image_pixels", 9),
        (["--tile", "2048:256"], "tile: 2048:256", "tile", "2048:256"),
    ],
)
def test_a_flag_and_a_line_of_yaml_mean_the_same(tmp_path, args, yaml, name, value):
    assert getattr(settings(*args), name) == value
    assert getattr(settings("--config", written(tmp_path, yaml)), name) == value


def test_an_empty_file_changes_nothing(tmp_path):
    assert settings("--config", written(tmp_path, "# all commented out\n")) == settings()


def test_a_flag_of_another_task_is_refused_wherever_it_comes_from(tmp_path, capsys):
    for name in ("score_threshold", "overlap_threshold", "mask_threshold"):
        line = refusal(capsys, "--task", "semantic", "--config", written(tmp_path, f"{name}: 0.5"))
        assert f"{flag_of(name)} belongs to --task panoptic" in line and line.endswith("not semantic")


def test_no_fusing_and_the_default_are_different_settings():
    none_fused, default = settings("--label-ids-to-fuse"), settings()
    assert none_fused.results_dict() != default.results_dict()
    assert none_fused.to_dict()["label_ids_to_fuse"] == [] and default.to_dict()["label_ids_to_fuse"] is None


def test_a_pair_in_a_file_is_no_number_in_base_60(tmp_path, capsys):
    """YAML 1.1 reads 1:8 without quotes as 68."""
    assert settings("--config", written(tmp_path, "gpu_actors: 1:8")).gpu_actors == "1:8"
    assert "96:50" in refusal(capsys, "--config", written(tmp_path, "image_size: 96:50"))


@pytest.mark.parametrize("yaml", ["run_id: --no-exif", 'image_size: "--no-exif"'])
def test_a_value_in_a_file_is_never_taken_for_a_flag(tmp_path, capsys, yaml):
    refusal(capsys, "--config", written(tmp_path, yaml))


@pytest.mark.parametrize(
    ("yaml", "named"),
    [
        ("nonsense: 3", ["nonsense", "batch_size"]),  # and what is known
        ("config: other.yaml", ["config"]),
        ("1: 2", ["1"]),
        ("- input", ["list"]),
        ("just text", ["str"]),
        ("input: [", ["line 1"]),
        ("batch_size: four", ["--batch-size", "four"]),
        ("batch_size: 4.5", ["--batch-size", "4.5"]),
        ("batch_size: true", ["--batch-size"]),
        ("batch_size: {a: 1}", ["--batch-size"]),
        ("label_ids_to_fuse: '5 6'", ["--label-ids-to-fuse", "5 6"]),
        ("device: tpu", ["--device", "tpu", "cuda"]),
        ("exif: 'yes'", ["exif", "yes"]),
        ("score_threshold: 2", ["--score-threshold", "2"]),
        ("limit: 1\nlimit: 2", ["limit is there twice"]),
        ("a: &a [x, x]\nb: &b [*a, *a]\ninput: [*b, *b]", ["write out the value of *a"]),  # grows to gigabytes
        ("input: !!python/object/apply:os.system ['true']", ["python/object"]),
        ("input: !!binary aGVsbG8=", ["--input", "one value"]),
        ("limit: !!int " + "9" * 5000, ["4300 digits"]),
        ("input: [[a]]", ["--input", "one value"]),
        ("? [a]\n: b", ["unhashable"]),
        ("input: " + "[" * 20_000, ["values within values"]),
        ("input: " + "{a: " * 10_000, ["values within values"]),
        ("input: " + "x" * 70_000, ["65,536 bytes"]),
    ],
)
def test_what_a_file_may_not_hold_is_named(tmp_path, capsys, yaml, named):
    line = refusal(capsys, "--config", written(tmp_path, yaml))
    assert all(word in line for word in named), line


@pytest.mark.parametrize("args", [["--config"], ["--config="], ["--config", "/no/such/file.yaml"], ["--config", "/"]])
def test_a_file_that_cannot_be_read_is_refused(capsys, args):
    line = refusal(capsys, *args)
    assert "--config" in line and "".join(args).removeprefix("--config").strip("=") in line


def test_a_file_of_bytes_is_refused(tmp_path, capsys):
    (tmp_path / "settings.yaml").write_bytes(b"\xff\xfe\x00\x01")
    assert "settings.yaml" in refusal(capsys, "--config", str(tmp_path / "settings.yaml"))


# --- flags that do not parse -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--nonsense", "1"], ["--nonsense"]),
        (["--batchsize", "3"], ["--batchsize", "--batch-size"]),  # and what was meant
        (["photos/"], ["photos/"]),
        (["--batch-size"], ["--batch-size"]),
        (["--batch-size", "x"], ["--batch-size: 'x' is not a whole number"]),
        (["--shard-mib", "1.5"], ["--shard-mib: '1.5' is not a whole number"]),
        (["--score-threshold", "half"], ["--score-threshold: 'half' is not a number"]),
        (["--label-ids-to-fuse", "5", "x"], ["--label-ids-to-fuse: 'x' is not a whole number"]),
        (["--device", "tpu"], ["--device", "tpu", "auto"]),
        (["--task", "depth"], ["--task", "depth", "panoptic"]),
        (["--exif", "false"], ["false"]),
        (["--score-threshold", "nan"], ["--score-threshold", "nan"]),
        (["--progress-seconds", "inf"], ["--progress-seconds", "inf"]),
        (["--label-ids-to-fuse", "-1"], ["--label-ids-to-fuse", "-1"]),
        (["--input", " "], ["--input", "empty"]),
    ],
)
def test_a_wrong_flag_is_named(capsys, args, named):
    line = refusal(capsys, *args)
    assert all(word in line for word in named), line


def test_missing_flags_are_named_together(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--limit", "3"])
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "--output" in line and "--input" in line


def test_messages_hold_no_remains_of_a_frame(capsys):
    """tyro draws boxes and rules; a job's log wants a sentence."""
    for args in (["--nonsense"], ["--batch-size", "x"], ["--batch-size"], ["--device", "tpu"]):
        assert not re.search(r"---|[╭╮╰╯│─]", refusal(capsys, *args))


def test_two_config_files_are_refused_rather_than_one_ignored(tmp_path, capsys):
    assert "given twice" in refusal(capsys, "--config", written(tmp_path, "limit: 1"), "--config", "other.yaml")


def test_every_job_has_a_command_of_pip_and_every_command_is_a_job():
    jobs = {file.name for file in (ROOT / "jobs").glob("*.py") if "__main__" in file.read_text()}
    assert set(COMMANDS) == jobs
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert {command: f"jobs.{file.removesuffix('.py')}" for file, command in COMMANDS.items()} == {
        command: target.split(":")[0] for command, target in scripts.items()
    }
    for target in scripts.values():
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize(
    ("started_as", "called"),
    [("/usr/bin/m2f-plan", "m2f-segment"), ("jobs/plan_bucket.py", "segment_bucket.py"), ("", "segment_bucket.py")],
)
def test_a_job_calls_itself_and_others_as_it_was_called(monkeypatch, started_as, called):
    monkeypatch.setattr(sys, "argv", [started_as])
    assert program("segment_bucket.py") == called
    assert program("another.py") == "another.py"
    told = as_called("as jobs/segment_bucket.py does, see pipeline/config.py")
    assert told == f"as {called if called in COMMANDS.values() else f'jobs/{called}'} does, see pipeline/config.py"


@pytest.mark.parametrize("file", COMMANDS)
def test_every_job_prints_the_version_of_the_program(file, capsys):
    module = importlib.import_module(f"jobs.{file.removesuffix('.py')}")
    with pytest.raises(SystemExit) as stop:
        module.main(["--output", "out", "--version"])
    assert stop.value.code == 0
    assert capsys.readouterr() == (f"{file} {m2f_core.__version__}\n", "")


def test_the_version_is_written_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "m2f_core.__version__"}
    sources = [path for package in ("m2f_core", "pipeline", "jobs") for path in (ROOT / package).rglob("*.py")]
    assert [path.name for path in sources if f'"{m2f_core.__version__}"' in path.read_text()] == ["__init__.py"]
