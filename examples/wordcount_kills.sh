#!/bin/sh
# SPDX-License-Identifier: MIT
# wordcount_kills.sh WORDCOUNT FOLDER... - count the words of the folders' files, many times over, with
# three workers, of whom two are killed on the way; the count must be what coreutils find.
set -eu
wordcount=$1
shift
copies=20
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export LC_ALL=C
hit=0

find "$@" -type f -print0 | sort -z >"$work/once"
for _ in $(seq $copies); do cat "$work/once"; done >"$work/names"
# '$a\' ends a file's last line, so that its last word does not run into the next file's first.
# shellcheck disable=SC1003,SC2016
xargs -0 sed -s '$a\' <"$work/once" | tr -cs A-Za-z '\n' | grep . | sort | uniq -c |
    awk -v copies=$copies '{ print $2 "\t" copies * $1 }' | sort >"$work/expected"

for delay in 0.003 0.01 0.02 0.03 0.05 0.08 0.12 0.2; do
    rm -f "$work/heap"
    "$wordcount" add "$work/heap" <"$work/names"
    pids=
    for _ in 1 2 3; do
        "$wordcount" work "$work/heap" >/dev/null &
        pids="$pids $!"
    done
    sleep "$delay"
    # shellcheck disable=SC2086 # one word each
    set -- $pids
    kill -9 "$1" 2>/dev/null || true
    sleep 0.01
    kill -9 "$2" 2>/dev/null || true
    for victim in "$1" "$2"; do
        wait "$victim" 2>/dev/null || hit=$((hit + 1))
    done
    wait "$3" || { echo "the worker that was left failed (delay $delay)"; exit 1; }
    "$wordcount" dump "$work/heap" 2>/dev/null | sort >"$work/found"
    cmp "$work/expected" "$work/found" || { echo "the counts differ (delay $delay)"; exit 1; }
done
echo "workers killed at their work: $hit of 16"
