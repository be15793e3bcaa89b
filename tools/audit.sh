#!/usr/bin/env bash
# Look up what is installed beside PYTHON: versions that their authors have withdrawn from the index (yanked), and known
# vulnerabilities (pip-audit, from PyPI's JSON interface or, with AUDIT_SERVICE=osv, from osv.dev).
#   audit.sh BIN PYTHON    with the pip-audit in BIN
# Exit code 0: none known; 1: some are known, or a package could not be looked up.
set -euo pipefail
bin=$1 python=$2
list=$(mktemp)
trap 'rm -f "$list" "$list.json"' EXIT
# Without m2f-pipeline itself, and without the "+cpu" of PyTorch's own builds, which PyPI does not know.
"$bin/python" -m pip --python "$python" list --format freeze --exclude m2f-pipeline --exclude pip |
    sed 's/+.*//' >"$list"

"$bin/python" -m pip --quiet install --quiet --dry-run --ignore-installed --no-deps --report "$list.json" -r "$list"
"$bin/python" - "$list.json" <<'PROGRAM'
import json, sys

found = json.load(open(sys.argv[1]))["install"]
yanked = [f"{each['metadata']['name']} {each['metadata']['version']}" for each in found if each.get("is_yanked")]
print(f"{len(found)} packages, withdrawn by their authors: {', '.join(yanked) or 'none'}")
sys.exit(bool(yanked))
PROGRAM

# --strict: a package that the service does not answer for is no package without vulnerabilities.
"$bin/pip-audit" --strict --progress-spinner off --vulnerability-service "${AUDIT_SERVICE:-pypi}" \
    --no-deps --disable-pip --requirement "$list"
