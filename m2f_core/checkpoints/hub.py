"""Checkpoints of the Hugging Face hub, fetched by their id."""

import re
from pathlib import Path
from typing import Any

from m2f_core.checkpoints.stored_weights import CheckpointError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# The files that a checkpoint needs, and the card that states its licence. Other files of the folder, such as pickles
# and training states, are never fetched or opened.
CHECKPOINT_FILES = ("config.json", "preprocessor_config.json", "README.md", "*.safetensors", "*.safetensors.index.json")


def fetch_from_hub(hub_id: str, **options: Any) -> Path:
    """The folder of the checkpoint in the hub's cache. CheckpointError if it cannot be had.

    `options` are those of `huggingface_hub.snapshot_download`, such as `revision`, `cache_dir` and `token`.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(
            f"{hub_id} is not a folder on this machine; to load the hub's checkpoint of this name, run "
            "pip install 'm2f-pipeline[hub]'"
        ) from None
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(CHECKPOINT_FILES), **options))
    except Exception as error:  # the hub client raises its own errors and those of its HTTP library
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{hub_id} is not a folder on this machine and cannot be loaded from the hub: {reason}"
        ) from None
