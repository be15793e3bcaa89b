"""Who gets how many CPUs: never all of them, because Ray Data would hang without a word."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2f_core.layers.cpu_instructions import cpu_instructions
from pipeline.cluster.allotment import FETCH_CPUS, READ_PLAN_CPUS, WRITE_CPUS, Allotment, allot, run_on_worker
from pipeline.cluster.resources import NodeGroup, Resources, connect, shape_of_this_node
from pipeline.config import Settings
from pipeline.device import precision
from pipeline.errors import RunError
from pipeline.runs.check import check_model
from pipeline.runs.specs import segment_spec

GROUPS = st.builds(
    lambda cpus, gpus, count, now: NodeGroup(float(cpus), float(gpus), count, min(now, count)),
    st.integers(0, 64),
    st.sampled_from([0, 0, 1, 2, 8]),
    st.integers(1, 20),
    st.integers(0, 20),
)
CLUSTERS = st.lists(GROUPS, min_size=1, max_size=3).map(lambda groups: Resources(tuple(groups)))


def settings(**changes):
    return Settings(input="in", output="out", model="model", **changes)


def one_node(cpus, gpus=0):
    return Resources((NodeGroup(float(cpus), float(gpus), 1, 1),))


def needed_cpus(allotment):
    helpers = allotment.helpers[1] * (FETCH_CPUS + WRITE_CPUS)
    return allotment.model_actors[1] * allotment.model_cpus + helpers + READ_PLAN_CPUS


def holds(allotment, resources):
    """Every pool at its largest fits beside the others, and each model actor on some node."""
    least, most = allotment.model_actors
    assert 1 <= least <= allotment.model_actors_at_start <= most
    assert needed_cpus(allotment) <= resources.cpus + 1e-6
    assert resources.room_for(allotment.model_cpus, allotment.model_gpus) >= most
    assert allotment.model_gpus * most <= resources.gpus + 1e-6


@given(CLUSTERS)
def test_defaults_fit_or_are_refused_in_one_line(resources):
    try:
        allotment = allot(settings(), resources)
    except RunError as error:
        assert "\n" not in str(error)
    else:
        holds(allotment, resources)
        assert allotment.device == ("cuda" if resources.gpus else "cpu")


@given(st.integers(1, 512), st.integers(0, 64))
def test_defaults_always_fit_a_machine_with_a_cpu_for_each_gpu(cpus, gpus):
    resources = one_node(cpus + gpus, gpus)
    allotment = allot(settings(), resources)
    holds(allotment, resources)
    assert allotment.model_actors[1] == gpus or not gpus


@given(CLUSTERS, st.integers(1, 20), st.integers(1, 20), st.integers(1, 8))
def test_wishes_are_met_exactly_or_refused_in_one_line(resources, low, high, per_actor):
    low, high = sorted((low, high))
    try:
        allotment = allot(settings(gpu_actors=f"{low}:{high}", cpus_per_actor=per_actor), resources)
    except RunError as error:
        assert "\n" not in str(error)
    else:
        holds(allotment, resources)
        assert (allotment.model_actors, allotment.model_cpus) == ((low, high), per_actor)


PARTS = {1.0: 1, 0.5: 2, 0.4: 2, 0.34: 2, 1 / 3: 3, 0.3333: 3, 0.3: 3, 0.25: 4, 0.2: 5, 0.1: 10, 0.05: 20}


@given(st.integers(1, 16), st.integers(1, 8), st.sampled_from(sorted(PARTS)))
def test_actors_with_a_part_of_a_gpu_share_each_gpu_and_its_cpus(cpus, gpus, part):
    """Never on parts of two GPUs; the CPUs beside a GPU are divided among the actors on it."""
    resources = one_node(cpus * gpus * PARTS[part], gpus)
    allotment = allot(settings(gpus_per_actor=part), resources)
    holds(allotment, resources)
    assert allotment.model_actors == (1, gpus * PARTS[part])
    assert (allotment.model_gpus, allotment.model_actors_at_start) == (part, gpus * PARTS[part])
    assert resources.room_for(0.01, part) == gpus * PARTS[part]


@given(CLUSTERS, st.integers(1, 40), st.sampled_from(sorted(PARTS)))
def test_wishes_for_parts_are_met_exactly_or_refused_in_one_line(resources, most, part):
    try:
        allotment = allot(settings(gpu_actors=f"1:{most}", gpus_per_actor=part), resources)
    except RunError as error:
        assert "\n" not in str(error)
    else:
        holds(allotment, resources)
        assert (allotment.model_actors, allotment.model_gpus) == ((1, most), part)


def test_more_actors_than_parts_are_refused_with_the_flag_that_helps():
    with pytest.raises(RunError, match=r"5 model actors of 1 CPUs and 0.4 of a GPU each do not fit: .* hold 4 of them"):
        allot(settings(gpu_actors="1:5", gpus_per_actor=0.4, cpus_per_actor=1), one_node(16, 2))
    with pytest.raises(RunError, match=r"need 24.1 CPUs, .*--cpus-per-actor, or raise --gpus-per-actor$"):
        allot(settings(gpus_per_actor=0.1, cpus_per_actor=2), one_node(23, 1))


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_part_of_a_gpu_without_gpus_is_refused(device):
    with pytest.raises(RunError, match=r"--gpus-per-actor is 0.5, but the models run on CPUs; leave the flag out"):
        allot(settings(gpus_per_actor=0.5, device=device), one_node(8))


@pytest.mark.parametrize("part", [0.0, 0.04, 1.01, 2.0, float("nan")])
def test_a_part_beyond_a_gpu_is_refused(part):
    with pytest.raises(RunError, match=r"--gpus-per-actor is .*; it must lie in 0.05 .. 1"):
        settings(gpus_per_actor=part)


def test_a_model_actor_may_take_its_part_of_the_memory(tiny_checkpoint):
    wanted = Settings(input=("in",), output="out", model=str(tiny_checkpoint), gpus_per_actor=0.5)
    spec = segment_spec(wanted, check_model(wanted), allot(wanted, one_node(16, 1)))
    assert (spec.gpu_share, spec.threads) == (0.5, 4)


FILL = """
import sys, ray
from pipeline.cluster.local_ray import init_again_if_busy
part, most = float(sys.argv[1]), int(sys.argv[2])
init_again_if_busy(num_cpus=4, num_gpus=2, logging_level="ERROR", log_to_driver=False)

@ray.remote(num_cpus=0.01, num_gpus=part)
class Actor:
    def gpus(self):
        return ray.get_gpu_ids()

actors = [Actor.remote() for _ in range(most)]
held = ray.get([actor.gpus.remote() for actor in actors])
one_more = Actor.remote()
_, waiting = ray.wait([one_more.gpus.remote()], timeout=5)
print(sorted(held), len(waiting))
"""


@pytest.mark.thorough
@pytest.mark.parametrize("part", [0.5, 0.4, 1 / 3])
def test_ray_has_the_same_room(part):
    """Two GPUs that are not there: Ray fills each with this many actors, and lets one more wait."""
    room = one_node(4, 2).room_for(0.01, part)
    done = subprocess.run([sys.executable, "-c", FILL, str(part), str(room)], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == [f"{[[gpu] for gpu in (0, 1) for _ in range(PARTS[part])]} 1"], done.stderr


def test_cuda_without_a_gpu_is_refused():
    with pytest.raises(RunError, match="no GPU"):
        allot(settings(device="cuda"), one_node(8))


def test_a_node_with_few_cpus_beside_its_gpus_does_not_slow_the_others():
    """All actors of a pool reserve alike, so that each fits on every kind of node; threads are each node's own."""
    mixed = Resources((NodeGroup(2.0, 1.0, 4, 4), NodeGroup(96.0, 8.0, 2, 0), NodeGroup(32.0, 0.0, 1, 1)))
    allotment = allot(settings(), mixed)
    holds(allotment, mixed)
    assert (allotment.model_cpus, allotment.model_actors) == (1, (1, 20))
    assert (allotment.threads_on(2, 1), allotment.threads_on(96, 8), allotment.threads_on(32, 0)) == (1, 4, 1)
    halves = allot(settings(gpus_per_actor=0.5), mixed)
    assert (halves.model_cpus, halves.threads_on(2, 1), halves.threads_on(8, 1)) == (0.5, 1, 3)
    given_by_user = allot(settings(cpus_per_actor=1), mixed)
    assert given_by_user.threads_on(96, 8) == 1


@given(CLUSTERS, st.sampled_from(sorted(PARTS)))
def test_threads_never_exceed_the_cpus_of_a_node(resources, part):
    try:
        allotment = allot(settings(gpus_per_actor=part), resources)
    except RunError:
        return
    for group in resources.groups:
        if group.gpus >= 1:
            actors = int(group.gpus) * PARTS[part]
            assert 1 <= allotment.threads_on(group.cpus, group.gpus) <= max(1, group.cpus / actors)


@pytest.mark.usefixtures("ray_session")
def test_an_actor_counts_the_cpus_of_its_own_node():
    import ray

    assert ray.get(ray.remote(num_cpus=0)(shape_of_this_node).remote()) == (4.0, 0.0)


SPOT, ON_DEMAND, CPU_NODES = (
    NodeGroup(8.0, 1.0, 6, 0, labels=(("market", "spot"),)),
    NodeGroup(8.0, 1.0, 4, 0, labels=(("market", "on-demand"),)),
    NodeGroup(4.0, 0.0, 1, 1),
)
MARKETS = Resources((SPOT, ON_DEMAND, CPU_NODES))


@pytest.mark.parametrize(
    ("nodes", "most"), [(None, 10), ("market=spot", 6), ("market=spot,on-demand", 10), ("market=!spot", 4)]
)
def test_model_actors_are_counted_on_the_nodes_where_they_may_run(nodes, most):
    allotment = allot(settings(model_nodes=nodes, helper_nodes=nodes), MARKETS)
    assert (allotment.device, allotment.model_actors) == ("cuda", (1, most))
    with pytest.raises(RunError, match="do not fit"):
        allot(settings(model_nodes=nodes, gpu_actors=f"1:{most + 1}"), MARKETS)


def test_helpers_fit_on_the_nodes_where_they_may_run():
    allotment = allot(settings(helper_nodes="market=!spot"), Resources((SPOT, CPU_NODES)))
    assert allotment.model_actors == (1, 6) and allotment.helpers == (1, 6)
    small = NodeGroup(1.0, 0.0, 1, 1)
    allotment = allot(settings(helper_nodes="market=!spot"), Resources((SPOT, small)))
    assert allotment.helpers == (1, 2)  # (1 - 0.1) / 0.4


@pytest.mark.parametrize("flag", ["model_nodes", "helper_nodes"])
def test_a_label_that_no_node_has_is_refused(flag):
    with pytest.raises(RunError, match=rf"^--{flag.replace('_', '-')} market=sp0t: the cluster has no node with this"):
        allot(settings(**{flag: "market=sp0t"}), MARKETS)


def test_cuda_on_nodes_without_gpus_is_refused():
    with pytest.raises(RunError, match="has no GPU on --model-nodes market=!spot and cannot start one"):
        allot(settings(device="cuda", model_nodes="market=!spot"), Resources((SPOT, CPU_NODES)))


def test_a_laptop_gives_the_model_its_cores():
    allotment = allot(settings(), one_node(3))  # two cores and the one lent to waiting actors
    assert allotment.model_actors == (1, 1)
    assert allotment.model_threads == 2


def test_an_actor_that_fits_on_no_node_is_refused_though_the_cluster_has_the_cpus():
    many_small = Resources((NodeGroup(2.0, 0.0, 10, 10),))
    assert allot(settings(), many_small).model_cpus == 2
    with pytest.raises(RunError, match="do not fit"):
        allot(settings(cpus_per_actor=4), many_small)


def test_gpus_that_are_not_up_yet_count_and_those_that_are_start_at_once():
    growing = Resources((NodeGroup(0.0, 0.0, 1, 1), NodeGroup(16.0, 1.0, 8, 2)))
    allotment = allot(settings(), growing)
    assert (allotment.device, allotment.model_actors, allotment.model_actors_at_start) == ("cuda", (1, 8), 2)
    assert allotment.model_cpus == 4


def test_an_autoscaler_without_a_limit_needs_one_from_the_user():
    endless = Resources((NodeGroup(16.0, 1.0, 1_000_000, 0),))
    with pytest.raises(RunError, match="--gpu-actors"):
        allot(settings(), endless)
    assert allot(settings(gpu_actors="1:8"), endless).model_actors == (1, 8)


def test_bf16_needs_the_instructions_of_the_machine_that_computes(monkeypatch):
    monkeypatch.setattr(precision, "bf16_refusal", lambda: "no AMX")
    here, elsewhere = (Resources((NodeGroup(8.0, 0.0, 1, 1),), joined=joined) for joined in (False, True))
    with pytest.raises(RunError, match=r"^--precision bf16: no AMX "):
        allot(settings(precision="bf16"), here)
    # The model actors of a cluster check their own CPUs.
    assert allot(settings(precision="bf16"), elsewhere).computed_on == {
        "device": "cpu",
        "precision": "bf16",
        "cpu_instructions": None,
    }
    assert allot(settings(), here).computed_on["cpu_instructions"] == cpu_instructions()


@pytest.mark.usefixtures("ray_session")
def test_what_the_autoscaler_can_start_counts(monkeypatch):
    """Groups of nodes that an autoscaler has told Ray; at night most of them have no node yet."""
    import ray
    from ray.core.generated import autoscaler_pb2

    before = connect()
    assert before.gpus == 0 and before.cpus == 4
    config = autoscaler_pb2.ClusterConfig()
    for name, resources, count in (
        ("spot", {"CPU": 8, "GPU": 1}, 12),
        ("on-demand", {"CPU": 8, "GPU": 1}, 4),  # of the same shape: they add up
        ("cpu", {"CPU": 4}, -1),
    ):
        group = config.node_group_configs.add(name=name, max_count=count)
        group.resources.update(resources)
    monkeypatch.setattr(ray._private.state.state, "get_cluster_config", lambda: config)
    monkeypatch.setenv("RAY_ADDRESS", "of the Ray that runs already")
    resources = connect()
    assert (resources.gpus, resources.gpus_now) == (16, 0)
    assert allot(settings(), resources).model_actors == (1, 16)


def test_what_goes_wrong_on_a_worker_is_one_line(ray_session, caplog):
    allotment = Allotment("cpu", (1, 1), 1, 1.0, 0, helpers=(1, 1))

    def says(error):
        raise error

    def dies():
        os._exit(1)

    assert run_on_worker(allotment, lambda number: number + 1, 1) == 2
    with pytest.raises(RunError, match=r"^none of the images can be read$"):
        run_on_worker(allotment, says, RunError("none of the images can be read"))
    with pytest.raises(RunError, match=r"^a worker failed: ValueError: no such kernel$"):
        run_on_worker(allotment, says, ValueError("no such kernel"))
    assert "in says" in caplog.text, "the worker's own stack is in the log"
    with pytest.raises(RunError, match=r"^a worker's process ended: "):
        run_on_worker(allotment, dies)
