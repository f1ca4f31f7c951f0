#!/bin/sh
# SPDX-License-Identifier: MIT
# install.sh BUILD PREFIX LIBDIR SOURCE CRASHTEST VERSION SOVERSION CC... - installs BUILD into a temporary root, builds SOURCE and
# CRASHTEST with what pkg-config says, shared and static, and runs them.
set -eu
build=$1 prefix=$2 libdir=$3 source=$4 crashtest=$5 version=$6 soversion=$7
shift 7
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

meson install -C "$build" --no-rebuild --quiet --destdir "$root" >"$root/log" 2>&1 ||
    { cat "$root/log"; exit 1; }
for file in include/shmalloc/shmalloc.h include/shmalloc/version.h "$libdir/libshmalloc.so" \
    "$libdir/libshmalloc.a" "$libdir/pkgconfig/shmalloc.pc" \
    include/shmalloc/crashtest.h "$libdir/libshmalloc-crashtest.so" \
    "$libdir/libshmalloc-crashtest.a" "$libdir/pkgconfig/shmalloc-crashtest.pc"; do
    [ -e "$root$prefix/$file" ] || { echo "not installed: $prefix/$file"; exit 1; }
done

# The .pc file names its prefix once; here that is below the temporary root.
export PKG_CONFIG_PATH="$root$prefix/$libdir/pkgconfig"
flags=$(pkg-config --define-variable=prefix="$root$prefix" --cflags --libs shmalloc)
export LD_LIBRARY_PATH="$root$prefix/$libdir"

# shellcheck disable=SC2086 # flags are words
"$@" -std=c11 -Wall -Wextra -Werror -o "$root/shared" "$source" $flags
[ "$("$root/shared" "$root/shared.heap")" = hello ]
readelf -d "$root/shared" | grep -q "NEEDED.*\[libshmalloc\.so\.$soversion\]" ||
    { echo "not linked with libshmalloc.so.$soversion"; exit 1; }
readelf -V "$root/shared" | grep -q "Name: SHMALLOC_$soversion " ||
    { echo "does not ask for the version SHMALLOC_$soversion of its symbols"; exit 1; }
[ "$(pkg-config --modversion shmalloc shmalloc-crashtest | sort -u)" = "$version" ] ||
    { echo "pkg-config says another version than $version"; exit 1; }

"$@" -std=c11 -I"$root$prefix/include" -o "$root/static" "$source" \
    "$root$prefix/$libdir/libshmalloc.a" -pthread
[ "$("$root/static" "$root/static.heap")" = hello ]

# shellcheck disable=SC2046 # words
"$@" -std=c11 -Wall -Wextra -Werror -o "$root/crashtest" "$crashtest" \
    $(pkg-config --define-variable=prefix="$root$prefix" --cflags --libs shmalloc-crashtest)
"$root/crashtest" --keep "$root"
"$@" -std=c11 -I"$root$prefix/include" -o "$root/crashtest-static" "$crashtest" \
    "$root$prefix/$libdir/libshmalloc-crashtest.a" "$root$prefix/$libdir/libshmalloc.a" -pthread
"$root/crashtest-static" --keep "$root" --dead

# The tool is there unless it was left out of the build.
inspect=$root$prefix/bin/shmalloc-inspect
if [ -e "$inspect" ]; then
    "$inspect" check "$root/static.heap"
    [ -e "$root$prefix/share/man/man1/shmalloc-inspect.1" ] || { echo "no manual page"; exit 1; }
fi
[ -e "$root$prefix/share/man/man3/shmalloc-crashtest.3" ] || { echo "no manual page of the kit"; exit 1; }

# So is what runs other programs; it finds its library wherever both were moved to.
run=$root$prefix/bin/shmalloc-run
if [ -e "$run" ]; then
    [ "$("$run" sh -c 'echo $LD_PRELOAD')" = "$(realpath "$root$prefix/$libdir/libshmalloc-preload.so")" ] ||
        { echo "shmalloc-run finds another library"; exit 1; }
    [ -e "$root$prefix/share/man/man1/shmalloc-run.1" ] || { echo "no manual page"; exit 1; }
fi
echo "installed, linked and run: shared and static"
