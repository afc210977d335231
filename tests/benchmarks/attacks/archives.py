"""Checkpoints that no `savez` writes: archives that claim more than they have, and headers that are hard to read."""

import json
import warnings
import zipfile

import numpy as np
from numpy.lib import format as npy

PARAMETER = "params/embed.w_VD"


def write(path, header, arrays):
    """Forge a checkpoint."""
    np.savez(path, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)


def cases(header, arrays):
    """(name, function that writes it to a path) of each."""
    for function in (doubled, bomb, claims, claims_in_header, nested, many_digits, nothing_after, nothing_before,
                     edited, folder):
        yield function.__doc__, lambda path, function=function: function(path, header | {"sealed": False}, arrays)


def doubled(path, header, arrays):
    """an entry twice"""
    write(path, header, arrays)
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings(action="ignore"):
        archive.writestr(f"{PARAMETER}.npy", archive.read(f"{PARAMETER}.npy"))


def bomb(path, header, arrays):
    """a bomb in the history"""
    write(path, header | {"arrays": sorted([*arrays, "history/bomb"])}, arrays)
    _add(path, "history/bomb", (1 << 28,), "<f8", 1 << 31)


def claims(path, header, arrays):
    """a parameter of 4 GB"""
    write(path, header, {name: array for name, array in arrays.items() if name != PARAMETER})
    _add(path, PARAMETER, (1 << 25, 32), "<f4", 1 << 32)


def claims_in_header(path, header, arrays):
    """a parameter that claims 2 TB and has nothing"""
    write(path, header, {name: array for name, array in arrays.items() if name != PARAMETER})
    _add(path, PARAMETER, (1 << 34, 32), "<f4", 0)


def _add(path, name, shape, dtype, size):
    """Add an array of zeros, whose header claims a shape and which has `size` bytes."""
    with (zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive,
          archive.open(f"{name}.npy", "w", force_zip64=True) as file):
        npy.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))


def nested(path, header, arrays):
    """a header that is nested a million deep"""
    np.savez(path, header=np.frombuffer(b"[" * 10**6, np.uint8), **arrays)


def many_digits(path, header, arrays):
    """a header with a number of 100,000 digits"""
    text = b'{"format": "minimoe checkpoint", "version": ' + b"9" * 10**5 + b"}"
    np.savez(path, header=np.frombuffer(text, np.uint8), **arrays)


def nothing_after(path, header, arrays):
    """a terabyte of nothing after it"""
    write(path, header, arrays)
    with open(path, "rb+") as file:
        file.truncate(1 << 40)


def nothing_before(path, header, arrays):
    """64 GB of nothing before it"""
    write(path, header, arrays)
    whole = path.read_bytes()
    with open(path, "wb") as file:
        file.seek(1 << 36)
        file.write(whole)


def edited(path, header, arrays):
    """an array whose shape was edited in the file"""
    write(path, header, arrays)
    path.write_bytes(path.read_bytes().replace(b"(%d, 32)" % len(header["characters"]), b"(99, 32)"))


def folder(path, header, arrays):
    """a folder"""
    path.mkdir()
