"""Other stores than the one of the other tests: the verdict on each, and two drivers at once on each that passes.

The servers come from the package indexes; a test skips where its server cannot be had, and says why.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.dataset
import pytest
import s3fs
from PIL import Image

from jobs.check_store import main
from pipeline.drill.fault_proxy import FaultProxy, Rule
from tests.jobs.test_segment_bucket import SMALL, places
from tests.support.last_line import last_line
from tests.support.other_s3_servers import SERVERS, CannotBeHadError, running
from tests.support.s3_server import S3Server

BUCKET = "m2f-stores"
NUM_IMAGES = 6
SEAWEEDFS = "SeaweedFS"
# What check_store.py finds: its exit code, and words of the row of the proofs.
VERDICTS = {
    SEAWEEDFS: (0, "hold"),
    "moto": (0, "hold"),
    "JuiceFS gateway": (1, "accepts a second conditional create"),
    "LocalBucket": (1, "accepts a conditional replace of an object that has changed"),
    "s3rver": (2, "accepts a second conditional create"),
}
FIT = [name for name, (code, _) in VERDICTS.items() if code == 0]


@pytest.fixture
def server(request, tmp_path, fresh_s3, monkeypatch) -> Iterator[S3Server]:
    """The server that the test's parameter names, with photographs; the environment points to it."""
    if request.param == SEAWEEDFS:
        running_server = request.getfixturevalue("s3")
        yield prepared(running_server, monkeypatch)
        return
    try:
        with running(SERVERS[request.param], tmp_path / "server") as other:
            yield prepared(other, monkeypatch)
    except CannotBeHadError as error:
        pytest.skip(str(error))


def prepared(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    if BUCKET not in [bucket["Name"] for bucket in server.client.list_buckets()["Buckets"]]:
        server.bucket(BUCKET)
    for number in range(NUM_IMAGES):
        data = io.BytesIO()
        Image.new("RGB", (64, 48), (40 * number, 90, 200)).save(data, "PNG")
        server.client.put_object(Bucket=BUCKET, Key=f"photographs/{number}.png", Body=data.getvalue())
    return server


def flags(output: str, checkpoint: Path) -> list[object]:
    where = places(f"s3://{BUCKET}/photographs", f"s3://{BUCKET}/{output}", checkpoint)
    return [*where, *SMALL, "--images-per-shard", 1, "--device", "cpu"]


def exists(server: S3Server, prefix: str) -> Callable[[], bool]:
    return lambda: bool(server.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents"))


def image_keys(output: str) -> list[str]:
    """The keys of the parts of the table `images`, sorted."""
    s3fs.S3FileSystem.clear_instance_cache()
    parts = s3fs.S3FileSystem().glob(f"{BUCKET}/{output}/images/run=*/*.parquet")
    table = pyarrow.dataset.dataset(parts, filesystem=s3fs.S3FileSystem(), format="parquet").to_table(["image_key"])
    return sorted(table.column("image_key").to_pylist())


@pytest.mark.thorough
@pytest.mark.parametrize("server", VERDICTS, indirect=True)
def test_the_verdict_on_each_store(request, server, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    code, words = VERDICTS[request.node.callspec.params["server"]]
    assert main(["--output", f"s3://{BUCKET}/checked", "--rounds", "2"]) == code
    [proofs] = [line for line in capsys.readouterr().out.splitlines() if "the proofs at the start" in line]
    assert words in proofs
    left = server.client.list_objects_v2(Bucket=BUCKET, Prefix="checked/").get("Contents", [])
    assert [entry["Key"] for entry in left if not entry["Key"].endswith("/")] == []


@pytest.mark.thorough
@pytest.mark.parametrize("server", FIT, indirect=True)
def test_of_two_drivers_on_a_fit_store_one_is_refused_and_takes_over_when_the_first_is_dead(
    drivers, server, tiny_checkpoint, tmp_path
):
    output = f"tables-{tmp_path.name}"
    environment = server.environment
    first = drivers.start(*flags(output, tiny_checkpoint), **environment)
    first.wait_until(exists(server, f"{output}/_runs/lease.json"))
    second = drivers.start(*flags(output, tiny_checkpoint), **environment)
    log = second.finish()
    assert second.returncode == 2 and f"--output is in use by process {first.pid}" in last_line(log)
    first.wait_until(exists(server, f"{output}/images/"))
    first.kill()
    first.wait()
    third = drivers.start(*flags(output, tiny_checkpoint), **environment)
    log = third.finish()
    assert third.returncode == 0 and "which no longer exists" in log, log
    assert len(image_keys(output)) == len(set(image_keys(output))) == NUM_IMAGES


@pytest.mark.thorough
@pytest.mark.parametrize("server", [SEAWEEDFS], indirect=True)
def test_of_two_drivers_on_a_store_that_ignores_conditions_one_proceeds(
    drivers, server, tiny_checkpoint, tmp_path, monkeypatch
):
    output = f"unsafe-{tmp_path.name}"
    with FaultProxy(server.url, [Rule("^(PUT|POST) ", "ignore_conditions")], sign=True) as store:
        environment = {**server.environment, "AWS_ENDPOINT_URL": store.url}
        refused = drivers.start(*flags(output, tiny_checkpoint), **environment)
        assert "another store, or --allow-unsafe-store" in last_line(refused.finish()) and refused.returncode == 2
        unsafe = [*flags(output, tiny_checkpoint), "--allow-unsafe-store", "--lease-seconds", 40]
        both = [drivers.start(*unsafe, **environment) for _ in range(2)]
        logs = [driver.finish() for driver in both]
        assert sorted(driver.returncode for driver in both) == [0, 2], "\n".join(logs)
        [loser, winner] = sorted(zip(both, logs, strict=True), key=lambda one: -one[0].returncode)
        assert f"--output is in use by process {winner[0].pid}" in loser[1]
        assert all("Because of --allow-unsafe-store" in log for log in logs)
        again = drivers.start(*unsafe, **environment)
        assert "nothing to do" in again.finish() and again.returncode == 0
        names = [
            key["Key"] for key in server.client.list_objects_v2(Bucket=BUCKET, Prefix=f"{output}/_runs/")["Contents"]
        ]
        assert not [name for name in names if "claim-" in name or "holder-" in name or "proof-" in name]
    assert len(image_keys(output)) == len(set(image_keys(output))) == NUM_IMAGES
