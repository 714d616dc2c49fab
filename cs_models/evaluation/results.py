"""The table of single results: one line of ``per_image.csv`` for each reconstruction, safe against any interruption."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from filelock import lock_descriptor

from cs_models.errors import UserError
from cs_models.files import replacing
from cs_models.locks import holding

TABLE = "per_image.csv"
BINARY = getattr(os, "O_BINARY", 0)  # Windows writes "\r\n" without it


@dataclass(frozen=True, kw_only=True)
class Row:
    """One reconstruction of one image.

    Attributes:
        method: as typed.
        dataset: name of the set.
        image: name inside the set.
        ratio: nominal CS ratio.
        seed: of the operator's draw.
        psnr_db: PSNR in dB.
        ssim: SSIM.
        seconds: time of the reconstruction alone, after a warm-up, the device synchronised; of a batch, its share.
        device: what it ran on.
        operator: what was measured with, in words.
        run_key: short hash of everything that determines the row.
        iterations: iterations, or evaluations of a network, where the method counts them.
        residual: ``|A x - y| / |y|``, where the method gives it.
        converged: whether the method's stopping rule was met.
        precision: "fp32" or "bf16".
        noise: standard deviation of the noise, for pixels in 0..255.
        bits: bits of the quantised measurements; None for exact ones.
        channels: "luminance", "rgb", or "signal" for a 1-D signal, which is an image of one column; only signals have
            `pcc` and `mse`.
        schedule: iterations of each layer where the user chose them, such as "4 4 4 4 4".
        height: of the image.
        width: of the image.
        parameters: trainable parameters of a network.
        macs: multiplications and additions, in pairs, that a network's layers need for this size of image.
        peak_memory_mb: largest memory on the GPU during the reconstruction, in MiB.
        settings_key: short hash of weights or solver settings, precision and schedule.
        pcc: Pearson's correlation with the signal.
        mse: mean squared error of the signal, scaled to [0, 1].
        sparse_rate_dct: share of the DCT coefficients that hold 98 % of the sum of their magnitudes.
        sparse_rate_fft: the same of the Fourier coefficients.
        measured_ratio: measurements per pixel that were really taken.
        provenance: where the method comes from, see `Candidate.provenance`; empty in tables of versions before it.
        origin: the folder or file behind a set of the user's own, whose name others may have too; empty for known sets.
    """

    method: str
    dataset: str
    image: str
    ratio: float
    seed: int
    psnr_db: float
    ssim: float
    seconds: float
    device: str
    operator: str
    run_key: str
    iterations: int | None = None
    residual: float | None = None
    converged: bool | None = None
    precision: str = "fp32"
    noise: float = 0.0
    bits: int | None = None
    channels: str = "luminance"
    schedule: str = ""
    height: int = 0
    width: int = 0
    parameters: int = 0
    macs: int | None = None
    peak_memory_mb: float | None = None
    settings_key: str = ""
    pcc: float | None = None
    mse: float | None = None
    sparse_rate_dct: float | None = None
    sparse_rate_fft: float | None = None
    measured_ratio: float | None = None
    provenance: str = ""
    origin: str = ""


COLUMNS = tuple(field.name for field in fields(Row))
# The others were added later, so that tables without them are read too.
FIRST_COLUMNS = {field.name for field in fields(Row) if field.default is MISSING}
_TYPES = get_type_hints(Row)


class ResultsFile:
    """The table in a results folder. Every process of a run appends whole lines to it; nothing is ever rewritten."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / TABLE

    def append(self, row: Row) -> None:
        """Add a row; it is on the disk when this returns.

        Raises:
            UserError: if it cannot be written; earlier rows are safe.
        """
        self._write(_line([to_text(value) for value in asdict(row).values()]))

    def repair(self) -> None:
        """Write the header of a new table, and cut off a last line that an interruption left half-written.

        Raises:
            UserError: if the file cannot be written or is another kind of table.
        """
        header = _line(COLUMNS)
        try:
            content = self.path.read_bytes() if self.path.exists() else b""
            # Nothing of a file is cut that is not ours: one that begins with our header, or is the beginning of it.
            if not content.startswith(header) and not header.startswith(content):
                raise UserError(f"{self.path} is a table of another kind or version; choose another --out")
            complete = content[: content.rfind(b"\n") + 1]
            if complete != content:
                os.truncate(self.path, len(complete))
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from error
        if not complete:
            self._write(header)

    def rows(self) -> list[Row]:
        """The rows so far, oldest first. Of rows with the same `identity` the last one counts.

        Raises:
            UserError: if the file is missing or a line cannot be read.
        """
        return list({identity(row): row for row in read_rows(self.path)}.values())

    def _write(self, line: bytes) -> None:
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | BINARY, 0o666)
            try:
                lock_descriptor(descriptor)
                _append_whole(descriptor, line)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}; the rows so far are safe") from error


Identity = tuple[str, str, str, str]
"""Method, set (its origin, or the name of a known one), image and run_key, which together name a row."""


def identity(row: Row) -> Identity:
    """What names a row."""
    return row.method, row.origin or row.dataset, row.image, row.run_key


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a table, oldest first; a half-written last line is passed over.

    Raises:
        UserError: if the file is missing or a line cannot be read.
    """
    try:
        content = path.read_bytes().decode()
    except FileNotFoundError:
        raise UserError(f"no results: {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    reader = csv.DictReader(io.StringIO(content[: content.rfind("\n") + 1], newline=""))
    if reader.fieldnames is None or FIRST_COLUMNS - set(reader.fieldnames):
        raise UserError(f"{path} is a table of another kind or version; its columns are {reader.fieldnames}")
    present = [name for name in COLUMNS if name in reader.fieldnames]
    for record in reader:
        try:
            yield Row(**{name: from_text(record[name], _TYPES[name]) for name in present})
        except (ValueError, TypeError):
            raise UserError(f"{path}, line {reader.line_num}: cannot read it; delete the line to continue") from None


def only_writer(folder: Path, first: bool = True) -> AbstractContextManager[None]:
    """Hold a results folder, see `holding`; every process of an evaluation does while it writes.

    Raises:
        UserError: if another evaluation holds it, or it cannot be created or written.
    """
    return holding(folder, "evaluation", first)


def write_table(path: Path, columns: Iterable[str], lines: Iterable[Iterable[str]]) -> None:
    """Write a CSV file in one piece: readers see the old one or the new one.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        with replacing(path) as partial:
            partial.write_bytes(b"".join(map(_line, [columns, *lines])))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def _append_whole(descriptor: int, line: bytes) -> None:
    """Append a line and flush it to the disk, or leave the file as it was (a full disk takes part of a line)."""
    size = os.fstat(descriptor).st_size
    try:
        while line:
            line = line[os.write(descriptor, line) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def _line(values: Iterable[str]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue().encode()


def to_text(value: Any) -> str:
    """A value as a cell of a CSV file; None is empty."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def from_text(text: str, kind: Any) -> Any:
    """The value of a cell of a CSV file, of a type that `to_text` writes; an empty one is None."""
    if kind is str:
        return text
    if kind in (int, float):
        return kind(text)
    if text == "":
        return None
    optional = kind.__args__[0]
    return text == "true" if optional is bool else optional(text)
