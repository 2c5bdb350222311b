"""Corrupt bytes as a disk, a broken transfer or an attacker would; a pure function of a generator."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**53, 2**63 - 1)
HEADER_BYTES = 600  # most formats describe their content there
WORDS = (
    b"-1",
    b"0",
    b"1e999",
    b"NaN",
    b"null",
    b"true",
    b'"x"',
    b"[]",
    b"{}",
    b"999999999999999999999",
    b"\x00",
    b"\xff",
)


def _place(data: bytearray, rng: random.Random) -> int:
    """Return a position in data, biased toward the beginning and the end."""
    if not data:
        return 0
    among = rng.choice((len(data), min(HEADER_BYTES, len(data)), min(64, len(data))))
    place = rng.randrange(among)
    return len(data) - 1 - place if rng.random() < 0.15 else place


def _flip(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytearray:
    for _ in range(rng.choice((1, 1, 2, 8))):
        if data:
            data[_place(data, rng)] ^= 1 << rng.randrange(8)
    return data


def _set_byte(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytearray:
    if data:
        data[_place(data, rng)] = rng.randrange(256)
    return data


def _cut(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytearray:
    return data[: rng.randrange(len(data) + 1)]


def _delete(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytearray:
    start = _place(data, rng)
    del data[start : start + rng.choice((1, 2, 4, 16, 64, 1000))]
    return data


def _repeat(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytearray:
    start = _place(data, rng)
    block = data[start : start + rng.choice((1, 4, 16, 64, 1000))]
    data[start:start] = block * rng.choice((1, 1, 2, 30))
    return data


def _swap(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytearray:
    size = rng.choice((1, 4, 16, 64))
    first, last = sorted((_place(data, rng), _place(data, rng)))
    if last - first >= size and last + size <= len(data):
        data[first : first + size], data[last : last + size] = data[last : last + size], data[first : first + size]
    return data


def _number(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytearray:
    """Overwrite bytes with a number that formats trip over, in any width and byte order."""
    code, bits = rng.choice((("B", 8), ("H", 16), ("I", 32), ("Q", 64)))
    value = rng.choice(INTERESTING) % 2**bits
    packed = struct.pack(rng.choice("<>") + code, value)
    start = _place(data, rng)
    data[start : start + len(packed)] = packed
    return data


def _digits(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytearray:
    """Replace a decimal digit with another number."""
    places = [index for index, byte in enumerate(data[:8192]) if 0x30 <= byte <= 0x39]
    if places:
        place = rng.choice(places)
        data[place : place + 1] = rng.choice((b"-1", b"0", b"99", b"1e9", b"1e400", b"9" * 30, b"", b".5", b"0x7f"))
    return data


def _word(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytearray:
    start = _place(data, rng)
    data[start : start + rng.choice((0, 1, 4))] = rng.choice(WORDS)
    return data


def _splice(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytearray:
    other = rng.choice(others) if others else bytes(data)
    return data[: _place(data, rng)] + other[rng.randrange(len(other) + 1) :]


def _zeros(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytearray:
    start, size = _place(data, rng), rng.choice((4, 64, 512, 4096))
    return data[:start] + bytes(min(size, len(data) - start)) + data[start + size :]


MUTATIONS: tuple[Callable[[bytearray, random.Random, Sequence[bytes]], bytearray], ...] = (
    _flip, _flip, _set_byte, _cut, _delete, _repeat, _swap, _number, _number, _digits, _word, _splice, _zeros,
)  # fmt: skip


def mutate(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Return data with one to five changes; `others` are files of the same kind to splice in."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        changed = rng.choice(MUTATIONS)(changed, rng, others)
    return bytes(changed)
