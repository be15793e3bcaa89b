#!/bin/sh
# Runs a command of few words: step.sh LABEL COMMAND...
# LABEL goes first; then, every 5 seconds, a line with the time and the last line that the command printed, so that a
# long step shows life in a pipe too. Errors pass through as they come; the whole output follows when the command fails.
set -eu
label=$1
shift
echo "== $label"
output=$(mktemp)
short() { tail -n 1 "$output" | cut -c 1-100; }
(
    seconds=0
    while sleep 5 >/dev/null 2>&1; do
        seconds=$((seconds + 5))
        echo "   $seconds s: $(short)"
    done
) &
ticker=$!
trap 'kill $ticker 2>/dev/null || true; rm -f "$output"' EXIT
trap 'exit 130' INT TERM
status=0
"$@" >"$output" || status=$?
if [ $status -eq 0 ]; then
    echo "   $(short)"
else
    cat "$output"
    echo "== failed (exit code $status): $label" >&2
fi
exit $status
