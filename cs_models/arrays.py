"""Reading `.npy` and `.mat` files of unknown origin: nothing is unpickled, and stated sizes are checked first."""

from __future__ import annotations

import math
import os
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.lib import format as npy

from cs_models.errors import UserError, first_line
from cs_models.host_memory import check_memory

# numpy's own limit on what it evaluates; headers of arrays of numbers have about a hundred characters.
_LONGEST_HEADER = 10_000
# Array classes of a .mat file; those between are the other kinds of numbers.
_SPARSE, _UINT64 = 5, 15
_MAT_OTHERS = {1: "a cell array", 2: "a structure", 3: "an object", 4: "text", 16: "a function", 17: "an object"}
_COMPRESSED = 15


def read_npy(path: str | Path) -> np.ndarray:
    """The array in a `.npy` file, in native byte order; long doubles become doubles.

    Args:
        path: the file.

    Raises:
        UserError: if the file is missing or unreadable, is an `.npz` archive or of another format,
            holds pickled objects, does not have the length that its header states, or does not fit into memory.
    """
    try:
        # numpy warns of headers that Python 2 wrote, and of malformed ones before it refuses them.
        with open(path, "rb") as file, warnings.catch_warnings(action="ignore"):
            shape, dtype, start = _read_header(file)
            _check_length(shape, dtype, os.fstat(file.fileno()).st_size - start)
            check_memory(math.prod(shape) * (dtype.itemsize + 16), f"an array of shape {_short(shape)}")
            file.seek(0)
            array = npy.read_array(file, allow_pickle=False)
    except UserError as error:
        raise UserError(f"cannot read '{path}': {error}") from None
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror or first_line(error)}") from error
    except Exception as error:  # numpy evaluates the header as Python, which fails in many ways
        raise UserError(f"cannot read '{path}': not a whole .npy file ({first_line(error)[:100]})") from error
    return _native(array)


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, type and first byte of the numbers."""
    beginning = file.read(12)
    if beginning.startswith(b"PK"):
        raise UserError("it is an .npz archive or another zip file; save one array with numpy.save")
    if not beginning.startswith(npy.MAGIC_PREFIX):
        raise UserError("it is not in .npy format; save the array with numpy.save")
    major = beginning[6]
    if int.from_bytes(beginning[8 : 10 if major == 1 else 12], "little") > _LONGEST_HEADER:
        raise UserError("its header is longer than that of any array of numbers")
    file.seek(0)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(file)
    if version not in readers:  # version (3, 0) is for structured arrays with names beyond Latin-1
        raise UserError(f"it has version {version[0]}.{version[1]} of the format; save the array with numpy.save")
    shape, _, dtype = readers[version](file)
    if dtype.hasobject:
        raise UserError("it holds pickled Python objects, which are never loaded; save an array of numbers")
    if not dtype.itemsize:
        raise UserError(f"it holds {dtype}, which takes no bytes; save an array of numbers")
    return shape, dtype, file.tell()


def _check_length(shape: tuple[int, ...], dtype: np.dtype, length: int) -> None:
    """Refuse a header that does not describe the rest of the file, which has `length` bytes."""
    if any(size < 0 for size in shape):
        raise UserError(f"its header states the impossible shape {_short(shape)}")
    if math.prod(shape) * dtype.itemsize != length:
        raise UserError(
            f"its header states {dtype} of shape {_short(shape)}, which is not what {length} bytes of data hold; "
            "the file is damaged or cut short"
        )


def _short(shape: tuple[int, ...]) -> str:
    text = str(shape)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _native(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind in "fc" and array.dtype.itemsize > (8 if array.dtype.kind == "f" else 16):
        with np.errstate(over="ignore"):  # what is too large becomes infinite, which callers refuse
            return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def read_mat(path: str | Path, key: str) -> np.ndarray:
    """A matrix of numbers from a `.mat` file of MATLAB's versions 5 to 7; a sparse one is filled with zeros.

    Args:
        path: the file.
        key: name of the variable. Where it is absent and the file holds exactly one array, that one is taken.

    Raises:
        UserError: if the file is unreadable or of another version, has no such variable, or holds something else than
            numbers, and if the matrix does not fit into memory.
    """
    try:
        return _read_mat(Path(path), key)
    except UserError as error:
        raise UserError(f"cannot read '{path}': {error}") from None
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror or first_line(error)}") from error
    except Exception as error:  # scipy reads a damaged file until something fails
        raise UserError(f"cannot read '{path}': not a whole .mat file ({first_line(error)[:100]})") from error


def _read_mat(path: Path, key: str) -> np.ndarray:
    from scipy import sparse
    from scipy.io import loadmat, matlab, whosmat

    version = matlab.matfile_version(path, appendmat=False)[0]
    if version != 1:  # scipy calls versions 5 to 7 so; it goes round in circles in a hostile file of version 4
        raise UserError("it is not of MATLAB's versions 5 to 7; save it with -v7, or as .npy")
    found = whosmat(path, appendmat=False)
    shapes = {name: (shape, kind) for (name, shape, _), kind in zip(found, _mat_classes(path), strict=True)}
    name = key if key in shapes else next(iter(shapes), key)
    if name not in shapes or (name != key and len(shapes) > 1) or len(shapes) < len(found):
        raise UserError(f"it has no variable '{key}'; it has {', '.join(sorted(shapes)) or 'none'}")
    shape, kind = shapes[name]
    # Before anything is parsed: cells and structures nest as deep as a file says, and are not numbers.
    if not _SPARSE <= kind <= _UINT64:
        raise UserError(f"its variable '{name}' is {_MAT_OTHERS.get(kind, 'of an unknown kind')}; expected numbers")
    if any(size < 0 for size in shape):
        raise UserError(f"its variable '{name}' states the impossible shape {_short(shape)}")
    check_memory(24 * math.prod(map(int, shape)), f"its variable '{name}' of shape {_short(shape)}")
    value = loadmat(path, variable_names=[name], appendmat=False)[name]
    return _dense(value) if sparse.issparse(value) else value


def _mat_classes(path: Path) -> Iterator[int]:
    """Array class of each variable. scipy's own list hides it behind "logical", a mark that cells can bear too."""
    with path.open("rb") as file:
        order: Literal["little", "big"] = "little" if file.read(128)[126:] == b"IM" else "big"
        while len(tag := file.read(8)) == 8:
            kind, length = int.from_bytes(tag[:4], order), int.from_bytes(tag[4:], order)
            start = file.tell()
            flags = file.read(min(length, 4096))
            if kind == _COMPRESSED:
                flags = zlib.decompressobj().decompress(flags, 24)[8:]
            yield int.from_bytes(flags[8:12], order) & 0xFF
            file.seek(start + length)


def _dense(matrix: Any) -> np.ndarray:
    """A sparse matrix in full; its indices are checked, since scipy writes wherever they point."""
    matrix.check_format(full_check=True)
    return matrix.toarray()
