"""Who gets how many CPUs: never all of them, because Ray Data would hang without a word."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cluster import FETCH_CPUS, READ_PLAN_CPUS, WRITE_CPUS, Resources, allot
from pipeline.config import Settings
from pipeline.errors import RunError


def settings(**changes):
    return Settings(input="in", output="out", model="model", **changes)


@given(st.integers(1, 512), st.integers(0, 64))
def test_defaults_fit_into_every_cluster(cpus, gpus):
    resources = Resources(float(cpus), float(gpus))
    try:
        allotment = allot(settings(), resources)
    except RunError:
        assert gpus and cpus < 1 * gpus + 1  # a GPU machine without a CPU for each GPU's actor and helpers
        return
    needed = (
        allotment.model_actors[1] * allotment.model_cpus
        + allotment.fetch_actors[1] * FETCH_CPUS
        + allotment.write_actors[1] * WRITE_CPUS
        + READ_PLAN_CPUS
    )
    assert needed <= cpus + 1e-6
    assert allotment.device == ("cuda" if gpus else "cpu")
    assert allotment.model_actors[1] == gpus or not gpus


@given(st.integers(1, 64), st.integers(0, 8), st.integers(1, 20), st.integers(1, 20), st.integers(1, 8))
def test_wishes_are_met_or_refused_in_one_line(cpus, gpus, low, high, per_actor):
    wish = settings(gpu_actors=f"{min(low, high)}:{max(low, high)}", cpus_per_actor=per_actor)
    try:
        allotment = allot(wish, Resources(float(cpus), float(gpus)))
    except RunError as error:
        assert "\n" not in str(error)
        assert max(low, high) * (per_actor + 0.4) + 0.1 > cpus or max(low, high) > gpus > 0 or cpus < per_actor + 1
    else:
        assert allotment.model_actors == (min(low, high), max(low, high))
        assert allotment.model_cpus == per_actor


def test_cuda_without_a_gpu_is_refused():
    with pytest.raises(RunError, match="no GPU"):
        allot(settings(device="cuda"), Resources(8.0, 0.0))


def test_a_laptop_gives_the_model_its_cores():
    allotment = allot(settings(), Resources(cpus=3.0, gpus=0.0))  # two cores and the one lent to waiting actors
    assert allotment.model_actors == (1, 1)
    assert allotment.model_threads == 2
