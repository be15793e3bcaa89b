#!/usr/bin/env bash
# A run on one machine with Docker, NVIDIA's driver and the NVIDIA Container Toolkit:
#
#   infra/docker/run.sh registry.example.com/m2f-pipeline@sha256:... night.yaml
#
# The job starts a Ray of its own in the container and ends with its exit code (docs/operations.md). Keys of the store:
# AWS_* variables of this shell, or ~/.aws if user 1000 may read it, or the role of the machine. Without GPUs: GPUS=none,
# and `device: cpu` in night.yaml. Every night, in cron: 0 1 * * *  infra/docker/run.sh IMAGE night.yaml 2>>night.log
set -euo pipefail
[ $# -eq 2 ] || { echo "usage: run.sh IMAGE@sha256:DIGEST night.yaml" >&2; exit 2; }
image=$1 settings=$2
[[ $image == *@sha256:* ]] || { echo "run.sh: error: $image has no digest; name the image as NAME@sha256:..." >&2; exit 2; }
[ -r "$settings" ] || { echo "run.sh: error: $settings cannot be read" >&2; exit 2; }

options=(
    --rm --name m2f-night # a second container of this name is refused, as the lease refuses a second run
    --read-only --mount type=volume,destination=/tmp # Ray's files, the checkpoint, the comparison with the tables
    --shm-size 8g # Ray's object store
    --user 1000:1000 --cap-drop ALL --security-opt no-new-privileges --pids-limit 4096
    --stop-timeout 90 # after `docker stop` the driver commits what it has and releases the lease
    --mount "type=bind,source=$(realpath "$settings"),destination=/etc/m2f/night.yaml,readonly"
)
[ "${GPUS:-all}" = none ] || options+=(--gpus "${GPUS:-all}")
for name in AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_PROFILE AWS_REGION AWS_ENDPOINT_URL; do
    [ -z "${!name:-}" ] || options+=(--env "$name") # by name: the value is not in the process list
done
[ ! -d ~/.aws ] || options+=(--mount "type=bind,source=$(realpath ~/.aws),destination=/tmp/.aws,readonly")

exec docker run "${options[@]}" "$image" m2f-segment --config /etc/m2f/night.yaml
