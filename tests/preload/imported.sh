#!/bin/sh
# SPDX-License-Identifier: MIT
# imported.sh LIBRARY NAMES - the library takes from others what the file NAMES allows, and nothing else.
set -eu
case $(uname -m) in
x86_64 | aarch64 | riscv64) ;;
*) echo "src/platform/direct.h does not know this machine" && exit 77 ;;
esac
ldd --version 2>&1 | grep -qi 'glibc\|gnu libc' || { echo "src/platform/direct_mutex.h does not know this C library" && exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
nm -D --undefined-only "$1" | sed 's/@.*//; s/.* //; s/^__isoc[0-9]*_//; s/^__\(.*\)_chk$/\1/; s/64$//' |
    LC_ALL=C sort -u >"$work/imported"
sed 's/#.*//; /^$/d' "$2" | LC_ALL=C sort -u >"$work/allowed"
[ -s "$work/imported" ]
LC_ALL=C comm -23 "$work/imported" "$work/allowed" >"$work/more"
if [ -s "$work/more" ]; then
    echo "imported by malloc; use a system call of src/platform/direct.h, or say in $2 why it can wait for no lock:"
    cat "$work/more"
    exit 1
fi
