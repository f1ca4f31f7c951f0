#!/bin/sh
# SPDX-License-Identifier: MIT
# transcript.sh FOLDER FILE - run the commands of FILE, the lines that begin with "$ ", in an empty
# folder with the programs of FOLDER in the path; what they print must be what FILE says.
set -eu
PATH=$1:$PATH
expected=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/folder"
cd "$work/folder"

grep '^\$ ' "$expected" | while IFS= read -r line; do
    printf '%s\n' "$line"
    status=0
    sh -c "${line#??}" 2>>"$work/errors" </dev/null || status=$?
    [ "$status" = 0 ] || echo "exit status $status"
done >"$work/found"
diff "$expected" "$work/found" || { echo "expected (<), found (>); errors:"; cat "$work/errors"; exit 1; }
