#!/usr/bin/env bash
# The files of a release, in dist/. `make release` calls both steps.
#   release.sh build BIN           sdist and wheel, built and checked with the programs in BIN
#   release.sh finish BIN PYTHON   with the wheel installed for PYTHON and nothing else: try it, list what it needs
#                                  (CycloneDX), write checksums
set -euo pipefail
cd "$(dirname "$0")/.."
step=$1 bin=$(realpath "$2")
version=$(sed -n 's/^__version__ = "\(.*\)".*/\1/p' m2f_core/__init__.py)

if [ "$step" = build ]; then
    if ! grep -Eq "^## $version - [0-9]{4}-[0-9]{2}-[0-9]{2}$" CHANGELOG.md; then
        echo "CHANGELOG.md has no line '## $version - $(date -u +%F)'; name the release there, above what it brings" >&2
        exit 2
    fi
    # Files in the archives get the time of the commit, so that anybody can build the same bytes again.
    SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
    export SOURCE_DATE_EPOCH
    rm -rf dist
    "$bin/python" -m build --outdir dist .
    "$bin/python" -m twine check --strict dist/*
else
    installed=$("$(dirname "$3")/m2f-segment" --version)
    if [ "$installed" != "m2f-segment $version" ]; then
        echo "$3 runs $installed, and the release is $version" >&2
        exit 1
    fi
    described=$(mktemp)
    trap 'rm -f "$described"' EXIT
    sed "s/^dynamic = \[\"version\"\]$/version = \"$version\"/" pyproject.toml >"$described"
    "$bin/cyclonedx-py" environment --pyproject "$described" --mc-type application --output-reproducible \
        --output-format JSON --output-file "dist/m2f_pipeline-$version.cdx.json" "$3"
    (cd dist && sha256sum -- m2f_pipeline-* >SHA256SUMS)
fi
