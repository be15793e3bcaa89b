"""infra/monitoring: Prometheus accepts the rules, alerts fire and keep quiet as tested, the dashboard is sound.

That a run exports each metric that they read is tested with a real Prometheus in tests/jobs/test_ray_job_submit.py.
"""

import json
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from pipeline.telemetry.instruments import Histogram
from pipeline.telemetry.metrics import ALL
from tests.support.places import ROOT
from tests.support.prometheus import MONITORING, metrics_of, panels, program, queries, rules

LINT = ROOT.parent / "shared" / "tools" / "dash_lint.py"
RAYS_LABELS = {"run_id", "NodeAddress", "le"}
ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RECORDED = {rule["record"] for rule in rules() if "record" in rule}
EXPRESSIONS = [*queries(), *(rule["expr"] for rule in rules())]


def promtool(*args: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([program("promtool"), *map(str, args)], capture_output=True, text=True, check=False)


def test_the_rules_are_valid_and_their_tests_pass():
    checked = promtool("check", "rules", MONITORING / "rules.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tested = promtool("test", "rules", MONITORING / "rules_test.yaml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("expression", "exp_alerts_that_fail"),
    [("vector(1) > 2", lambda alerts: alerts), ("vector(1)", lambda alerts: not alerts)],
    ids=["never", "always"],
)
def test_the_tests_of_an_alert_fail_if_it_never_or_always_fires(tmp_path, expression, exp_alerts_that_fail):
    changed = yaml.safe_load((MONITORING / "rules.yaml").read_text())
    for group in changed["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                rule["expr"], rule["for"] = expression, "0s"
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(changed))
    shutil.copy(MONITORING / "rules_test.yaml", tmp_path)
    tested = promtool("test", "rules", tmp_path / "rules_test.yaml")
    assert tested.returncode == 1
    for alert, cases in alert_tests().items():
        hit = [case for case in cases if exp_alerts_that_fail(case["exp_alerts"])]
        assert hit, f"{alert} has no such test"
        assert len(re.findall(rf"alertname: ?{alert}\b", tested.stderr + tested.stdout)) >= len(hit), alert


def alert_tests() -> dict[str, list[dict]]:
    """The tests of each alert in rules_test.yaml."""
    tests = yaml.safe_load((MONITORING / "rules_test.yaml").read_text())["tests"]
    found: dict[str, list[dict]] = {alert: [] for alert in ALERTS}
    for case in (case for test in tests for case in test["alert_rule_test"]):
        found[case["alertname"]].append(case)
    return found


def test_each_alert_has_its_line_in_the_docs():
    page = (ROOT / "docs" / "monitoring.md").read_text()
    rows = re.findall(r"^### (M2f\w+)$", page, flags=re.MULTILINE)
    assert rows == list(ALERTS)
    for alert, rule in ALERTS.items():
        assert rule["annotations"]["runbook"] == f"docs/monitoring.md#{alert.lower()}"
        assert rule["labels"]["severity"] in ("warning", "critical")


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=range(len(EXPRESSIONS)))
def test_every_metric_and_label_of_an_expression_is_in_the_registry(expression):
    labels_of = {}
    for metric in ALL:
        suffixes = ("_bucket", "_count") if isinstance(metric, Histogram) else ("",)  # not _sum: it is inexact
        labels_of.update({metric.exported_name + suffix: {*metric.labels, *RAYS_LABELS} for suffix in suffixes})
    assert metrics_of(expression) <= labels_of.keys()
    for name, matchers in re.findall(r"(\bray_m2f_\w+)\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= labels_of[name], name
    recorded = set(re.findall(r"\b(?:run|run_device):\w+:\w+|\bm2f_\w+", expression))
    assert recorded <= RECORDED


def test_every_metric_of_the_registry_is_shown_or_watched():
    used = {re.sub("_(bucket|count)$", "", name) for expression in EXPRESSIONS for name in metrics_of(expression)}
    assert {metric.exported_name for metric in ALL} - used == set()


def test_the_dashboard_is_well_formed_and_prometheus_parses_every_query(tmp_path):
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    assert dashboard["uid"] == "m2f-pipeline"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)) > 20
    for panel in panels():
        grid = panel["gridPos"]
        assert (
            grid["x"] + grid["w"] <= 24 and len(panel["description"]) > 10 and panel["fieldConfig"]["defaults"]["unit"]
        )
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
    assert parses(queries(), tmp_path)
    assert not parses(["sum(rate(ray_m2f_images_total[5m])"], tmp_path)


def parses(expressions, folder) -> bool:
    content = {"groups": [{"name": "g", "rules": [{"record": f"q{i}", "expr": e} for i, e in enumerate(expressions)]}]}
    (folder / "queries.yaml").write_text(yaml.safe_dump(content))
    return promtool("check", "rules", folder / "queries.yaml").returncode == 0


@pytest.mark.skipif(not LINT.is_file(), reason="needs shared/tools/dash_lint.py beside the checkout")
def test_the_dashboard_passes_the_linter_and_a_broken_one_does_not(tmp_path):
    text = (MONITORING / "dashboard.json").read_text()
    assert lint(text, tmp_path).startswith("OK")
    assert lint(text.replace("$run_id", "$rum_id"), tmp_path).startswith("FAIL")


def lint(text: str, folder) -> str:
    (folder / "dashboard.json").write_text(text)
    return subprocess.run(
        [sys.executable, LINT, folder / "dashboard.json"],
        env={"PROMTOOL": program("promtool"), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
