"""Two nights at once, with the command and settings of the manifests: RayCronJob cannot forbid it, the lease does."""

import json
import shlex

import pytest

from tests.support.manifests import find, overlay
from tests.support.tables import read_report, read_table

pytestmark = pytest.mark.thorough


def test_of_two_nights_the_second_is_refused_and_a_retry_has_nothing_to_do(drivers, photographs, tmp_path):
    objects = overlay("local")
    [program, flag, mounted] = shlex.split(find(objects, "RayCronJob")["spec"]["jobTemplate"]["entrypoint"])
    assert (program, flag, mounted) == ("m2f-segment", "--config", "/etc/m2f/night.yaml")
    settings = find(objects, "ConfigMap", "m2f-night-settings")["data"]["night.yaml"]
    settings = settings.replace("s3://my-bucket/photographs", str(photographs))
    settings = settings.replace("s3://my-bucket/segments", str(tmp_path / "out"))
    (tmp_path / "night.yaml").write_text(settings)

    night = [flag, tmp_path / "night.yaml"]
    first = drivers.start(*night)
    first.wait_until(lambda: (tmp_path / "out" / "_runs" / "lease.json").exists())
    second = drivers.start(*night)
    refusal = second.finish()
    assert second.returncode == 2
    assert f"--output is in use by process {first.pid}" in json.loads(refusal.splitlines()[-1])["message"]
    log = first.finish()
    assert first.returncode == 0, log
    retry = drivers.start(*night)
    assert "nothing to do" in retry.finish() and retry.returncode == 0
    images = read_table(tmp_path / "out", "images")
    assert len(images) == len(list(photographs.iterdir())) == read_report(tmp_path / "out")["num_images"]
    assert len({row["run_id"] for row in images}) == 1
