"""The tables of a run as plain Python, for tests that compare runs."""

import json
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

# What differs between two runs over the same images by design.
OF_THE_RUN = ("run_id", "run_created", "shard", "attempt")


def latest_run(output: Path) -> str:
    """Id of the run that finished last."""
    reports = sorted((output / "_runs").glob("*/report.json"), key=lambda path: path.stat().st_mtime)
    return reports[-1].parent.name


def read_report(output: Path, run_id: str | None = None) -> dict[str, Any]:
    return json.loads((output / "_runs" / (run_id or latest_run(output)) / "report.json").read_text())


def read_table(output: Path, table: str, run_id: str | None = None) -> list[dict[str, Any]]:
    """All rows of a run, sorted, as dicts."""
    rows = ds.dataset(output / table / f"run={run_id or latest_run(output)}").to_table().to_pylist()
    return sorted(rows, key=lambda row: (row["image_key"], row.get("segment_id", 0)))


def results_by_image(output: Path, run_id: str | None = None) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """File name -> (row of `images`, rows of `segments`), without what belongs to the run or the place."""

    def bare(row: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in row.items() if k not in (*OF_THE_RUN, "image_key", "etag")}

    images = read_table(output, "images", run_id)
    names = [Path(row["image_key"]).name for row in images]
    assert len(set(names)) == len(names), "an image has two rows"
    results: dict[str, Any] = {name: (bare(row), []) for name, row in zip(names, images, strict=True)}
    for row in read_table(output, "segments", run_id):
        results[Path(row["image_key"]).name][1].append(bare(row))
    return results
