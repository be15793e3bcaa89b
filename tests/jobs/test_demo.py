"""`make demo` after its set-up: the job on real photographs, where the tables are, a query that works."""

import subprocess
import sys
from pathlib import Path

from jobs import demo


def test_the_demo_prints_where_the_tables_are_and_a_query_that_works(tmp_path):
    done = subprocess.run([sys.executable, demo.__file__], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "RANDOM WEIGHTS" in done.stdout
    [run] = (tmp_path / demo.FOLDER / "output" / "segments").iterdir()
    assert f"segments/{run.name}/*.parquet" in done.stdout
    query = done.stdout.split("A query that works", 1)[1]
    assert "SELECT" in query and any(Path(name).name in query for name in demo.PHOTOGRAPHS)
