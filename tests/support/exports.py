"""Exports of published runs, and the rows that they must hold."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from jobs.export import main
from pipeline.tables.current_view import current_images, current_segments


def segments_by_key(tables: str) -> dict[str, list[dict[str, Any]]]:
    """The current rows of the images that have a result, by key, in order."""
    rows = sorted(current_segments(tables).read_all().to_pylist(), key=lambda row: row["segment_id"])
    keys = [row["image_key"] for row in current_images(tables).read_all().to_pylist() if row["status"] == "ok"]
    return {key: [row for row in rows if row["image_key"] == key] for key in sorted(keys)}


def decoded(segmentation: dict[str, Any]) -> np.ndarray:
    """A mask of the tables, by pycocotools."""
    return coco_mask.decode({**segmentation, "counts": segmentation["counts"].encode()}).astype(bool)


def export(tables: str, to: Path, form: str, *flags: str) -> Path:
    """Run the job in this process; the folder that it has written."""
    assert main(["--tables", tables, "--to", str(to), "--format", form, "--workers=1", *flags]) == 0
    return to


def refused(tables: str, to: Path, form: str, *flags: str) -> str:
    """The line with which the job refuses, having written nothing."""
    with pytest.raises(SystemExit) as end, contextlib.redirect_stderr(io.StringIO()) as errors:
        main(["--tables", tables, "--to", str(to), "--format", form, "--workers=1", *flags])
    assert end.value.code == 2
    [line] = errors.getvalue().strip().splitlines()
    return line
