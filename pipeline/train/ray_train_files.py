"""The files of Ray Train that the training reads. Their names and format are no public API (written for Ray 2.60).

`<run>/checkpoint_*/` are the checkpoints, and a JSON file beside them lists the complete ones.
tests/test_private_names.py fails if a later version has renamed these files.
"""

from pydantic import TypeAdapter, with_config
from typing_extensions import TypedDict  # pydantic wants this one below Python 3.12

from m2f_core.config.fields import excerpt
from pipeline.store.json_records import STRICT, parse_record

LIST_OF_CHECKPOINTS = "checkpoint_manager_snapshot.json"
_PREFIX = "checkpoint_"


@with_config(STRICT)
class _Checkpoint(TypedDict):
    checkpoint_dir_name: str


@with_config(STRICT)
class _Checkpoints(TypedDict):
    checkpoint_results: list[_Checkpoint]


_LIST = TypeAdapter(_Checkpoints)


def is_checkpoint(name: str) -> bool:
    """Whether a folder of this name in the run's folder is a checkpoint, complete or not."""
    return name.startswith(_PREFIX) and name != LIST_OF_CHECKPOINTS and "/" not in name


def listed_checkpoints(data: bytes) -> set[str]:
    """Names of the checkpoints in the list. ValueError if the list is damaged, or names a folder elsewhere."""
    names = {checkpoint["checkpoint_dir_name"] for checkpoint in parse_record(_LIST, data)["checkpoint_results"]}
    for name in names:
        if not is_checkpoint(name):
            raise ValueError(f"it names {excerpt(name)}, which is no checkpoint of this training")
    return names
