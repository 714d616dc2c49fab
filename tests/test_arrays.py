"""Files of arrays that a user brings: the values in them, or one line, and no allocation on a header's word."""

from __future__ import annotations

import math
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import io, sparse

from cs_models import host_memory
from cs_models.arrays import read_npy
from cs_models.errors import UserError
from cs_models.operators.matrices import load_matrix
from datamodules.signals import load_signals

READERS: list[Callable[[Path], Any]] = [load_matrix, load_signals]


def npy(
    shape: str, descr: str = "'<f8'", data: bytes = bytes(64), version: int = 1, header: str | None = None
) -> bytes:
    """A `.npy` file with whatever header."""
    text = header or f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n"
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode() + data


HOSTILE = {
    "terabytes": npy("(1000000, 1000000)"),
    "beyond any integer": npy(f"({10**25},)"),
    "thousands of digits": npy(f"({'9' * 4000}, 2)"),
    "too many digits": npy(f"({'9' * 5000}, 2)"),
    "huge and empty": npy(f"(0, {10**30})", data=b""),
    "negative": npy("(-8,)"),
    "two negatives": npy("(-2, -4)"),
    "not a tuple": npy("8"),
    "a float": npy("(8.0,)"),
    "text": npy("('8',)"),
    "a hundred dimensions": npy(f"({'1,' * 100})", data=bytes(8)),
    "nested": npy("(" * 3000 + ")" * 3000),
    "code": npy("(__import__('os').getpid(),)"),
    "cut": npy("(9,)"),
    "longer": npy("(7,)"),
    "objects": npy("(1,)", "'|O'"),
    "objects in records": npy("(1,)", "[('a', '|O')]"),
    "records": npy("(8,)", "[('a', '<f8')]"),
    "no bytes": npy(f"({10**15},)", "'|V0'", data=b""),
    "no type": npy("(8,)", "'<q9'"),
    "nothing in the header": npy("", header="\n"),
    "header of gigabytes": b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
    "version 9": npy("(8,)", version=9),
    "magic alone": b"\x93NUMPY",
    "empty": b"",
    "text file": b"1,2\n3,4\n",
    "npz": b"PK\x03\x04" + bytes(100),
}


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_npy_is_refused_in_one_line_and_takes_no_memory(
    tmp_path: Path, content: bytes, read: Callable[[Path], Any], recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"a\.npy") as raised:
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400 + len(str(path))
    assert not recwarn.list


def test_an_archive_under_the_name_of_an_array_is_called_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "b.npz", phi=np.eye(3))
    (tmp_path / "b.npz").rename(tmp_path / "a.npy")
    with pytest.raises(UserError, match=r"\.npz archive.*numpy\.save"):
        load_matrix(tmp_path / "a.npy")


@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4", ">i2", "<u8", "|i1", "<f2", "g"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_real_arrays_are_read_exactly_whatever_their_layout(tmp_path: Path, dtype: str, order: str) -> None:
    values = np.arange(12).reshape(3, 4)
    np.save(tmp_path / "a.npy", np.asarray(values, dtype=dtype, order=order))  # type: ignore[call-overload]
    for array in (load_matrix(tmp_path / "a.npy").numpy(), load_signals(tmp_path / "a.npy").samples):
        assert np.array_equal(array, values)
    assert read_npy(tmp_path / "a.npy").dtype.isnative


def test_a_long_double_beyond_a_double_is_not_finite(tmp_path: Path) -> None:
    if np.finfo(np.longdouble).max <= np.finfo(np.float64).max:
        pytest.skip("long double is double here")
    np.save(tmp_path / "a.npy", np.full((2, 2), np.longdouble(10) ** 400))
    with pytest.raises(UserError, match="not finite"):
        load_matrix(tmp_path / "a.npy")


def test_an_array_larger_than_the_memory_is_refused_with_both_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "a.npy").open("wb") as file:  # a file with holes, which takes no room on the disk
        file.write(npy("(4000000000,)", data=b""))
        file.truncate(file.tell() + 32 * 10**9)
    monkeypatch.setattr(host_memory, "memory_available", lambda: 2**31)
    for read in READERS:
        with pytest.raises(UserError, match=r"needs about 89\.4 GB of memory; there is about 2\.0 GB"):
            read(tmp_path / "a.npy")


def test_memory_available_is_what_the_machine_has() -> None:
    available = host_memory.memory_available()
    assert available is None or 0 < available < 2**50


def test_an_address_space_limit_counts() -> None:
    resource = pytest.importorskip("resource")
    if not Path("/proc/self/statm").exists():
        pytest.skip("only Linux says how much of it is used")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, hard))
    try:
        available = host_memory.memory_available()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert available is not None
    assert abs(available - 2**30) < 2**28


@pytest.mark.parametrize(("name", "key"), [("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage")])
def test_a_control_group_above_limits_too(tmp_path: Path, name: str, key: str) -> None:
    (tmp_path / "job/step").mkdir(parents=True)
    for folder, limit in ((tmp_path / "job/step", "max"), (tmp_path / "job", "1000")):
        (folder / name).write_text(f"{limit}\n")
        (folder / key).write_text("700\n")
    (tmp_path / "job/memory.stat").write_text("anon 600\ninactive_file 100\n")
    assert list(host_memory._group_limits(tmp_path, "/job/step", name, key)) == [400]


def test_a_system_that_says_nothing_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "memory_available", lambda: None)
    host_memory.check_memory(2**80, "it")


@pytest.mark.parametrize("values", [np.eye(3, 5), np.zeros((2, 3)), np.array([[0, -2.5], [1e-9, 0]])])
@pytest.mark.parametrize("kind", [sparse.csc_matrix, sparse.csr_matrix, sparse.coo_matrix, np.array])
def test_a_matrix_in_a_mat_file_is_read_full_or_sparse(tmp_path: Path, values: np.ndarray, kind: Any) -> None:
    for compressed in (False, True):
        io.savemat(tmp_path / "a.mat", {"phi": kind(values), "other": np.ones(3)}, do_compression=compressed)
        assert np.array_equal(load_matrix(tmp_path / "a.mat"), values)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, np.float32])
def test_kinds_of_numbers_in_a_mat_file(tmp_path: Path, dtype: type) -> None:
    values = np.array([[0, 1, 1], [1, 0, 0]])
    io.savemat(tmp_path / "a.MAT", {"mine": values.astype(dtype)}, appendmat=False)
    assert np.array_equal(load_matrix(tmp_path / "a.MAT"), values)


def overwrite(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


def test_indices_of_a_sparse_matrix_are_not_believed(tmp_path: Path) -> None:
    io.savemat(tmp_path / "a.mat", {"phi": sparse.csc_matrix(([1.0, 2], ([777, 5], [0, 1])), shape=(1000, 2))})
    overwrite(tmp_path / "a.mat", struct.pack("<i", 777), struct.pack("<i", 777_777_777))
    with pytest.raises(UserError, match=r"a\.mat"):
        load_matrix(tmp_path / "a.mat")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([["a", "b"]], dtype=object), "is a cell array"),
        ({"a": 1}, "is a structure"),
        ("text", "is text"),
        (np.eye(2) * 1j, "complex128"),
        (sparse.csc_matrix(np.eye(2) * 1j), "complex128"),
        (np.zeros((2, 2, 2)), "two dimensions"),
        (np.array([[np.nan]]), "not finite"),
    ],
)
def test_another_kind_in_a_mat_file_is_named(tmp_path: Path, value: Any, message: str) -> None:
    io.savemat(tmp_path / "a.mat", {"phi": value})
    with pytest.raises(UserError, match=message) as raised:
        load_matrix(tmp_path / "a.mat")
    assert "\n" not in str(raised.value)


def mat_with_shape(path: Path, shape: tuple[int, int]) -> None:
    """A `.mat` file whose header states a shape that its data do not have."""
    io.savemat(path, {"phi": np.ones((77, 3))})
    overwrite(path, struct.pack("<ii", 77, 3), struct.pack("<ii", *shape))


@pytest.mark.parametrize("shape", [(2**31 - 1, 2**31 - 1), (-1, 3), (78, 3)])
def test_a_hostile_shape_in_a_mat_file(tmp_path: Path, shape: tuple[int, int]) -> None:
    mat_with_shape(tmp_path / "a.mat", shape)
    with pytest.raises(UserError, match=r"a\.mat") as raised:
        load_matrix(tmp_path / "a.mat")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_mat_file(tmp_path: Path, share: float, compressed: bool) -> None:
    values = np.random.default_rng(0).standard_normal((30, 40))
    io.savemat(tmp_path / "a.mat", {"phi": values}, do_compression=compressed)
    content = (tmp_path / "a.mat").read_bytes()
    (tmp_path / "a.mat").write_bytes(content[: math.floor(share * len(content))])
    with pytest.raises(UserError, match=r"a\.mat"):
        load_matrix(tmp_path / "a.mat")


def mat_element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "kind", [1, 1 | 2 << 8, 2, 2 | 2 << 8], ids=["cells", "logical cells", "struct", "logical struct"]
)
def test_cells_are_not_opened_however_deep_they_nest(tmp_path: Path, kind: int, compressed: bool) -> None:
    """scipy opens each within the last on the C stack, which ends the process some 100,000 deep."""
    parts, length = [], 0
    for depth in range(200_000, 0, -1):
        header = mat_element(6, struct.pack("<II", kind if depth == 1 else 1, 0)) + mat_element(
            5, struct.pack("<ii", 1, 1)
        )
        header += mat_element(1, b"phi" if depth == 1 else b"")
        length += len(header)
        parts.append(struct.pack("<II", 14, length) + header)
        length += 8
    content = b"".join(reversed(parts))
    if compressed:
        packed = zlib.compress(content)
        content = struct.pack("<II", 15, len(packed)) + packed
    (tmp_path / "a.mat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + content)
    with pytest.raises(UserError, match="'phi' is a"):
        load_matrix(tmp_path / "a.mat")


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<5i", 0, -1, 1, 0, 4) + b"phi\0",  # version 4, whose length leads back to the beginning
        b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n",
        b"not a matrix at all" * 20,
        bytes(200),
    ],
)
def test_another_version_of_mat_or_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read '.*a\.mat'") as raised:
        load_matrix(tmp_path / "a.mat")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("variables", [{}, {"a": np.ones(2), "b": np.ones(2)}])
def test_a_mat_file_without_the_variable_names_those_it_has(tmp_path: Path, variables: dict[str, np.ndarray]) -> None:
    io.savemat(tmp_path / "c.mat", variables)
    with pytest.raises(UserError, match=f"no variable 'phi'; it has {', '.join(variables) or 'none'}"):
        load_matrix(tmp_path / "c.mat")
