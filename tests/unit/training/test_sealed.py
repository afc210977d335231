"""An archive of arrays trusts nothing: false claims about sizes are refused before they take memory."""

import io
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
from numpy.lib import format as npy

from minimoe.training import sealed

ARRAYS = {"a": np.arange(6.0).reshape(2, 3), "b": np.asfortranarray(np.arange(6).reshape(2, 3)), "c": np.array("text"),
          "d": np.zeros((0, 4), np.float32)}


def write(path, arrays=ARRAYS, **options):
    with open(path, "wb+") as file:
        sealed.write(file, arrays, **options)


def read(path):
    with open(path, "rb") as file:
        archive = sealed.Archive(file)
        arrays = {name: archive.array(name) for name in archive.names}
        archive.check_seal()
        return arrays


@pytest.mark.parametrize("compressed", [False, True])
def test_what_is_written_is_read_by_us_and_by_numpy(tmp_path, compressed):
    write(tmp_path / "a.npz", compressed=compressed)
    with np.load(tmp_path / "a.npz") as file:
        for found in (dict(file), read(tmp_path / "a.npz")):
            assert [*found] == [*ARRAYS]
            for name, array in ARRAYS.items():
                np.testing.assert_array_equal(found[name], array, strict=True)


def test_the_seal_is_the_checksum_of_all_before_it_and_one_that_is_cut_off_or_another_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    write(path)
    whole = path.read_bytes()
    assert whole[-14:-8] == b"crc32 " and int(whole[-8:], 16) == sealed.zlib.crc32(whole[:-14])
    for other in (whole[:-1], whole[:-1] + b"x", whole + b"x", whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]):
        path.write_bytes(other)
        with pytest.raises(ValueError, match="do not match its checksum"), open(path, "rb") as file:
            sealed.Archive(file).check_seal()


def entry(shape, content, descr="<f8"):
    """The bytes of an .npy file that claims a shape."""
    file = io.BytesIO()
    npy.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue() + content


@pytest.mark.parametrize(("entries", "kind", "words"), [
    ([("a", entry((1 << 40,), b"12345678"))], zipfile.ZIP_STORED, r"a claims the shape \(1099511627776,\) and has 8"),
    ([("a", entry((1 << 20,), bytes(1 << 23)))], zipfile.ZIP_DEFLATED, "its entries claim 8,388,736 bytes"),
    ([("a", entry((1,), bytes(8)))] * 2, zipfile.ZIP_STORED, "an entry occurs twice"),
    ([("a", entry((1,), bytes(8)))], zipfile.ZIP_LZMA, "compressed in an unknown way"),
    ([("a", b"\x93NUMPY\3\0" + bytes(100))], zipfile.ZIP_STORED, r"unknown version \(3, 0\)"),
    ([("a", entry((1,), bytes(8), "|O"))], zipfile.ZIP_STORED, "allow_pickle")])
def test_what_lies_is_refused_and_takes_no_memory(tmp_path, entries, kind, words):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", kind) as archive, warnings.catch_warnings(action="ignore"):
        for name, content in entries:
            archive.writestr(f"{name}.npy", content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=words):
        read(tmp_path / "a.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_long_file_with_a_small_archive_in_it_is_refused_unread_and_so_is_an_entry_too_large_for_its_shape(tmp_path):
    path = tmp_path / "a.npz"
    write(path)
    small = path.read_bytes()
    with open(path, "rb") as file:
        archive = sealed.Archive(file)
        archive.check_size("a", (2, 3))
        archive._entries["a"].file_size = 1 << 32
        with pytest.raises(ValueError, match=r"a claims 4,294,967,296 bytes, but an array of shape \(2, 3\)"):
            archive.check_size("a", (2, 3))
    with open(path, "wb") as file:
        file.truncate(1 << 36)  # a hole, which takes no room on the disk
        file.seek(1 << 36)
        file.write(small)
    with pytest.raises(ValueError, match="68,719,4.* bytes, of which its entries claim"):
        read(path)
