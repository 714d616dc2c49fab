"""1-D signals: files of them, the sets known by name, and the synthetic sparse signals of the CLOMP paper."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from cs_models.arrays import read_npy
from cs_models.errors import UserError, nearest
from cs_models.files import is_file
from datamodules.catalog import resolve_data_dir
from datamodules.names import origin_of
from datamodules.tables import TableOptions, numbered, parse_options, read_table

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

_Float = TypeVar("_Float", np.float32, np.float64)


class Signals(NamedTuple):
    """Signals and where they have gaps.

    Attributes:
        names: one for each signal.
        samples: ``(N, n)`` float64, in the units of the file; finite.
        filled: how many missing samples of each signal were filled in ``(N,)``.
    """

    names: list[str]
    samples: npt.NDArray[np.float64]
    filled: npt.NDArray[np.int64]


@dataclass(frozen=True)
class SignalSet:
    """What is known about a set of signals.

    Attributes:
        name: its name.
        summary: one line: how many signals, what they are.
        citation: where it was published.
        file: its file under the data directory; None where the signals are computed.
        make: computes the signals ``(N, n)`` of a seed, where there is no file.
        missing: the value that stands for a missing sample.
    """

    name: str
    summary: str
    citation: str
    file: str | None = None
    make: Callable[[int], npt.NDArray[np.floating]] | None = None
    missing: float | None = None


SIGNALS: dict[str, SignalSet] = {
    signal_set.name: signal_set
    for signal_set in (
        SignalSet(
            name="ecg",
            summary="325 pieces of an electrocardiogram, 2000 samples each, mV at 360 Hz",
            citation="Moody, Mark, The impact of the MIT-BIH Arrhythmia Database, IEEE EMB 2001",
            file="signals/ecg_mitbih100.npy",
        ),
        SignalSet(
            name="air_quality",
            summary="13 series of hourly readings of air-quality sensors, 8940 samples each (the papers' WSN)",
            citation="De Vito et al., On field calibration of an electronic nose, Sensors and Actuators B 2008",
            file="signals/air_quality_uci.npy",
            missing=-200.0,
        ),
        SignalSet(
            name="synthetic",
            summary="200 signals of 1000 samples, sparse in the DCT, made on the fly",
            citation="the generator of the CLOMP paper",
            make=lambda seed: synthetic_signals(seed=seed),
        ),
        SignalSet(
            name="two_tones",
            summary="one signal of 5000 samples over 1/8 s: tones of 697 and 1633 Hz, as a telephone's key A sounds",
            citation="the example of many a tutorial, such as Taylor, Compressed Sensing in Python, 2016",
            make=lambda seed: two_tones(),
        ),
    )
}
SUFFIXES = (".npy", ".csv")
# A file, and how it is to be read.
_SOURCE = re.compile(r"(?P<file>.+?\.(?:npy|csv))(?::(?P<options>.*))?", re.IGNORECASE)
# The window of the SSIM of signals.
SHORTEST = 11


class BenchmarkSignals:
    """Signals as the benchmark takes them: pairs of name and float32 tensor ``(1, n, 1)``, an image of one column.

    Each signal is scaled to [0, 1] by its own smallest and largest value; a constant one is 0.

    Attributes:
        set_name: name of the set.
        channels: "signal", where a set of images says what its colours are.
        signals: in the units of the file.
        origin: the user's file and how it is read, see `datamodules.names.origin_of`; empty for known sets.
    """

    channels = "signal"

    def __init__(self, set_name: str, signals: Signals, origin: str = "") -> None:
        self.set_name = set_name
        self.origin = origin
        self.signals = signals

    def __len__(self) -> int:
        return len(self.signals.names)

    def __getitem__(self, index: int) -> tuple[str, Tensor]:
        import torch

        # An offset of 1e9 leaves nothing of a volt in float32, so the scaling comes first.
        scaled = unit_range(self.signals.samples[index]).astype(np.float32)
        return self.signals.names[index], torch.from_numpy(scaled)[None, :, None]


def names_signals(name: str) -> bool:
    """Whether a dataset's name stands for signals: in `SIGNALS`, or a ``.npy`` or ``.csv`` file, see `split_source`."""
    return name in SIGNALS or _SOURCE.fullmatch(name) is not None


def split_source(source: str) -> tuple[str, str]:
    """The file and the options in ``FILE:key=value:key=value``, such as ``log.csv:columns=a+b:decimal=comma``."""
    match = None if is_file(source) else _SOURCE.fullmatch(source)
    return (match["file"], match["options"] or "") if match else (source, "")


def load_signal_set(
    name: str, data_dir: str | Path | None = None, limit: int | None = None, seed: int = 0
) -> BenchmarkSignals:
    """Signals for the benchmark.

    Args:
        name: see `load_signals`.
        data_dir: see `datamodules.catalog.resolve_data_dir`.
        limit: take the first signals, this many.
        seed: of the synthetic signals.

    Raises:
        UserError: as `load_signals`, and for signals that are too short to score or two of one name.
    """
    names, samples, filled = load_signals(name, data_dir, seed=seed)
    if samples.shape[1] < SHORTEST:
        raise UserError(f"signals of '{name}' have {samples.shape[1]} samples; SSIM needs at least {SHORTEST}")
    (most, count), *_ = Counter(names).most_common(1)
    if count > 1:
        raise UserError(f"'{name}' has {count} signals of the name '{most}'; rename them")
    signals = Signals(names[:limit], samples[:limit], filled[:limit])
    flat = [one for one, signal in zip(signals.names, signals.samples, strict=True) if signal.min() == signal.max()]
    if flat:
        logger.warning("%s: constant signals, whose PSNR says nothing: %s", name, ", ".join(flat[:5]))
    if name in SIGNALS:
        return BenchmarkSignals(name, signals)
    file, options = split_source(name)
    path, how = Path(file), f":{options}" if options else ""
    return BenchmarkSignals(f"{path.name}{how}", signals, f"{origin_of(path)}{how}")


def unit_range(samples: npt.NDArray[_Float]) -> npt.NDArray[_Float]:
    """Signals ``(..., n)`` scaled to [0, 1], each by its own smallest and largest value; constant ones are 0."""
    low, high = samples.min(axis=-1, keepdims=True), samples.max(axis=-1, keepdims=True)
    if (high / 2 - low / 2 > np.finfo(samples.dtype).max / 2).any():
        samples, low, high = (np.divide(part, 4, dtype=samples.dtype) for part in (samples, low, high))
    return (samples - low) / np.where(high > low, high - low, 1)


def load_signals(
    source: str | Path,
    data_dir: str | Path | None = None,
    missing: float | None = None,
    seed: int = 0,
    options: TableOptions | None = None,
) -> Signals:
    """Signals by name or from a file; gaps are filled linearly along time, and the log says how many.

    A ``.npy`` file holds one signal ``(n,)`` or ``(N, n)``, one signal per row. A ``.csv`` file holds one signal per
    column and one sample per line, as loggers write them, see `datamodules.tables.read_table`. NaN and, in ``.csv``,
    an empty cell, "NA" and the like stand for a missing sample.

    Args:
        source: a name in `SIGNALS`, or the path of a file, with options as in ``log.csv:columns=a+b``.
        data_dir: see `datamodules.catalog.resolve_data_dir`.
        missing: another value that marks a missing sample in a user's file; the known sets bring their own.
        seed: of the synthetic signals.
        options: how to read the file, in place of options behind its name; of ``.npy`` there is `missing` alone.

    Raises:
        UserError: for an unknown name or option, an unreadable file, a sample that is infinite or no number, and a
            signal of which every sample is missing.
    """
    known = SIGNALS.get(str(source))
    if known is not None and known.make is not None:
        made = known.make(seed)
        return Signals(numbered(len(made)), made.astype(np.float64), np.zeros(len(made), dtype=np.int64))
    if known is not None and known.file is not None:
        path, missing = resolve_data_dir(data_dir) / known.file, known.missing
    else:
        file, words = split_source(str(source))
        path, options = Path(file), options or parse_options(words)
        missing = missing if options.missing is None else options.missing
    if not is_file(path):
        where = "; name the data directory with --data_dir, or put the file there"
        hint = f"{where} ({known.citation})" if known else nearest(str(source), SIGNALS)
        raise UserError(f"no signal file '{path}'{hint}")
    names, samples = _read(path, options or TableOptions())
    filled = _fill_gaps(samples, names, missing)
    if filled.any():
        logger.warning(
            "%s: filled %d missing samples of %d by linear interpolation", path.name, filled.sum(), samples.size
        )
    finite = np.isfinite(samples)
    if not finite.all():
        signal, sample = np.argwhere(~finite)[0]
        raise UserError(f"'{path}': signal '{names[signal]}' has {samples[signal, sample]} at sample {sample}")
    return Signals(names, samples, filled)


def _read(path: Path, options: TableOptions) -> tuple[list[str], npt.NDArray[np.float64]]:
    if path.suffix.lower() == ".csv":
        return read_table(path, options)
    if path.suffix.lower() != ".npy":
        raise UserError(f"signal file '{path}' must end in .npy or .csv")
    if replace(options, missing=None) != TableOptions():
        raise UserError(f"'{path}': of the options only missing is for .npy files; the others are for .csv")
    array = read_npy(path)
    if array.ndim not in (1, 2) or array.dtype.kind not in "fiu" or not array.size:
        raise UserError(f"'{path}' must hold real signals of shape (n,) or (N, n), not {array.dtype} {array.shape}")
    samples = np.atleast_2d(array).astype(np.float64)
    return numbered(len(samples)), samples


def _fill_gaps(samples: npt.NDArray[np.float64], names: list[str], missing: float | None) -> npt.NDArray[np.int64]:
    """Fill the samples that are NaN or `missing`, in place; gaps at an end repeat the nearest sample."""
    filled = np.zeros(len(samples), dtype=np.int64)
    time = np.arange(samples.shape[1])
    for index, signal in enumerate(samples):
        gaps = np.isnan(signal) if missing is None else np.isnan(signal) | (signal == missing)
        if gaps.all():
            raise UserError(
                f"every sample of signal '{names[index]}' is missing; choose others, as in FILE.csv:columns=a+b"
            )
        signal[gaps] = np.interp(time[gaps], time[~gaps], signal[~gaps])
        filled[index] = gaps.sum()
    return filled


def two_tones(n: int = 5000) -> npt.NDArray[np.float64]:
    """``sin(1394 pi t) + sin(3266 pi t)`` for t from 0 to 1/8 s, ``(1, n)``."""
    time = np.linspace(0, 1 / 8, n)
    return (np.sin(1394 * np.pi * time) + np.sin(3266 * np.pi * time))[None]


def synthetic_signals(
    count: int = 200, n: int = 1000, sparse_rate: float = 0.2, seed: int = 0
) -> npt.NDArray[np.float32]:
    """Signals that are sparse in the DCT, as the CLOMP paper makes them.

    K = `sparse_rate` n coefficients ``(0.5^linspace(-10, 5, K) + 25) / max``, a fifth of them negative, lie at
    random places below 0.9 n; four of the first n / 10 are 4, 3.75, 3 and 2.5, the first of all is 5, and the
    last tenth is weak noise. Each signal is scaled to [0, 1].

    Args:
        count: number of signals N.
        n: samples of each, at least 50.
        sparse_rate: K / n, in (0, 0.9].
        seed: the same seed gives the same signals.

    Returns:
        ``(N, n)`` float32 in [0, 1].

    Raises:
        UserError: where a number is out of range.
    """
    if count < 1 or n < 50 or not 0 < sparse_rate <= 0.9:
        raise UserError(
            f"synthetic signals need count >= 1, n >= 50 and 0 < sparse rate <= 0.9; got {count}, {n}, {sparse_rate}"
        )
    from scipy import fft

    random = np.random.RandomState(seed)
    band = int(0.9 * n)
    nonzeros = min(max(1, round(sparse_rate * n)), band)
    values = 0.5 ** np.linspace(-10, 5, nonzeros) + 25
    values /= values.max()
    coefficients = np.zeros((count, n))
    for spectrum in coefficients:
        signs = np.ones(nonzeros)
        signs[random.permutation(nonzeros)[: nonzeros // 5]] = -1
        spectrum[random.permutation(band)[:nonzeros]] = values * signs
        spectrum[0] = 5
        spectrum[1 + random.permutation(n // 10 - 1)[:4]] = (4, 3.75, 3, 2.5)
        spectrum[band:] = 0.01 * random.uniform(size=n - band)
    return unit_range(fft.idct(coefficients, axis=1)).astype(np.float32)
