#!/bin/sh
# SPDX-License-Identifier: MIT
# libcs.sh SOURCES INCLUDE SOURCE CC... - builds the library and SOURCE with CC and with musl-gcc. Each works with a heap
# that it made itself, and refuses the other's, whose mutexes it would misread, with an explanation.
set -eu
sources=$1 include=$2 source=$3
shift 3
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

command -v musl-gcc >/dev/null || { echo "musl-gcc is missing: install musl-tools"; exit 1; }
for libc in glibc musl; do
    [ $libc = glibc ] || set -- musl-gcc
    # shellcheck disable=SC2046 # words
    "$@" -std=gnu11 -O1 -D_GNU_SOURCE -Wall -Werror -I"$include" -I"$sources" -o "$root/$libc" "$source" \
        $(find "$sources" -name '*.c' ! -path '*/preload/*' ! -path '*/crashtest/*') -pthread
    [ "$("$root/$libc" "$root/$libc.heap")" = hello ] || { echo "$libc: no heap of its own"; exit 1; }
done

for pair in "glibc musl" "musl glibc"; do
    program=${pair% *} heap=$root/${pair#* }.heap
    cp "$heap" "$root/before"
    if "$root/$program" "$heap" 2>"$root/answer"; then
        echo "$program opens ${pair#* }'s heap"
        exit 1
    fi
    cat "$root/answer"
    grep -q 'made with a C library whose mutexes' "$root/answer"
    cmp "$heap" "$root/before"
done
