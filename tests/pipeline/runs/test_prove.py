"""A store that does not keep a second driver away is refused; with --allow-unsafe-store it gets another lease."""

import os
import uuid
from dataclasses import replace

import fsspec
import pytest

from pipeline.commit.claims import ClaimLease
from pipeline.commit.lease import Lease
from pipeline.drill.fault_proxy import FaultProxy, Rule
from pipeline.errors import RunError
from pipeline.layout import Output
from pipeline.runs.prove import lease_on, proven


def test_a_disk_that_does_everything_gets_the_lease_that_needs_it(tmp_path, caplog):
    for allow in (False, True):
        output = proven(Output.open(str(tmp_path / "out")), allow)
        assert output.has_conditions and isinstance(lease_on(output, 60), Lease)
    assert caplog.text == ""


def test_a_store_that_ignores_conditions_is_refused_or_gets_the_lease_of_claims(s3, fresh_s3, monkeypatch, caplog):
    uri = f"{s3.bucket(f'prove-{uuid.uuid4().hex[:8]}')}/out"
    with FaultProxy(s3.url, [Rule("^PUT ", "ignore_conditions")], sign=True) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        said = f"--output {uri}: the store at {store.url} accepts a second .*, or --allow-unsafe-store"
        with pytest.raises(RunError, match=said):
            proven(Output.open(uri), False)
        output = proven(Output.open(uri), True)
        assert not output.has_conditions and isinstance(lease_on(output, 60), ClaimLease)
        assert not output.run("night-1").has_conditions
    assert "Because of --allow-unsafe-store" in caplog.text


@pytest.mark.parametrize("allow", [False, True])
def test_a_store_that_refuses_conditions_is_refused_with_the_flag_too(s3, fresh_s3, monkeypatch, allow):
    uri = f"{s3.bucket(f'prove-{uuid.uuid4().hex[:8]}')}/out"
    with FaultProxy(s3.url, [Rule("^PUT ", "refuse_conditions")], sign=True) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        with pytest.raises(RunError, match=r"has no conditional creates .* so use another store") as error:
            proven(Output.open(uri), allow)
    assert "--allow-unsafe-store" not in str(error.value)


def test_a_refused_disk_is_left_without_a_folder_of_runs(tmp_path, monkeypatch):
    def link(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(RunError, match=r"the file system at /.* has no conditional creates"):
        proven(Output.open(str(tmp_path)), True)
    assert list(tmp_path.iterdir()) == []


def test_a_protocol_without_conditional_writes_may_be_used_with_the_flag(monkeypatch):
    monkeypatch.setattr("pipeline.commit.claims.PERIOD_SECONDS", 0.5)
    memory = replace(Output.open("memory://out"), filesystem=fsspec.filesystem("memory"))
    with pytest.raises(RunError, match="that this program knows"):
        proven(memory, False)
    with lease_on(proven(memory, True), 60) as lease:
        lease.check()
