#!/usr/bin/env bash
# A run on a GPU of Hugging Face Jobs, which takes an image from a public registry or from a Space:
#
#   infra/hf-jobs/run.sh registry.example.com/m2f-pipeline@sha256:... \
#       --input s3://my-bucket/photographs --output s3://my-bucket/segments \
#       --model facebook/mask2former-swin-large-coco-panoptic --image-size 800:1333
#
# What follows the image are flags of jobs/segment_bucket.py; there is no file to mount. Needs `pip install
# huggingface_hub`, `hf auth login`, and the store's keys in this shell, which go to the job as secrets, by name. A job
# that runs into --timeout is ended; the same command continues its run. DRY_RUN=1 prints the job and starts nothing.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: run.sh IMAGE@sha256:DIGEST --input ... --output ..." >&2; exit 2; }
image=$1
shift
[[ $image == *@sha256:* ]] || { echo "run.sh: error: $image has no digest; name the image as NAME@sha256:..." >&2; exit 2; }

options=(--flavor "${FLAVOR:-a10g-small}" --timeout "${TIMEOUT:-6h}" --name m2f-night ${DRY_RUN:+--dry-run})
for name in AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN HF_TOKEN; do
    [ -z "${!name:-}" ] || options+=(--secrets "$name")
done
for name in AWS_REGION AWS_ENDPOINT_URL; do
    [ -z "${!name:-}" ] || options+=(--env "$name=${!name}")
done

exec hf jobs run "${options[@]}" "$image" m2f-segment --log-format json "$@"
