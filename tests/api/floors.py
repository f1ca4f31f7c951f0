#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""floors.py SOURCE_DIR LIBRARY... - each folder of src/ uses itself and the folders below it only.

What an object of the static libraries needs (its undefined symbols) must be defined in its own folder or below, and
so must what a file includes. Public calls are symbols like others: who defines one lies below who calls it."""
import pathlib
import re
import subprocess
import sys

# From the roof to the ground. A file in src/ itself is a floor of its own name; folders on one line use none of
# each other. src/README.md says what each is.
FLOORS = [
    ['structures'],
    ['preload', 'crashtest'],
    ['api', 'api_tx'],
    ['life'],
    ['look'],
    ['commit'],
    ['tx'],
    ['names'],
    ['slots'],
    ['pages'],
    ['handle'],
    ['format'],
    ['platform'],
]
LEVEL = {folder: level for level, floor in enumerate(FLOORS) for folder in floor}


def may_use(folder, other):
    return folder == other or LEVEL[folder] < LEVEL[other]


def folder_of(path):
    return path.parts[0] if len(path.parts) > 1 else path.stem


def wrong_includes(source):
    for path in sorted(source.rglob('*.[ch]')):
        name = path.relative_to(source)
        for other in re.findall(r'^\s*#\s*include\s+"(\w+)[/.]', path.read_text(), re.M):
            if not may_use(folder_of(name), other):
                yield f'{name} includes a file of {other}/'


def folder_of_object(library, name):
    """Meson names the object of src/pages/spans.c pages_spans.c.o, in a library of a subfolder spans.c.o."""
    for part in (name.split('_')[0], name.split('.')[0], library.parent.name):
        if part in LEVEL:
            return part
    sys.exit(f'{name}: of which folder is it? Add that to FLOORS')


def symbols(libraries):
    """Where symbols are defined, and where they are needed: names of symbols, and a folder and an object each."""
    defined, needed = {}, []
    for library in libraries:
        table = subprocess.run(['nm', '-A', library], capture_output=True, text=True, check=True).stdout
        for line in table.splitlines():
            path, rest = line.split(':', 1)[1].rsplit(':', 1)
            name = pathlib.Path(path).name
            kind, symbol = rest.split()[-2:]
            if kind == 'U':
                needed.append((symbol, folder_of_object(library, name), name))
            elif kind.isupper():
                defined[symbol] = folder_of_object(library, name), name
    return defined, needed


def wrong_calls(libraries):
    defined, needed = symbols(libraries)
    if not defined:
        sys.exit('the objects define nothing: is this a build with link time optimisation?')
    for symbol, folder, name in sorted(needed):
        if symbol in defined and not may_use(folder, defined[symbol][0]):
            yield f'{name} uses {symbol} of {defined[symbol][1]}'


def main():
    source, libraries = pathlib.Path(sys.argv[1]), [pathlib.Path(path) for path in sys.argv[2:]]
    wrong = list(wrong_includes(source)) + list(wrong_calls(libraries))
    print('\n'.join(wrong) or 'every folder uses only what lies below it')
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
