"""Sparse matrices as bytes, and back: what a mask really saves on disk or in memory.

    dense     every number
    bitmask   one bit per number, then the kept numbers
    csr       the start of each row, the column of each kept number, the kept numbers (compressed sparse rows)
    n_of_m    N numbers from each M consecutive inputs of an output, then the place of each, ceil(log2 M) bits

Matrices are [inputs, outputs], with any leading axes; rows are inputs.  There is no header: shape, type and pattern are
known from the model.  Numbers are little-endian, and bits fill a byte from the lowest one.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minimoe import require
from minimoe.sparsity import masks


class Encoding(NamedTuple):
    """One way to write a matrix.

    encode(w, mask, pattern) -> bytes.   decode(data, shape, dtype, pattern) -> w.
    n_bytes(shape, n_kept, itemsize, pattern) -> the length of these bytes, by formula.
    """

    encode: Callable
    decode: Callable
    n_bytes: Callable


def encode(name, w, mask=None, pattern=None):
    """The kept numbers of an array as bytes.

    Args:
        name: a name of ENCODINGS.
        w: the array, [..., inputs, outputs].
        mask: which numbers are kept; None: those that are not 0.
        pattern: (N, M), for "n_of_m" only.
    Raises ValueError for a mask that does not fit w, or that keeps more than N of M.
    """
    w = require.array("w", w)
    mask = w != 0 if mask is None else np.asarray(mask)
    _check(name, w.shape, pattern)
    if mask.dtype != bool or mask.shape != w.shape:
        raise ValueError(f"mask is {mask.dtype} {mask.shape}: must be bool {w.shape}")
    return ENCODINGS[name].encode(w.astype(w.dtype.newbyteorder("<"), copy=False), mask, pattern)


def decode(name, data, shape, dtype, pattern=None):
    """Decode bytes to an array, 0 where nothing was kept.  Raises ValueError unless the number of bytes is right."""
    _check(name, shape, pattern)
    if not isinstance(data, (bytes, bytearray)):
        require.fail("data", data, "bytes")
    try:
        dtype = np.dtype(dtype)
    except TypeError:
        require.fail("dtype", dtype, "a type of numbers")
    try:
        w = ENCODINGS[name].decode(_Reader(data), shape, dtype.newbyteorder("<"), pattern)
    except IndexError as error:
        raise ValueError(f"{len(data)} bytes are not a {name} of shape {tuple(shape)}: {error}") from error
    return w.astype(dtype, copy=False)


def n_bytes(name, shape, n_kept, itemsize, pattern=None):
    """The length of an encoding in bytes, by formula.

    Args:
        name: a name of ENCODINGS.
        shape: shape of the array.
        n_kept: how many numbers are kept.
        itemsize: bytes per number.
        pattern: (N, M), for "n_of_m" only.
    """
    _check(name, shape, pattern)
    require.whole("n_kept", n_kept, 0, math.prod(shape))
    require.whole("itemsize", itemsize, 1)
    return ENCODINGS[name].n_bytes(tuple(shape), n_kept, itemsize, pattern)


def fits_pattern(mask, pattern):
    """Whether a mask keeps at most N of each M consecutive inputs, and M divides the number of inputs."""
    kept, group = pattern
    *leading, D, F = mask.shape
    return D % group == 0 and bool((mask.reshape(*leading, D // group, group, F).sum(axis=-2) <= kept).all())


def _check(name, shape, pattern):
    require.one_of("encoding", name, ENCODINGS)
    if len(require.sequence("shape", shape)) < 2 or not all(isinstance(n, (int, np.integer)) and n > 0 for n in shape):
        raise ValueError(f"shape = {tuple(shape)}: must be that of a matrix, [..., inputs, outputs]")
    if (pattern is None) == (name == "n_of_m"):
        raise ValueError(f"pattern = {pattern}: n_of_m needs one, (N, M), and the others have none")
    if pattern is not None:
        masks.check_pattern(pattern, shape[-2])


class _Reader:
    """Reads bytes from the front.  Raises IndexError if there are too few, or too many at the end."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, dtype, n):
        stop = self.at + np.dtype(dtype).itemsize * n
        if stop > len(self.data):
            raise IndexError(f"it needs {stop} or more")
        found, self.at = np.frombuffer(self.data, dtype, n, self.at), stop
        return found

    def end(self):
        if self.at != len(self.data):
            raise IndexError(f"it needs {self.at}")


def _encode_dense(w, mask, pattern):
    return np.where(mask, w, 0).astype(w.dtype).tobytes()


def _decode_dense(reader, shape, dtype, pattern):
    w = reader.take(dtype, math.prod(shape)).reshape(shape).copy()
    reader.end()
    return w


def _encode_bitmask(w, mask, pattern):
    return np.packbits(mask, bitorder="little").tobytes() + w[mask].tobytes()


def _decode_bitmask(reader, shape, dtype, pattern):
    size = math.prod(shape)
    bits = reader.take(np.uint8, -(-size // 8))
    mask = np.unpackbits(bits, count=size, bitorder="little").astype(bool)
    w = np.zeros(size, dtype)
    w[mask] = reader.take(dtype, int(mask.sum()))
    reader.end()
    return w.reshape(shape)


def index_type(largest):
    """The smallest unsigned type for whole numbers up to this one."""
    return np.min_scalar_type(largest).newbyteorder("<")


def _csr_types(shape):
    """Types of row starts and of columns: the smallest for a matrix of this shape, whatever is kept."""
    return index_type(math.prod(shape)), index_type(shape[-1] - 1)


def _encode_csr(w, mask, pattern):
    mask = mask.reshape(-1, w.shape[-1])
    starts, columns = np.append(0, np.cumsum(mask.sum(axis=1))), np.nonzero(mask)[1]
    start, column = _csr_types(w.shape)
    return starts.astype(start).tobytes() + columns.astype(column).tobytes() + w.reshape(mask.shape)[mask].tobytes()


def _decode_csr(reader, shape, dtype, pattern):
    rows, (start, column) = math.prod(shape[:-1]), _csr_types(shape)
    counts = np.diff(reader.take(start, rows + 1).astype(int), prepend=0)
    if counts[0] or (counts < 0).any():
        raise IndexError("its rows are out of order")
    columns = reader.take(column, counts.sum())
    if (columns >= shape[-1]).any():
        raise IndexError(f"there is no column {columns.max()}")
    w = np.zeros((rows, shape[-1]), dtype)
    w[np.repeat(np.arange(rows), counts[1:]), columns] = reader.take(dtype, len(columns))
    reader.end()
    return w.reshape(shape)


def _csr_bytes(shape, n_kept, itemsize, pattern):
    start, column = _csr_types(shape)
    return (math.prod(shape[:-1]) + 1) * start.itemsize + n_kept * (column.itemsize + itemsize)


def _encode_n_of_m(w, mask, pattern):
    if not fits_pattern(mask, pattern):
        raise ValueError(f"the mask keeps more than {pattern[0]} of {pattern[1]} consecutive inputs of an output")
    groups = _groups(np.where(mask, w, 0).astype(w.dtype), pattern)
    order = np.argsort(~_groups(mask, pattern), axis=-1, kind="stable")[..., :pattern[0]]
    place = np.sort(order, axis=-1)  # the kept numbers, and zeros where there are fewer than N
    bits = (place.reshape(-1, 1) >> np.arange(_bits(pattern))) & 1
    return np.take_along_axis(groups, place, axis=-1).tobytes() + np.packbits(bits.astype(bool), bitorder="little"
                                                                              ).tobytes()


def _decode_n_of_m(reader, shape, dtype, pattern):
    n_kept, n_bits = _pattern_kept(shape, pattern), _bits(pattern)
    values = reader.take(dtype, n_kept).reshape(-1, pattern[0])
    packed = reader.take(np.uint8, -(-n_kept * n_bits // 8))
    bits = np.unpackbits(packed, count=n_kept * n_bits, bitorder="little").reshape(n_kept, n_bits).astype(int)
    place = (bits << np.arange(n_bits)).sum(axis=1).reshape(values.shape)
    if (place >= pattern[1]).any():
        raise IndexError(f"a place is outside a group of {pattern[1]}")
    reader.end()
    groups = np.zeros((len(values), pattern[1]), dtype)
    np.put_along_axis(groups, place, values, axis=1)
    *leading, D, F = shape
    return groups.reshape(*leading, F, D).swapaxes(-1, -2)


def _n_of_m_bytes(shape, n_kept, itemsize, pattern):
    stored = _pattern_kept(shape, pattern)
    return stored * itemsize + -(-stored * _bits(pattern) // 8)


def _groups(w, pattern):
    """[..., outputs, groups of an output, M]."""
    across = w.swapaxes(-1, -2)
    return across.reshape(*across.shape[:-1], -1, pattern[1])


def _pattern_kept(shape, pattern):
    return math.prod(shape) // pattern[1] * pattern[0]


def _bits(pattern):
    return (pattern[1] - 1).bit_length()


ENCODINGS = {
    "dense": Encoding(_encode_dense, _decode_dense, lambda shape, n_kept, size, pattern: math.prod(shape) * size),
    "bitmask": Encoding(_encode_bitmask, _decode_bitmask, lambda shape, n_kept, size, pattern:
                        -(-math.prod(shape) // 8) + n_kept * size),
    "csr": Encoding(_encode_csr, _decode_csr, _csr_bytes),
    "n_of_m": Encoding(_encode_n_of_m, _decode_n_of_m, _n_of_m_bytes),
}
"""Name -> Encoding."""
