#!/bin/sh
# SPDX-License-Identifier: MIT
# header.sh FILE COMPILER ARGS... - the compiler must accept FILE without a word.
source=$1
shift
said=$("$@" "$source" 2>&1) || { printf '%s\n' "$said"; exit 1; }
[ -z "$said" ] || { printf '%s\n' "$said"; exit 1; }
