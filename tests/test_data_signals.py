from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import fft

from cs_models.errors import UserError
from datamodules.signals import load_signal_set, load_signals, names_signals, synthetic_signals
from datamodules.tables import TableOptions


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_npy_rows_are_signals(tmp_path: Path) -> None:
    array = np.arange(12.0).reshape(3, 4)
    np.save(tmp_path / "s.npy", array)
    signals = load_signals(tmp_path / "s.npy")
    assert signals.names == ["0", "1", "2"]
    assert signals.samples.dtype == np.float64
    assert np.array_equal(signals.samples, array)
    np.save(tmp_path / "one.npy", array[0])
    assert load_signals(tmp_path / "one.npy").samples.shape == (1, 4)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a,b\n1,4\n2,5\n3,6\n", ["a", "b"]),
        ("1;4\n2;5\n3;6\n", ["0", "1"]),
        ("left\tright\n1\t4e0\n2\t5\n3\t6", ["left", "right"]),
    ],
)
def test_csv_columns_are_signals(tmp_path: Path, text: str, names: list[str]) -> None:
    signals = load_signals(write(tmp_path / "s.csv", text))
    assert signals.names == names
    assert signals.samples.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_csv_of_one_column(tmp_path: Path) -> None:
    assert load_signals(write(tmp_path / "s.csv", "volt\n1\n2\n")).samples.tolist() == [[1, 2]]


@pytest.mark.parametrize("names", ["", "a\n"])
def test_an_empty_line_of_one_signal_is_a_missing_reading(tmp_path: Path, names: str) -> None:
    signals = load_signals(write(tmp_path / "s.csv", f"{names}1\n\n3\n4\n\n"))
    assert signals.samples.tolist() == [[1, 2, 3, 4]]
    assert signals.filled.tolist() == [1]


def test_a_last_cell_that_is_empty_is_a_missing_reading(tmp_path: Path) -> None:
    signals = load_signals(write(tmp_path / "s.csv", "a\tb\n1\t2\n3\t\n"))
    assert signals.samples.tolist() == [[1, 3], [2, 2]]


def test_missing_readings_are_interpolated_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    np.save(tmp_path / "s.npy", np.array([[-200.0, 1, -200, -200, 4, -200], [1, 2, 3, 4, 5, 6]]))
    with caplog.at_level(logging.WARNING):
        signals = load_signals(tmp_path / "s.npy", missing=-200)
    assert signals.samples.tolist() == [[1, 1, 2, 3, 4, 4], [1, 2, 3, 4, 5, 6]]
    assert signals.filled.tolist() == [4, 0]
    assert "4 missing samples of 12" in caplog.text


def test_a_signal_without_any_reading_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="every sample of signal 'b' is missing"):
        load_signals(write(tmp_path / "s.csv", "a,b\n1,-1\n2,-1\n"), missing=-1)


@pytest.mark.parametrize("cell", ["", " ", "nan", "NaN"])
def test_an_empty_cell_is_a_missing_reading(tmp_path: Path, cell: str) -> None:
    signals = load_signals(write(tmp_path / "s.csv", f"a,b\n1,2\n3,{cell}\n5,6\n"))
    assert signals.samples.tolist() == [[1, 3, 5], [2, 4, 6]]
    assert signals.filled.tolist() == [0, 1]


def test_benchmark_signals_are_columns_in_the_unit_range(tmp_path: Path) -> None:
    volts = np.stack([np.linspace(-3, 5, 20), np.full(20, 7.0), np.arange(20.0) ** 2])
    np.save(tmp_path / "s.npy", volts)
    signals = load_signal_set(str(tmp_path / "s.npy"), limit=2)
    assert (signals.set_name, len(signals)) == ("s.npy", 2)
    ramp, flat = (signals[index][1] for index in range(2))
    assert ramp.shape == (1, 20, 1)
    assert np.allclose(ramp.flatten(), np.linspace(0, 1, 20), atol=1e-6)
    assert not flat.any()


@pytest.mark.parametrize("offset", [0, 1e7, -1e9, 1e13])
@pytest.mark.parametrize("suffix", ["npy", "csv"])
def test_an_offset_loses_nothing(tmp_path: Path, offset: float, suffix: str) -> None:
    volts = np.random.default_rng(0).standard_normal(50).round(2) * 8  # exact beside every offset but the last
    if suffix == "npy":
        np.save(tmp_path / "s.npy", volts + offset)
    else:
        (tmp_path / "s.csv").write_text("\n".join(repr(float(value)) for value in volts + offset))
    scaled = load_signal_set(str(tmp_path / f"s.{suffix}"))[0][1]
    expected = (volts - volts.min()) / np.ptp(volts)
    assert scaled.dtype == torch.float32
    assert np.abs(scaled.flatten().numpy() - expected).max() < (1e-3 if offset == 1e13 else 1e-6)


@pytest.mark.parametrize(("low", "high"), [(-1.7e308, 1.7e308), (-1e308, 1.5e308), (1e-310, 3e-310), (0, 5e-324)])
def test_the_ends_of_the_numbers_are_scaled_too(tmp_path: Path, low: float, high: float) -> None:
    np.save(tmp_path / "s.npy", np.array([low, high] * 6))
    scaled = load_signal_set(str(tmp_path / "s.npy"))[0][1]
    assert scaled.flatten().tolist() == [0, 1] * 6


def test_a_constant_signal_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "s.csv").write_text("a,b,c\n" + "1,7,1\n2,7,3\n" * 10)
    with caplog.at_level(logging.WARNING):
        load_signal_set(str(tmp_path / "s.csv"))
    assert "constant signals, whose PSNR says nothing: b" in caplog.text


def test_very_many_signals_are_told_apart_in_time(tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", np.random.default_rng(0).random((100_000, 11)))
    start = time.perf_counter()
    assert len(load_signal_set(str(tmp_path / "s.npy"))) == 100_000
    assert time.perf_counter() - start < 30  # comparing all names with all took minutes


def test_options_stand_behind_the_file_and_tell_sets_apart(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("a,b,c\n" + "1,7,1\n2,9,3\n" * 10)
    source = f"{tmp_path}/s.csv:columns=a+c:missing=3"
    assert names_signals(source)
    signals = load_signal_set(source)
    assert (signals.set_name, signals.signals.names) == ("s.csv:columns=a+c:missing=3", ["a", "c"])
    assert signals.signals.filled.tolist() == [0, 10]
    assert load_signals(f"{tmp_path}/s.csv", options=TableOptions(columns="b")).names == ["b"]


def test_a_file_that_exists_is_taken_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.csv:b.csv"
    try:
        path.write_text("1\n2\n")
    except OSError:
        pytest.skip("this file system takes no colon in a name")
    assert load_signals(path).samples.tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("s.csv:colums=a", "did you mean 'columns'"),
        ("s.csv:columns", "FILE:key=value"),
        ("s.csv:skip=x", "expected a number"),
        ("s.csv:skip=-1", "number of lines"),
        ("s.csv:missing=x", "expected a number"),
        ("s.csv:decimal=,", "point or comma"),
        ("s.csv:separator=:", "comma or semicolon"),
        ("s.csv:header=2", "yes or no"),
        ("s.csv:encoding=klingon", "unknown; utf-8"),
        ("s.csv:encoding=rot13", "unknown; utf-8"),
        ("s.csv:columns=d", "no column 'd'"),
        ("s.csv:columns=9", "no column '9'"),
        ("s.csv:columns=", "no column ''"),
        ("s.npy:columns=0", "only missing is for .npy"),
        ("t.csv:columns=a", "no signal file"),
    ],
)
def test_wrong_options_are_one_line(tmp_path: Path, words: str, message: str) -> None:
    (tmp_path / "s.csv").write_text("a,b\n1,2\n")
    np.save(tmp_path / "s.npy", np.ones(3))
    with pytest.raises(UserError, match=message) as raised:
        load_signals(f"{tmp_path}/{words}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"), [("a,b\n" + "1,2\n" * 10, "10 samples"), ("a,a\n" + "1,2\n" * 20, "2 signals of the name 'a'")]
)
def test_signals_that_cannot_be_scored_or_told_apart_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_signal_set(str(write(tmp_path / "s.csv", text)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("a,b\n", "no samples"),
        ("a,b\n1,2\n3\n", "sample 1 has 1 values, expected 2"),
        ("time,b\n1,2\n12:30,4\n", "'12:30' in column 'time', sample 1, is not a number"),
        ("a,b\n1,2\n3,x\n", "column 'b', sample 1"),
        ("a,b\n1,-inf\n3,nan\n", "signal 'b' has -inf at sample 0"),
        ("a,b\n1,inf\n3,4\n", "signal 'b' has inf at sample 0"),
    ],
)
def test_bad_csv_is_one_line_that_says_where(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        load_signals(write(tmp_path / "s.csv", text))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("array", [np.zeros((2, 3, 4)), np.zeros((0, 4)), np.array(["a"]), np.zeros(3, dtype=complex)])
def test_npy_of_another_shape_or_kind_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "s.npy", array)
    with pytest.raises(UserError, match=r"s\.npy.*\(n,\) or \(N, n\)"):
        load_signals(tmp_path / "s.npy")


def test_pickled_and_damaged_npy_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot read") as raised:
        load_signals(tmp_path / "pickled.npy")
    assert "pickle.load" not in str(raised.value)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "pickled.npy").read_bytes()[:20])
    with pytest.raises(UserError, match="cannot read"):
        load_signals(tmp_path / "cut.npy")


@pytest.mark.parametrize(
    ("source", "message"),
    [("egc", "did you mean 'ecg'"), ("ecg", "ecg_mitbih100.npy"), ("s.wav", "must end in .npy or .csv")],
)
def test_unknown_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.wav").touch()
    with pytest.raises(UserError, match=message):
        load_signals(source, tmp_path)


@pytest.mark.parametrize("sparse_rate", [0.2, 0.4])
def test_synthetic_signals_are_sparse_in_the_dct(sparse_rate: float) -> None:
    signals = synthetic_signals(20, 1000, sparse_rate)
    assert signals.shape == (20, 1000)
    assert signals.min(axis=1).tolist() == [0] * 20
    assert signals.max(axis=1).tolist() == [1] * 20
    # Scaling to [0, 1] changes the scale and the first coefficient only; the largest of the others was 4.
    coefficients = np.abs(fft.dct(signals.astype(np.float64), axis=1))[:, 1:]
    coefficients *= 4 / coefficients.max(axis=1, keepdims=True)
    assert np.all(np.abs((coefficients > 0.02).sum(axis=1) - sparse_rate * 1000) <= 5)  # five places are set anew
    assert np.all((coefficients[:, :99] > 2.4).sum(axis=1) == 4)
    assert np.all(coefficients[:, 99:] < 1.01)
    assert np.all(coefficients[:, 899:] < 0.0101)
    assert np.all(coefficients[:, 899:].max(axis=1) > 0.008)


def test_synthetic_signals_follow_their_seed() -> None:
    assert np.array_equal(synthetic_signals(3, 100, seed=1), synthetic_signals(3, 100, seed=1))
    assert not np.array_equal(synthetic_signals(3, 100, seed=1), synthetic_signals(3, 100, seed=2))
    assert np.array_equal(load_signals("synthetic", seed=4).samples, synthetic_signals(seed=4))


@pytest.mark.parametrize(("count", "n", "rate"), [(0, 100, 0.2), (1, 10, 0.2), (1, 100, 0), (1, 100, 0.95)])
def test_synthetic_signals_out_of_range(count: int, n: int, rate: float) -> None:
    with pytest.raises(UserError):
        synthetic_signals(count, n, rate)


def test_benchmark_signals(real_data: Path) -> None:
    assert load_signals("ecg", real_data).samples.shape == (325, 2000)
    air = load_signals("air_quality", real_data)
    assert air.samples.shape == (13, 8940)
    raw = np.load(real_data / "signals/air_quality_uci.npy")
    assert np.array_equal(air.filled, (raw == -200).sum(axis=1))
    assert air.filled.sum() > 0
    assert not (air.samples == -200).any()
    assert np.array_equal(air.samples[raw != -200], raw[raw != -200])
