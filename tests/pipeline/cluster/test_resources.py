"""Joining or starting Ray: what the job has set before stays as it is."""

import signal

import pytest

from pipeline.cluster import resources
from pipeline.cluster.resources import Resources


def handler(number, frame):
    """A job's handler."""


@pytest.fixture(autouse=True)
def handlers_as_before():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def ray_sets_its_own(**options):
    signal.signal(signal.SIGTERM, lambda number, frame: None)


@pytest.mark.parametrize("joined", [True, False])
def test_the_sigterm_handler_of_a_job_outlives_the_start_of_ray(joined, monkeypatch):
    signal.signal(signal.SIGTERM, handler)
    monkeypatch.setattr(resources.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(resources.ray, "init", ray_sets_its_own)
    monkeypatch.setattr(resources, "joins_a_cluster", lambda: joined)
    monkeypatch.setattr(resources.ray, "nodes", list)
    monkeypatch.setattr(resources, "startable_groups", list)
    assert resources.connect() == Resources((), joined)
    assert signal.getsignal(signal.SIGTERM) is handler
