"""The files of Ray Train that the training reads. Their names and format are no public API (written for Ray 2.60).

`<run>/checkpoint_*/` are the checkpoints, and a JSON file beside them lists the complete ones.
tests/test_private_names.py fails if a later version has renamed these files.
"""

import json

LIST_OF_CHECKPOINTS = "checkpoint_manager_snapshot.json"
_PREFIX = "checkpoint_"


def is_checkpoint(name: str) -> bool:
    """Whether a folder of this name in the run's folder is a checkpoint, complete or not."""
    return name.startswith(_PREFIX) and name != LIST_OF_CHECKPOINTS


def listed_checkpoints(data: bytes) -> set[str]:
    """Names of the checkpoints in the list. ValueError, KeyError or TypeError if the list is damaged."""
    return {checkpoint["checkpoint_dir_name"] for checkpoint in json.loads(data)["checkpoint_results"]}
