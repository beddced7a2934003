"""What a cubin's ELF file says of its kernels, without a disassembler."""

from __future__ import annotations

import struct
from collections.abc import Iterator

#: kinds and attributes of `.nv.info`, and the size of an ELF symbol
_SIZED, _FRAME_BYTES, _REGISTER_COUNT, _SYMBOL_BYTES = 4, 0x11, 0x2F, 24


def registers(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, by kernel."""
    return _told(cubin, _REGISTER_COUNT)


def frame_bytes(cubin: bytes) -> dict[str, int]:
    """Bytes of local memory of a thread, by kernel: registers that did not fit, and arrays."""
    return _told(cubin, _FRAME_BYTES)


def _told(cubin: bytes, which: int) -> dict[str, int]:
    """An attribute of every kernel: pairs of symbol and number in the section `.nv.info`."""
    parts = dict(_sections(cubin))
    names, symbols = parts[".strtab"], parts[".symtab"]
    found: dict[str, int] = {}
    info, at = parts.get(".nv.info", b""), 0
    while at + 4 <= len(info):
        kind, attribute, size = struct.unpack_from("<BBH", info, at)
        if kind == _SIZED and attribute == which:
            symbol, number = struct.unpack_from("<II", info, at + 4)
            start = struct.unpack_from("<I", symbols, symbol * _SYMBOL_BYTES)[0]
            found[names[start : names.index(b"\0", start)].decode()] = number
        at += 4 + (size if kind == _SIZED else 0)
    return found


def _sections(cubin: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the sections of a 64-bit ELF file."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    strings = headers[names_index][4]
    for header in headers:
        start = strings + header[0]
        name = cubin[start : cubin.index(b"\0", start)].decode()
        yield name, cubin[header[4] : header[4] + header[5]]
