#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""names.py SOURCE_DIR - each static function of src/ has a name of its own, so that a debugger, a profile and a search
say which one it is."""
import collections
import pathlib
import re
import sys

DEFINITION = re.compile(r'^static\s+[^;={}()]*(?:__attribute__\(\(\w+\)\)\s*)?[^;={}()]*?\b(?!__attribute__)(\w+)\([^;{]*\)\s*\{', re.M)


def main():
    files = collections.defaultdict(set)
    source = pathlib.Path(sys.argv[1])
    for path in source.rglob('*.[ch]'):
        for name in DEFINITION.findall(path.read_text()):
            files[name].add(str(path.relative_to(source)))
    if len(files) < 100:
        sys.exit(f'only {len(files)} static functions found: has the way to write them changed?')
    twice = {name: sorted(where) for name, where in files.items() if len(where) > 1}
    for name, where in sorted(twice.items()):
        print(f'{name}() is in {", ".join(where)}')
    return 1 if twice else 0


if __name__ == '__main__':
    sys.exit(main())
