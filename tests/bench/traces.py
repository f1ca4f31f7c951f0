# SPDX-License-Identifier: MIT
"""Traces: what a program asked malloc for, as trace.h describes the file."""
import lzma
import struct

MAGIC = b"SHMTRACE"
ALLOCATE, FREE, RESIZE = range(3)
RECORD = struct.Struct("<3Q")  # recorder.c: address freed or resized, address allocated, bytes


def fnv1a(data):
    value = 2166136261
    for byte in data:
        value = (value ^ byte) * 16777619 & 0xFFFFFFFF
    return value


def leb128(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def pack(operations, count, slots):
    """The bytes of a trace of encoded operations."""
    return MAGIC + struct.pack("<4I", count, slots, len(operations), fnv1a(operations)) + operations


class Encoder:
    """Makes operations on slots of operations on addresses."""

    def __init__(self):
        self.out = bytearray()
        self.count = 0
        self.slot_of = {}    # address: slot
        self.vacant = []
        self.slots = 0
        self.previous = 0

    def operation(self, kind, value, slot):
        self.out += leb128(value << 2 | kind)
        self.count += 1
        self.previous = slot

    def distance(self, slot):
        moved = slot - self.previous
        return moved * 2 if moved >= 0 else -moved * 2 - 1

    def allocate(self, address, size):
        self.free(address)  # its free was not seen, or is still to come, of another thread
        if self.vacant:
            slot = self.vacant.pop()
        else:
            slot = self.slots
            self.slots += 1
        self.slot_of[address] = slot
        self.operation(ALLOCATE, max(size, 1), slot)

    def free(self, address):
        slot = self.slot_of.pop(address, None)
        if slot is not None:
            self.operation(FREE, self.distance(slot), slot)
            self.vacant.append(slot)

    def resize(self, old, address, size):
        if old != address:
            self.free(address)
        slot = self.slot_of.pop(old, None)
        if slot is None:
            self.allocate(address, size)
            return
        self.slot_of[address] = slot
        self.operation(RESIZE, self.distance(slot), slot)
        self.out += leb128(max(size, 1))

    def add(self, old, address, size):
        if old and address:
            self.resize(old, address, size)
        elif address:
            self.allocate(address, size)
        else:
            self.free(old)


def encode(recorded):
    """A trace of what recorder.c wrote."""
    encoder = Encoder()
    for old, address, size in RECORD.iter_unpack(recorded):
        if not old and not address:
            break
        encoder.add(old, address, size)
    return pack(bytes(encoder.out), encoder.count, encoder.slots)


def write(path, trace):
    with lzma.open(path, "wb", preset=9 | lzma.PRESET_EXTREME) as out:
        out.write(trace)


def unpack(path, out_path):
    """Unpack a trace for replay.c."""
    with lzma.open(path, "rb") as source, open(out_path, "wb") as out:
        out.write(source.read())


def counts(trace):
    """Number of operations, and of blocks that live at once at most."""
    return struct.unpack_from("<2I", trace, len(MAGIC))
