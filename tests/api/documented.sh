#!/bin/sh
# SPDX-License-Identifier: MIT
# documented.sh SOURCE_ROOT - the program in the header's comment and the first C program in the README
# are examples/counter.c, which is built and run as a test of its own.
set -eu
root=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

sed -n '/^#include <shmalloc/,$p' "$root/examples/counter.c" >"$work/example"
sed -n '/@code/,/@endcode/p' "$root/include/shmalloc/shmalloc.h" |
    sed -e '1d' -e '$d' -e 's/^ \* \{0,3\}//' >"$work/header"
sed -n '/^```c$/,/^```$/p' "$root/README.md" | sed -e '1d' -e '/^```$/,$d' >"$work/readme"

failed=0
for quoted in header readme; do
    [ -s "$work/$quoted" ] || { echo "no program in the $quoted"; exit 1; }
    diff "$work/example" "$work/$quoted" || { echo "^ examples/counter.c and the $quoted differ"; failed=1; }
done
exit $failed
