#!/bin/sh
# Prints the Pythons of this machine that can set up the project, a line each: version and path.
#   find_python.sh           one for each minor version; the first is the default of `make`
#   find_python.sh default   the path of the default alone
#   find_python.sh others X  the oldest and the newest of them, without the minor version of the interpreter X
# A candidate counts when it runs: a shim of pyenv lies on PATH for versions that are not switched on and runs nothing.
set -eu
cd "$(dirname "$0")/.."
# shellcheck disable=SC2046
set -- "${1:-all}" "${2:-}" $(sed -n 's/^requires-python = ">=3\.\([0-9]*\),<3\.\([0-9]*\)"$/\1 \2/p' pyproject.toml)
what=$1 besides=$2 lowest=$3 beyond=$4

candidates() {
    names=python3
    minor=$beyond
    while [ "$minor" -gt "$lowest" ]; do
        minor=$((minor - 1))
        names="$names python3.$minor"
    done
    for name in $names; do
        echo "$PATH" | tr : '\n' | sed "s|\$|/$name|"
    done
    pyenv=$(pyenv root 2>/dev/null || echo "${PYENV_ROOT:-$HOME/.pyenv}")
    uv=$(uv python dir 2>/dev/null || echo "${UV_PYTHON_INSTALL_DIR:-$HOME/.local/share/uv/python}")
    printf '%s\n' "$pyenv"/versions/*/bin/python3 "$uv"/*/bin/python3
}

# Free-threaded builds have no wheels of several dependencies; Debian's python3 makes no venv without python3-venv.
usable() {
    candidates | while read -r path; do
        [ ! -x "$path" ] || "$path" - "$lowest" "$beyond" 2>/dev/null <<'PYTHON' || true
import ensurepip, sys, sysconfig, venv
low, beyond = ((3, int(minor)) for minor in sys.argv[1:])
gil = not sysconfig.get_config_var("Py_GIL_DISABLED")
if low <= sys.version_info[:2] < beyond and sys.implementation.name == "cpython" and gil:
    print("%d.%d.%d" % sys.version_info[:3], sys.executable)
PYTHON
    done | awk '{ split($1, part, ".") } !seen[part[2]]++'
}

found=$(usable)
if [ -z "$found" ]; then
    echo "no Python 3.$lowest to 3.$((beyond - 1)) with venv and ensurepip found on PATH, of pyenv or of uv;" \
        "name one: make PYTHON=/path/to/python3" >&2
    exit 1
fi
case $what in
all) echo "$found" ;;
default) echo "$found" | head -n 1 | cut -d ' ' -f 2- ;;
others)
    own=$("$besides" -c 'import sys; print("3.%d." % sys.version_info[1])')
    echo "$found" | sort -t . -k 2n | sed -n '1p;$p' | uniq | awk -v own="$own" 'index($1, own) != 1'
    ;;
*)
    echo "find_python.sh knows default and others, not $what" >&2
    exit 2
    ;;
esac
