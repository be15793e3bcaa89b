"""The files of Ray Train that the training reads, whose names and form Ray Train does not promise to keep (Ray 2.60).

`<run>/checkpoint_*/` are the checkpoints, and a JSON file beside them lists those that are whole.
tests/test_private_names.py says so where a later version has renamed them.
"""

import json

LIST_OF_CHECKPOINTS = "checkpoint_manager_snapshot.json"
_PREFIX = "checkpoint_"


def is_checkpoint(name: str) -> bool:
    """Whether a folder of this name in that of the run is a checkpoint, whole or not."""
    return name.startswith(_PREFIX) and name != LIST_OF_CHECKPOINTS


def listed_checkpoints(data: bytes) -> set[str]:
    """Names of the checkpoints that the list says are whole. ValueError, KeyError or TypeError where it is damaged."""
    return {checkpoint["checkpoint_dir_name"] for checkpoint in json.loads(data)["checkpoint_results"]}
