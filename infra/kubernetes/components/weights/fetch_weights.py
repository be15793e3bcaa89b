"""Put a checkpoint on the volume of the nights: `python fetch_weights.py MODEL FOLDER`, in the image of the pipeline.

MODEL is what --model takes: a URI of a folder or a .pkl file, or a hub id. FOLDER is there as a whole or not at all.
Exit code 0: FOLDER holds the checkpoint; 1: the store did not answer; 2: MODEL cannot be had, or FOLDER holds another
checkpoint.
"""

import shutil
import sys
from pathlib import Path

from m2f_core.checkpoints.stored_weights import CheckpointError
from m2f_core.whole_files import written_whole
from pipeline.errors import RunError, StoreUnavailableError
from pipeline.segment.checkpoint import stage_model


def fetch(model: str, folder: Path) -> str:
    """Fetch, copy and compare; returns the line to print. RunError if `folder` holds another checkpoint."""
    staged = stage_model(model)
    if folder.is_dir():
        if stage_model(str(folder)).sha256 == staged.sha256:
            return f"{folder} holds {model} already (sha256 {staged.sha256[:16]})"
        raise RunError(f"{folder} holds another checkpoint than {model}; name another folder, or remove this one")
    with written_whole(folder) as copy:
        copy.mkdir()
        for file in sorted(staged.path.iterdir()) if staged.path.is_dir() else [staged.path]:
            shutil.copyfile(file, copy / file.name)  # follows the links of the hub's cache
    stage_model(str(folder), staged.sha256)
    return f"{folder} holds {model} (sha256 {staged.sha256[:16]})"


def main(args: list[str]) -> int:
    if len(args) != 2:
        print("usage: fetch_weights.py MODEL FOLDER", file=sys.stderr)
        return 2
    try:
        print(fetch(args[0], Path(args[1])), flush=True)
    except (RunError, CheckpointError) as error:
        print(f"fetch_weights.py: error: {error}", file=sys.stderr, flush=True)
        return 1 if isinstance(error, StoreUnavailableError) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
