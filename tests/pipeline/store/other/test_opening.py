"""Stores whose extra is not installed: one line says what to install."""

import subprocess
import sys

from tests.support.places import ROOT

EXTRAS = {"gs://b/x": "gcs", "gcs://b": "gcs", "abfs://b/x": "azure", "az://b/x": "azure", "hf://datasets/a/b": "hub"}
WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(("gcsfs", "gcsfs.core", "adlfs", "huggingface_hub")))
from pipeline.errors import RunError
from pipeline.store.filesystem import open_filesystem
from pipeline.store.other.opening import open_input
for uri in sys.argv[1:]:
    for open_it in (open_input, open_filesystem):
        try:
            open_it(uri)
        except RunError as error:
            print(error)
"""


def test_without_the_extra_of_a_store_one_line_says_what_to_install():
    command = [sys.executable, "-c", WITHOUT, *EXTRAS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    said = [
        f"{uri.partition('://')[0]}:// needs the extra `{extra}`: pip install 'm2f-pipeline[{extra}]'"
        for uri, extra in EXTRAS.items()
    ]
    assert done.stdout.splitlines() == [line for line in said for _ in range(2)]
