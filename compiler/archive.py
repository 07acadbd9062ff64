"""The one way npuc lays out a zip file: a pure function of member names, sizes and CRCs.

Members are stored, sorted and stamped 1980-01-01 with mode 0644; there are no gaps, no data
descriptors and no extra fields except zip64's. Since every byte outside the members' contents
follows from (name, size, CRC-32, comment), a reader can rebuild those bytes and compare, which
finds any change to them. Layout and field values: PKWARE APPNOTE.TXT 6.3.10, sections 4.3 to 4.5.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

LIMIT = 0xFFFFFFFF
"""Sizes and offsets from here on go into zip64 fields."""

_MANY = 0xFFFF
_DOS_DATE = (1 << 5) | 1  # 1980-01-01, the earliest date a zip can hold
_UNIX_FILE = 0o100644 << 16
_PLAIN, _ZIP64 = 20, 45  # "version needed to extract"
_UNIX = 3 << 8

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_CRC_AT = 16  # offset of the CRC-32 in a central record


@dataclass(frozen=True, slots=True)
class Entry:
    """One member: its name (ASCII), size in bytes and CRC-32."""

    name: str
    size: int
    crc: int = 0


def local_header(entry: Entry) -> bytes:
    """Return the bytes before a member's content."""
    name = entry.name.encode("ascii")
    extra, size, need = b"", entry.size, _PLAIN
    if size >= LIMIT:
        extra, size, need = struct.pack("<2H2Q", 1, 16, size, size), 0xFFFFFFFF, _ZIP64
    head = _LOCAL.pack(
        b"PK\x03\x04", need, 0, 0, 0, _DOS_DATE, entry.crc, size, size, len(name), len(extra)
    )
    return head + name + extra


def placed(entries: Iterable[Entry]) -> Iterator[tuple[Entry, int]]:
    """Yield every entry with the offset of its local header; the CRC has no influence."""
    offset = 0
    for entry in entries:
        yield entry, offset
        offset += len(local_header(entry)) + entry.size


def tail_offset(entries: Iterable[Entry]) -> int:
    """Return the offset of the central directory, which follows the last member."""
    return sum(len(local_header(entry)) + entry.size for entry in entries)


def tail(entries: Iterable[Entry], comment: bytes) -> bytes:
    """Return everything after the last member: central directory, end records, comment."""
    known = tuple(entries)
    records = [_central(entry, offset) for entry, offset in placed(known)]
    start, size, count = tail_offset(known), sum(map(len, records)), len(records)
    end64 = b""
    if start >= LIMIT or size >= LIMIT or count >= _MANY:
        fields = (b"PK\x06\x06", _END64.size - 12, _UNIX | _ZIP64, _ZIP64, 0, 0)
        end64 = _END64.pack(*fields, count, count, size, start)
        end64 += _LOCATOR.pack(b"PK\x06\x07", 0, start + size, 1)
    short = min(count, _MANY)
    start, size = _capped(start), _capped(size)
    end = _END.pack(b"PK\x05\x06", 0, 0, short, short, size, start, len(comment))
    return b"".join(records) + end64 + end + comment


def crcs(entries: Iterable[Entry], tail: bytes) -> Iterator[int]:
    """Yield the CRC-32 that a central directory laid out by `tail` gives for every entry."""
    at = 0
    for entry, offset in placed(entries):
        field = tail[at + _CRC_AT : at + _CRC_AT + 4]
        yield int.from_bytes(field, "little")
        at += len(_central(entry, offset))


def first_size(head: bytes) -> int | None:
    """Return the size of the first member from its local header; None where it is not ours."""
    if len(head) < _LOCAL.size or head[:4] != b"PK\x03\x04":
        return None
    return int(_LOCAL.unpack_from(head)[7])


def _central(entry: Entry, offset: int) -> bytes:
    name = entry.name.encode("ascii")
    wide = [entry.size, entry.size] if entry.size >= LIMIT else []
    wide += [offset] if offset >= LIMIT else []
    extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    need = _ZIP64 if wide else _PLAIN
    size, place = _capped(entry.size), _capped(offset)
    head = _CENTRAL.pack(
        *(b"PK\x01\x02", _UNIX | need, need, 0, 0, 0, _DOS_DATE, entry.crc, size, size),
        *(len(name), len(extra), 0, 0, 0, _UNIX_FILE, place),
    )
    return head + name + extra


def _capped(number: int) -> int:
    return 0xFFFFFFFF if number >= LIMIT else number
