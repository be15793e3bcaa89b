"""Private names of other libraries: each still exists, and each library's stand in one file of ours."""

import ast
import functools
import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest

from tests.support.places import ROOT

# File -> (module, path of attributes) of every private name that the file uses. `Class:name` is an attribute that the
# class gives its instances.
PRIVATE_NAMES = {
    "pipeline/cluster/ray_private.py": [
        ("ray._private.utils", "get_num_cpus"),
        ("ray._private.state", "state.get_cluster_config"),
        ("ray._private.worker", "_global_node"),
        ("ray._private.worker", "shutdown"),
        ("ray._private.node", "Node.is_head"),
        ("ray._private.log", "PlainRayHandler"),
        ("ray.autoscaler._private.kuberay.autoscaling_config", "AutoscalingConfigProducer"),
    ],
    "pipeline/cluster/actor_arguments.py": [
        ("ray.data._internal.execution.operators.actor_pool_map_operator", "ActorPoolMapOperator._start_actor"),
        ("ray.data._internal.execution.operators.actor_pool_map_operator", "ActorPoolMapOperator._data_context_ref"),
        ("ray.data._internal.execution.operators.actor_pool_map_operator", "ActorPoolMapOperator._map_transformer_ref"),
    ],
    "pipeline/cluster/pool_bounds.py": [
        ("ray.data._internal.execution.execution_callback", "ExecutionCallback.before_execution_starts"),
        ("ray.data._internal.execution.execution_callback", "ExecutionCallback.on_execution_step"),
        ("ray.data._internal.execution.streaming_executor", "StreamingExecutor:_topology"),
        ("ray.data._internal.execution.streaming_executor", "StreamingExecutor:_cluster_autoscaler"),
        (
            "ray.data._internal.cluster_autoscaler.rate_based_cluster_autoscaler",
            "RateBasedClusterAutoscaler:_autoscaling_coordinator",
        ),
        (
            "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator",
            "DefaultAutoscalingCoordinator.request_resources",
        ),
        ("ray.data._internal.actor_autoscaler.autoscaling_actor_pool", "AutoscalingActorPool:_config"),
        ("ray.data._internal.execution.operators.map_operator", "MapOperator.get_autoscaling_actor_pools"),
        ("ray.data._internal.actor_autoscaler.autoscaling_actor_pool", "AutoscalingActorPool.num_running_actors"),
    ],
    "pipeline/cluster/worker_lines.py": [
        ("ray._private.worker", "print_to_stdstream"),
        ("ray._private.worker", "print_worker_logs"),
        ("ray._private.ray_constants", "RAY_DEDUP_LOGS_AGG_WINDOW_S"),
        ("ray._private.ray_constants", "RAY_DEDUP_LOGS_ALLOW_REGEX"),
        ("ray._private.ray_constants", "RAY_DEDUP_LOGS_SKIP_REGEX"),
        ("ray._private.ray_logging", "LogDeduplicator"),
    ],
    "pipeline/store/fsspec_private.py": [
        ("s3fs", "S3FileSystem._call_s3"),
        ("fsspec.asyn", "AsyncFileSystem._cat_file"),
        ("fsspec.asyn", "AsyncFileSystem._info"),
        ("fsspec", "AbstractFileSystem._strip_protocol"),
        ("fsspec", "AbstractFileSystem._get_kwargs_from_urls"),
        ("aiobotocore.httpsession", "AIOHTTPSession._get_session"),
    ],
    "infra/image/prebuild_triton.py": [("triton.runtime.build", "_build")],
    "infra/check_ray_up.py": [
        ("ray.autoscaler._private.util", "prepare_config"),
        ("ray.autoscaler._private.util", "validate_config"),
    ],
    "m2f_core/jit.py": [
        ("numba.core.caching", "_CacheLocator.ensure_cache_path"),
        ("numba.core.caching", "CacheImpl._locator_classes"),
    ],
    "m2f_core/layers/mkldnn.py": [
        ("torch", "ops.mkldnn._reorder_linear_weight"),
        ("torch", "ops.mkldnn._linear_pointwise"),
    ],
}
PUBLIC = {"_asdict", "_replace", "_fields", "_make", "_exit"}  # documented, for all their underscore


@pytest.mark.parametrize(
    ("file", "module", "path"), [(file, *name) for file, names in PRIVATE_NAMES.items() for name in names]
)
def test_the_name_is_there(file, module, path):
    path, _, of_instances = path.partition(":")
    try:
        named = functools.reduce(getattr, path.split("."), importlib.import_module(module))
        if of_instances and not re.search(rf"\bself\.{of_instances}\b[^=]*=", inspect.getsource(named)):
            raise AttributeError(of_instances)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{file} uses {module}.{path}, which the installed version has not: {error}")


def test_ray_has_its_raylet_where_the_drill_looks_for_it():
    ray = pytest.importorskip("ray")
    from pipeline.cluster.ray_private import RAYLET_PROGRAM

    assert Path(f"{ray.__path__[0]}{RAYLET_PROGRAM}").is_file()


def test_ray_says_that_a_start_timed_out_as_we_expect():
    node = importlib.import_module("ray._private.node")
    from pipeline.cluster.ray_private import START_TIMED_OUT

    assert START_TIMED_OUT in Path(node.__file__).read_text()


def test_ray_train_calls_its_files_as_we_do():
    constants = pytest.importorskip("ray.train.v2._internal.constants")
    storage = importlib.import_module("ray.train.v2._internal.execution.storage")
    manager = importlib.import_module("ray.train.v2._internal.execution.checkpoint.checkpoint_manager")
    from pipeline.train.ray_train_files import LIST_OF_CHECKPOINTS, is_checkpoint

    assert constants.CHECKPOINT_MANAGER_SNAPSHOT_FILENAME == LIST_OF_CHECKPOINTS
    assert is_checkpoint(storage.StorageContext.make_default_checkpoint_dir_name())
    assert not is_checkpoint(LIST_OF_CHECKPOINTS)
    assert "checkpoint_dir_name" in manager._TrainingResultState.model_fields
    assert "checkpoint_results" in manager._CheckpointManagerState.model_fields


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def private_names(source: str) -> set[str]:
    """Private names of third parties that `source` uses. Private names that it defines itself are its own."""
    nodes = list(ast.walk(ast.parse(source)))
    own = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
    own |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    found = set()
    for node in nodes:
        if isinstance(node, ast.Attribute) and not (
            isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
        ):
            found.add(node.attr)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            found |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            root = modules[0].split(".")[0]
            if root not in sys.stdlib_module_names and root not in ("m2f_core", "pipeline", "jobs", "infra"):
                found |= {part for module in modules for part in module.split(".")} | {a.name for a in node.names}
    return {name for name in found - own if is_private(name)}


def test_each_librarys_private_names_stand_behind_one_file():
    files = [
        file for package in ("pipeline", "m2f_core", "jobs", "infra") for file in sorted((ROOT / package).rglob("*.py"))
    ]
    found = {file.relative_to(ROOT).as_posix(): private_names(file.read_text()) for file in files}
    elsewhere = {path: names for path, names in found.items() if names and path not in PRIVATE_NAMES}
    assert not elsewhere
    for path, names in PRIVATE_NAMES.items():
        listed = {part for module, attributes in names for part in re.split("[.:]", f"{module}.{attributes}")}
        # What a file gives a name of its own, as a stand-in does, the scan takes for the file's.
        assert found[path] <= {name for name in listed if is_private(name)}, f"{path} uses names that the list has not"
        source = (ROOT / path).read_text()
        assert all(name in source for name in listed if is_private(name)), f"{path} no longer uses a name of the list"


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import ray\nray._private.utils.f()", {"_private"}),
        ("from ray._private.log import PlainRayHandler", {"_private"}),
        ("import ray._private.state", {"_private"}),
        ("from s3fs import _core", {"_core"}),
        ("filesystem._call_s3('x')", {"_call_s3"}),
        ("getattr(filesystem, '_cat_file')", {"_cat_file"}),
        ("class A:\n    def f(self):\n        return self._x + other._x\n    def g(self):\n        self._x = 1", set()),
        ("import _thread, os\nos._exit(1)\nrow._asdict()", set()),
        ("from m2f_core.inference.panoptic_kernel import _TILE", set()),
    ],
)
def test_the_scan_finds_private_names(source, names):
    assert private_names(source) == names
