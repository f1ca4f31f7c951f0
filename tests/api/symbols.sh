#!/bin/sh
# SPDX-License-Identifier: MIT
# symbols.sh LIBRARY LIST VERSION SONAME HEADER... - what the library exports, what LIST names and what the headers
# declare as SHMALLOC_API are the same; all that is exported has a version, at most VERSION; the library is SONAME.
set -eu
library=$1 list=$2 version=$3 soname=$4
shift 4
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

nm -D --defined-only "$library" | awk '$2 != "A" { print $3 }' >"$work/versioned"
sed 's/@.*//' "$work/versioned" | LC_ALL=C sort >"$work/exported"
# A declaration may break before its name: join lines, end each at ';', then take the name before '('.
cat "$@" | tr '\n' ' ' | tr ';' '\n' |
    sed -n 's/.*SHMALLOC_API [^(]*\(shmalloc_[a-z_]*\)(.*/\1/p' | LC_ALL=C sort >"$work/declared"

failed=0
diff "$list" "$work/exported" >"$work/diff" ||
    { echo "in the list (<), exported (>):"; cat "$work/diff"; failed=1; }
diff "$list" "$work/declared" >"$work/diff" ||
    { echo "in the list (<), declared (>):"; cat "$work/diff"; failed=1; }
if grep -v "@@SHMALLOC_$version\$" "$work/versioned"; then
    echo "^ exported without the version SHMALLOC_$version"
    failed=1
fi
readelf -d "$library" | grep -q "SONAME.*\[$soname\]" || { echo "the library is not $soname"; failed=1; }
exit $failed
