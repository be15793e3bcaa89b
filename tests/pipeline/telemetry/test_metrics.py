"""The registry of metrics: Prometheus' conventions, the page that lists them, and what a value costs without Ray.

That a run exports them, with figures that fit its report, is tested in tests/jobs/test_segment_bucket.py.
"""

import re
import subprocess
import sys

import pytest

from pipeline.telemetry.instruments import Counter, Histogram
from pipeline.telemetry.metrics import ALL, IMAGES, RUN_IMAGES, SHARD_SECONDS
from tests.support.metrics_table import PAGE, page_with_table
from tests.support.places import ROOT


def test_the_page_has_the_registrys_table():
    assert PAGE.read_text() == page_with_table(), "run python -m tests.support.metrics_table"


def test_names_follow_prometheus_conventions():
    assert len(ALL) == len({metric.name for metric in ALL}) > 20
    for metric in ALL:
        assert re.fullmatch(r"m2f(_[a-z]+)+", metric.name)
        assert metric.name.endswith("_total") == isinstance(metric, Counter), metric.name
        assert metric.text.endswith("."), metric.name
        for unit in ("milli", "_ms", "mib", "minutes", "hours", "percent"):
            assert unit not in metric.name, f"{metric.name} is not in a base unit"
        if isinstance(metric, Histogram):
            assert sorted(set(metric.buckets)) == list(metric.buckets) and metric.buckets[0] > 0, metric.name


def test_no_label_names_one_of_millions():
    labels = {label for metric in ALL for label in metric.labels}
    assert labels == {
        *("status", "error_code", "stage", "state", "step", "table", "device", "cause"),
        *("output", "outcome"),
    }


@pytest.mark.parametrize(
    "record",
    [
        lambda: IMAGES.add(1, status="ok"),
        lambda: IMAGES.add(1, status="ok", error_code="", image_key="x"),
        lambda: RUN_IMAGES.set(1, stage="reading"),
        lambda: SHARD_SECONDS.observe(1),
    ],
)
def test_other_labels_than_those_of_the_registry_are_an_error_with_and_without_ray(record):
    with pytest.raises(TypeError, match="has the labels"):
        record()


def test_without_ray_values_are_dropped_and_ray_is_not_loaded():
    """A child process of a model actor, and everyone who uses the parts as a library."""
    code = (
        "import sys; from pipeline.telemetry.metrics import *\n"
        "IMAGES.add(1, status='ok', error_code=''); RUN_IMAGES.set(1); SHARD_SECONDS.observe(1, stage='reading')\n"
        "assert 'ray' not in sys.modules\n"
        "import ray\n"
        "IMAGES.add(1, status='ok', error_code=''); RUN_IMAGES.set(1); SHARD_SECONDS.observe(1, stage='reading')\n"
        "print('dropped')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("dropped\n", "")
