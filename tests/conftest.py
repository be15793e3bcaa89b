"""What many tests share: the data folder, a tiny checkpoint, photographs, an S3 server, a local Ray."""

import functools
import gc
import importlib
import os
import sys
from pathlib import Path
from typing import Any

# Before anything imports them: no calls home, no token files in the user's home, one thread a process.
os.environ.update(
    HF_HUB_OFFLINE="1", RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", OMP_NUM_THREADS="1", AWS_MAX_ATTEMPTS="5"
)

import hypothesis
import pytest
import torch

from pipeline.cluster.environment import set_ray_environment
from tests.support.places import SHARED_DATA
from tests.support.without_pages import without_pages

# Where imagecodecs is installed, tifffile uses it. It is here as a second decoder; users' machines do not have it.
sys.modules["imagecodecs"] = None  # type: ignore[assignment]
importlib.import_module("tifffile")
del sys.modules["imagecodecs"]

set_ray_environment()  # among others the minutes that a Ray may take to start

# Without a device Triton's kernels run in its interpreter; Triton, which other libraries import, looks once.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Shared machines are noisy: a deadline per example would test them, not us.
hypothesis.settings.register_profile("m2f", deadline=None, max_examples=60)
hypothesis.settings.register_profile("short", deadline=None, max_examples=20)
hypothesis.settings.load_profile("m2f")


def is_short(config: pytest.Config) -> bool:
    """Whether this is `make test`, without the thorough tests."""
    return "not thorough" in config.getoption("markexpr")


def pytest_configure(config: pytest.Config) -> None:
    """Fewer examples in `make test` than in `make test-all`, before tests with numbers of their own are read."""
    if is_short(config):
        hypothesis.settings.load_profile("short")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadfile` of `make test`: all files that share the Ray of the tests go to one process, which starts it.

    With the thorough tests these files are more than half of all, and each process has a Ray.
    """
    if not is_short(config) or config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class OneRay(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "the files that share a Ray" if shares_ray(config.rootpath / file) else file

    return OneRay(config, log)


@functools.cache
def shares_ray(file: Path) -> bool:
    return "ray_session" in file.read_text()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Jobs first: two processes take one file after the other, and at the end a short file leaves nobody idle."""
    items.sort(key=lambda item: "tests/jobs/" not in item.path.as_posix())


def pytest_collection_finish() -> None:
    """What is imported and collected by now stays: a look at all of it takes the garbage collector two seconds."""
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Where one process has all files that share a Ray, the Ray ends with the last of them: even at rest it takes 6 %
    of a core.
    """
    is_one_ray = is_short(item.config) and hasattr(item.config, "workerinput")
    if is_one_ray and nextitem is not None and shares_ray(item.path) and not shares_ray(nextitem.path):
        importlib.import_module("ray").shutdown()


@pytest.fixture(scope="session", autouse=True)
def no_pages():
    """Jobs that tests run write no report page. Tests of the page call its writer."""
    from jobs import publish, segment_bucket

    with without_pages(segment_bucket), without_pages(publish):
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Photographs and odd images that are not part of the project; tests that need them are skipped without."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the photographs in {SHARED_DATA.name}/ beside the checkout")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A seeded tiny Mask2Former with 5 things and 3 stuff classes, as a Hugging Face folder."""
    from tests.support.inputs import make_model

    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    make_model(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_oneformer(tmp_path_factory) -> Path:
    """A seeded tiny OneFormer with the classes of `tiny_checkpoint`: one checkpoint, three tasks."""
    from m2f_core.config.oneformer import OneFormerConfig
    from tests.support.inputs import make_model

    folder = tmp_path_factory.mktemp("checkpoint") / "oneformer"
    make_model(folder, seed=1, tiny=OneFormerConfig.tiny)
    return folder


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """The eleven photographs of the scikit-image wheel."""
    from tests.support.inputs import gather_photographs

    folder = tmp_path_factory.mktemp("photographs")
    gather_photographs(folder)
    return folder


@pytest.fixture
def bf16_on_cpu() -> None:
    """Skips where this CPU is refused for bf16."""
    from m2f_core.layers.cpu_instructions import bf16_refusal

    if (refusal := bf16_refusal()) is not None:
        pytest.skip(refusal)


@pytest.fixture(scope="session")
def ray_session():
    """One Ray in this process for tests that call the pipeline directly; ended by ray.shutdown, never `ray stop`."""
    import ray

    from pipeline.cluster.local_ray import init_again_if_busy

    ray.shutdown()  # one that a test of the whole job has left in this process is of another size
    init_again_if_busy(num_cpus=4, logging_level="ERROR", log_to_driver=False, object_store_memory=500_000_000)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def drivers(tmp_path_factory):
    """Starts jobs as processes of their own, with a Ray of their own, in the environment that the test has then."""
    from tests.support.drivers import drivers

    with drivers(tmp_path_factory.mktemp("drivers")) as forking:
        yield forking


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """A SeaweedFS on loopback; its endpoint and keys stand in the environment, as the usual AWS chain reads them."""
    from tests.support.s3_server import embedded_s3

    with embedded_s3(tmp_path_factory.mktemp("s3")) as server:
        before = {name: os.environ.get(name) for name in server.environment}
        os.environ.update(server.environment)
        yield server
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


@pytest.fixture
def no_pauses(monkeypatch):
    """Attempts follow each other at once, by whatever policy of `pipeline/store/retries.py`."""
    monkeypatch.setattr("pipeline.store.retries.sleep", lambda seconds: None)


@pytest.fixture
def fresh_s3():
    """For tests that change endpoint or keys: s3fs keeps an instance, and with it the environment of its first test."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()
