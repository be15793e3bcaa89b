"""Joining or starting Ray: what the job has set before stays as it is."""

import itertools
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cluster import resources
from pipeline.cluster.autoscaler_groups import Startable
from pipeline.cluster.resources import NodeGroup, Resources


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
    monkeypatch.setattr(resources, "startable_groups", Startable)
    assert resources.connect() == Resources((), joined)
    assert signal.getsignal(signal.SIGTERM) is handler


SHAPES = st.builds(
    lambda cpus, gpus, startable, heads: NodeGroup(float(cpus), float(gpus), startable + heads, heads, heads),
    st.integers(0, 8),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 1),
)
CLUSTERS = st.builds(
    lambda groups, most: Resources(tuple(groups), most_nodes=most),
    st.lists(SHAPES, min_size=1, max_size=3),
    st.integers(0, 6),
)


def choices(cluster):
    """Every way in which the autoscaler can start as many nodes as its limits allow: counts by group."""
    ranges = [range(group.heads, group.count + 1) for group in cluster.groups]
    heads = sum(group.heads for group in cluster.groups)
    return [counts for counts in itertools.product(*ranges) if sum(counts) - heads <= cluster.most_nodes]


@given(CLUSTERS, st.integers(0, 10))
def test_a_limit_of_all_groups_is_kept_and_used_for_gpus_first(cluster, wanted):
    found = cluster.for_gpus(wanted)
    counts = tuple(group.count for group in found.groups)
    assert counts in choices(cluster) and found.most_nodes is None
    most_gpus = max(sum(n * int(g.gpus) for n, g in zip(c, cluster.groups, strict=True)) for c in choices(cluster))
    assert found.gpus >= min(wanted, most_gpus), "no other choice has more of the GPUs that are wanted"
    # A node more would break a limit.
    heads = sum(group.heads for group in cluster.groups)
    assert sum(counts) - heads == cluster.most_nodes or counts == tuple(group.count for group in cluster.groups)


@given(CLUSTERS)
def test_without_gpus_the_limit_is_used_for_cpus(cluster):
    most = max(sum(n * g.cpus for n, g in zip(c, cluster.groups, strict=True)) for c in choices(cluster))
    assert cluster.for_gpus(0).cpus == most
