"""What Prometheus would read from this process's Ray."""

import time
import urllib.request
from collections import Counter

import ray
from prometheus_client.parser import text_string_to_metric_families

from pipeline.telemetry.metrics import ALL
from tests.support.waiting import PATIENCE_SECONDS

Values = dict[str, Counter[str]]


def wait_for_values(run_id: str, *names: str) -> Values:
    """The values of a run's metrics, added up over processes, once the page has metrics of all these names.

    By name without Ray's prefix, then by the values of the metric's own labels, joined by commas.
    """
    end = time.monotonic() + PATIENCE_SECONDS
    while missing := set(names) - (values := _values(_page(), run_id)).keys():
        assert time.monotonic() < end, f"the metrics page never had {sorted(missing)}"
        time.sleep(0.5)
    return values


def _page() -> str:
    [node] = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as answer:
        text: str = answer.read().decode()
    return text


def _values(page: str, run_id: str) -> Values:
    labels = {metric.exported_name: metric.labels for metric in ALL}
    ours = "\n".join(line for line in page.splitlines() if "ray_m2f_" in line)
    values: Values = {}
    for family in text_string_to_metric_families(ours):
        for sample in family.samples:
            own = labels.get(sample.name, labels.get(family.name))
            if own is not None and sample.labels["run_id"] == run_id and not sample.name.endswith("_bucket"):
                key = ",".join(sample.labels[label] for label in own)
                values.setdefault(sample.name.removeprefix("ray_"), Counter())[key] += sample.value
    return values
