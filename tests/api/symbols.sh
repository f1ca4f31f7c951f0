#!/bin/sh
# SPDX-License-Identifier: MIT
# symbols.sh LIBRARY LIST HEADER - what the library exports, what LIST names and what the header
# declares as SHMALLOC_API are the same.
set -eu
library=$1 list=$2 header=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

nm -D --defined-only "$library" | awk '{ print $3 }' | LC_ALL=C sort >"$work/exported"
# A declaration may break before its name: join lines, end each at ';', then take the name before '('.
tr '\n' ' ' <"$header" | tr ';' '\n' |
    sed -n 's/.*SHMALLOC_API [^(]*\(shmalloc_[a-z_]*\)(.*/\1/p' | LC_ALL=C sort >"$work/declared"

failed=0
diff "$list" "$work/exported" >"$work/diff" ||
    { echo "in the list (<), exported (>):"; cat "$work/diff"; failed=1; }
diff "$list" "$work/declared" >"$work/diff" ||
    { echo "in the list (<), declared (>):"; cat "$work/diff"; failed=1; }
exit $failed
