#!/bin/sh
# The `CC` of an image without a compiler: hands out the library that prebuild_triton.py has made, for the C file that
# it was made of. Triton calls it as `CC SOURCE ... -o LIBRARY ...`.
set -eu
folder=$(dirname "$0")
source=$1
while [ "$#" -gt 1 ] && [ "$1" != -o ]; do shift; done
if [ "$#" -lt 2 ] || ! cmp -s "$source" "$folder/cuda_utils.c"; then
    echo "this image has no C compiler, only the launcher of Triton's kernels in $folder, and $source is not its source" >&2
    exit 1
fi
cp "$folder/cuda_utils.so" "$2"
