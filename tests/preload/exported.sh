#!/bin/sh
# SPDX-License-Identifier: MIT
# exported.sh LIBRARY MAP - the library shows the malloc family that MAP names, and nothing else.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
nm -D --defined-only "$1" | awk '{ print $3 }' | LC_ALL=C sort >"$work/exported"
sed -n '/^global:/,/^local:/s/^ *\([A-Za-z0-9_]*\);$/\1/p' "$2" | LC_ALL=C sort >"$work/named"
[ -s "$work/named" ]
diff "$work/named" "$work/exported"
