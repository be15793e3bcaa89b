"""Prometheus' own programs, where the machine has them (`make monitoring-tools`), and what queries are made of."""

import contextlib
import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.places import ROOT
from tests.support.s3_server import free_ports
from tests.support.waiting import PATIENCE_SECONDS, wait_until

MONITORING = ROOT / "infra" / "monitoring"


def program(name: str) -> str:
    """The path of prometheus or promtool. Skips the test on a machine without."""
    found = shutil.which(name) or shutil.which(name, path=str(ROOT / ".tools" / "usr" / "bin"))
    if found is None:
        pytest.skip(f"needs {name}: make monitoring-tools")
    return found


def rules() -> list[dict[str, Any]]:
    """All rules of infra/monitoring/rules.yaml."""
    groups = yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """The panels of infra/monitoring/dashboard.json that show queries."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries() -> list[str]:
    """The queries of the dashboard, with Grafana's variables filled in."""
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [expr.replace("$__rate_interval", "1m").replace("$run_id", ".*") for expr in found]


def metrics_of(expression: str) -> set[str]:
    """The metrics of the program that a PromQL expression reads, as Prometheus names them."""
    return set(re.findall(r"\bray_m2f_\w+", expression))


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str):
        self.url = url

    def get(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of the API."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=PATIENCE_SECONDS) as answer:
            return json.load(answer)["data"]

    def has(self, expression: str) -> bool:
        """Whether an instant query finds a series."""
        return bool(self.get("query", query=expression)["result"])


@contextlib.contextmanager
def prometheus(folder: Path, discovery: Path) -> Iterator[Prometheus]:
    """A Prometheus with the rules of infra/monitoring that scrapes what Ray's discovery file names, once a second."""
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(MONITORING / "rules.yaml")],
        "scrape_configs": [{"job_name": "ray", "file_sd_configs": [{"files": [str(discovery)]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    [port] = free_ports(1)
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    running = Prometheus(f"http://127.0.0.1:{port}")

    def is_ready() -> bool:
        assert process.poll() is None, (folder / "prometheus.log").read_text()[-3000:]
        with contextlib.suppress(OSError):
            return bool(running.get("status/runtimeinfo"))
        return False

    try:
        wait_until(is_ready, "for Prometheus")
        yield running
    finally:
        process.kill()
        process.wait()
