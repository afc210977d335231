"""Arrays in one file with a seal.  Nothing in the file is trusted before it is checked.

The file is an .npz, a zip archive of .npy files.  NumPy reads such files too, but trusts the sizes that they claim: an
entry of a few kilobytes can claim gigabytes, and NumPy allocates them.  Here sizes are compared with the length of the
file and with what the reader expects before anything is read.  The seal, in the comment at the end of the archive, is a
checksum of all bytes before it.  (Each entry has its own checksum, but nothing else protects the archive's directory.)
"""

import io
import math
import os
import zipfile
import zlib

import numpy as np
from numpy.lib import format as npy

SEAL = len("crc32 01234567")
"""Length of the seal in bytes."""

PIECE, SLACK, MOST_RATIO, NPY_HEADER = 1 << 20, 1 << 10, 100, 1 << 14
"""Bytes that are summed at a time; bytes of an entry besides its content; the largest ratio of content to compressed
size, from SLACK * SLACK bytes on; the largest size of an array's header in bytes."""

HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def write(file, arrays, compressed=False):
    """Write name -> array and the seal to a new file, open for writing and reading."""
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    file.seek(-2, os.SEEK_END)  # the length of the comment; NumPy writes no comment
    file.write(SEAL.to_bytes(2, "little"))
    file.write(_seal(file, file.tell()))


def _seal(file, length):
    """The seal of the first bytes of a file; leaves the file at their end."""
    file.seek(0)
    total = 0
    while length > 0 and (piece := file.read(min(length, PIECE))):
        total, length = zlib.crc32(piece, total), length - len(piece)
    return b"crc32 %08x" % total


class Archive:
    """An archive that is open for reading.

    names: of its arrays, in order.   sealed: whether it claims to have a seal.

    All methods raise ValueError, or what zipfile raises, for an archive that is damaged or claims false sizes.
    """

    def __init__(self, file):
        self._file, self._length = file, os.fstat(file.fileno()).st_size
        self._zip = zipfile.ZipFile(file)
        listed = self._zip.infolist()
        self._entries = {info.filename.removesuffix(".npy"): info for info in listed}
        self.names, self.sealed = [*self._entries], bool(self._zip.comment)
        if len(self.names) < len(listed):
            raise ValueError("an entry occurs twice")
        if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in listed):
            raise ValueError("an entry is compressed in an unknown way")
        content, claimed = (sum(getattr(info, size) for info in listed) for size in ("compress_size", "file_size"))
        if not content <= self._length <= content + SLACK * (len(listed) + 64):
            raise ValueError(f"{self._length:,} bytes, of which its entries claim {content:,}")
        if claimed > max(SLACK * SLACK, MOST_RATIO * self._length):
            raise ValueError(f"its entries claim {claimed:,} bytes, and the file has {self._length:,}")

    def check_size(self, name, shape):
        """Raise ValueError if an entry claims to be larger than an array of that shape can be."""
        size, most = self._entries[name].file_size, 16 * math.prod(shape) + NPY_HEADER
        if size > most:
            raise ValueError(f"{name} claims {size:,} bytes, but an array of shape {shape} has {most:,} at most")

    def array(self, name):
        """An array of numbers; an array of objects is never loaded."""
        size = self._entries[name].file_size
        with self._zip.open(self._entries[name]) as entry:
            content = io.BytesIO(entry.read(size))  # never more than it claims
        version = npy.read_magic(content)
        if version not in HEADERS:
            raise ValueError(f"{name} has the unknown version {version}")
        shape, _, dtype = HEADERS[version](content)
        if not dtype.hasobject and math.prod(shape) * dtype.itemsize != size - content.tell():
            raise ValueError(f"{name} claims the shape {shape} and has {size - content.tell():,} bytes")
        content.seek(0)
        return npy.read_array(content, allow_pickle=False)

    def check_seal(self):
        """Raise ValueError unless the seal matches the file."""
        if self._length < SEAL or _seal(self._file, self._length - SEAL) != self._file.read():
            raise ValueError("its bytes do not match its checksum")
