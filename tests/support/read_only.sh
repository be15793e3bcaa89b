#!/bin/sh
# read_only.sh FOLDER COMMAND...: run a command as the container image does: as a user without a name or home, where the
# whole file system is read-only but for FOLDER and /dev. Call it by `unshare --user --map-root-user --mount`.
set -eu
writable=$1
shift
mount --bind "$writable" "$writable"
while read -r _ place kind _; do
    case "$kind:$place" in
        proc:* | sysfs:* | cgroup*:* | *:/dev | *:/dev/* | *:/proc* | *:/sys* | *:"$writable") ;;
        *) mount -o remount,bind,ro "$place" ;;
    esac
done </proc/self/mounts
exec unshare --user --map-user=12345 --map-group=12345 -- "$@"
