#!/bin/sh
# Puts Debian's prometheus and promtool into .tools/ of the checkout, without installing them: tests of the rules, the
# dashboard and a scrape use them. On a system without apt-get, put both programs on PATH yourself.
set -eu
cd "$(dirname "$0")/.."
if command -v prometheus >/dev/null && command -v promtool >/dev/null; then
    echo "prometheus and promtool are on PATH"
    exit 0
fi
if [ -x .tools/usr/bin/prometheus ] && [ -x .tools/usr/bin/promtool ]; then
    echo ".tools has prometheus and promtool"
    exit 0
fi
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || {
    echo "no apt-get here: install prometheus and promtool by other means" >&2
    exit 1
}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder" # apt-get downloads as a user of its own
cd "$folder"
apt-get download prometheus >/dev/null 2>&1 || { apt-get update >/dev/null && apt-get download prometheus >/dev/null; }
mkdir unpacked
dpkg-deb -x prometheus_*.deb unpacked
cd "$OLDPWD"
mkdir -p .tools/usr/bin
mv "$folder"/unpacked/usr/bin/prometheus "$folder"/unpacked/usr/bin/promtool .tools/usr/bin/
echo ".tools has prometheus and promtool now"
