"""LPIPS and FID of a comparison's pictures, through torchmetrics, with weights from files that the user has."""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cs_models.errors import UserError, first_line
from cs_models.evaluation.pictures import Pictures
from cs_models.evaluation.report.markdown import markdown_table
from cs_models.evaluation.report.summary import Setting, current_rows, setting_of
from cs_models.evaluation.report.web import append_section
from cs_models.evaluation.results import Row, to_text, write_table
from cs_models.files import is_file
from cs_models.progress import Progress
from datamodules.images import read_image

LPIPS_FILE = "alexnet-owt-7be5be79.pth"
FID_FILE = "pt_inception-2015-12-05-6726825d.pth"


def check_weights_files(lpips: str | None, fid: str | None) -> None:
    """Refuse before the first result what the metrics could not work with after the last one.

    Raises:
        UserError: if a file is missing or holds more than tensors, or FID's package is not installed.
    """
    for option, file, usual in (("--lpips", lpips, LPIPS_FILE), ("--fid", fid, FID_FILE)):
        if file is None:
            continue
        if not is_file(file):
            raise UserError(f"{option}: no file {file}; give the path of {usual}, which is never downloaded here")
        try:
            # The libraries read the file again without this restriction; what passes here holds no code.
            torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(f"{option}: cannot read {file} as weights; expected {usual}") from error
    if fid is not None and find_spec("torch_fidelity") is None:
        raise UserError("--fid needs the package torch-fidelity: pip install torch-fidelity")


def add_perceptual(
    rows: Sequence[Row], out: Path, lpips: str | None, fid: str | None
) -> tuple[str, dict[Setting, dict[str, float]]]:
    """Compare the saved 8-bit pictures of every setting, write ``perceptual.csv`` and a section of the report.

    Luminance is shown to the networks as grey RGB. FID compares the distributions of a whole set; below some
    thousand images it is biased upwards, so it compares methods on one set only.

    Args:
        rows: single results, oldest first.
        out: the results folder, whose pictures were saved.
        lpips: torchvision's weights of AlexNet; lower values are better.
        fid: torch-fidelity's weights of Inception v3; lower values are better.

    Returns:
        the table, for the terminal, and the scores of each setting by their names.

    Raises:
        UserError: if the weights are of another network, or an image is too small for one.
    """
    groups: dict[Setting, list[Pictures]] = defaultdict(list)
    for row in current_rows(rows):
        pictures = Pictures.of_row(out, row)
        if pictures.exist() and row.channels != "signal":
            groups[setting_of(row)].append(pictures)
    scores = {
        name: measure(groups, file) for name, measure, file in (("lpips", _lpips, lpips), ("fid", _fid, fid)) if file
    }
    columns = [*Setting._fields, "images", *scores]
    lines = [
        [*map(to_text, setting), str(len(group)), *(f"{values[setting]:.6g}" for values in scores.values())]
        for setting, group in groups.items()
    ]
    write_table(out / "perceptual.csv", columns, lines)
    shown = [columns.index(name) for name in ("method", "dataset", "ratio", "operator", "images", *scores)]
    table = markdown_table([columns[i] for i in shown], [[line[i] for i in shown] for line in lines])
    append_section(out, f"## Perceptual metrics (lower is better)\n\n{table}")
    return table, {setting: {name: values[setting] for name, values in scores.items()} for setting in groups}


def _lpips(groups: dict[Setting, list[Pictures]], file: str) -> dict[Setting, float]:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    with _hub_with(file, LPIPS_FILE), _fitting("--lpips", file), _progress("LPIPS", groups) as bar:
        metric = LearnedPerceptualImagePatchSimilarity("alex", normalize=True)
        means = {}
        for setting, group in groups.items():
            for pictures in group:
                metric.update(_rgb(pictures.reconstruction), _rgb(pictures.original))
                bar.update()
            means[setting] = float(metric.compute())
            metric.reset()
    return means


def _fid(groups: dict[Setting, list[Pictures]], file: str) -> dict[Setting, float]:
    from torchmetrics.image.fid import FrechetInceptionDistance

    with _fitting("--fid", file), _progress("FID", groups) as bar:
        metric = FrechetInceptionDistance(normalize=True, feature_extractor_weights_path=file)
        distances = {}
        for setting, group in groups.items():
            if len(group) < 2:
                raise UserError("--fid compares sets; it needs at least 2 images of each, see --limit")
            for pictures in group:
                metric.update(_rgb(pictures.original), real=True)
                metric.update(_rgb(pictures.reconstruction), real=False)
                bar.update()
            distances[setting] = float(metric.compute())
            metric.reset()
    return distances


def _progress(what: str, groups: dict[Setting, list[Pictures]]) -> Progress:
    return Progress(sum(map(len, groups.values())), what, "pictures")


def _rgb(path: Path) -> Tensor:
    """A picture as ``(1, 3, H, W)`` in [0, 1]."""
    return torch.from_numpy(np.atleast_3d(read_image(path, "rgb"))).permute(2, 0, 1)[None].float() / 255


@contextmanager
def _hub_with(file: str, name: str) -> Iterator[None]:
    """Let torchvision find a file where it would otherwise download to."""
    usual = torch.hub.get_dir()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "checkpoints" / name
        place.parent.mkdir()
        try:
            place.symlink_to(Path(file).resolve())
        except OSError:  # Windows keeps links to administrators
            shutil.copyfile(file, place)
        torch.hub.set_dir(folder)
        try:
            yield
        finally:
            torch.hub.set_dir(usual)


@contextmanager
def _fitting(option: str, file: str) -> Iterator[None]:
    """Tell a failure of the metric's network in one line."""
    try:
        yield
    except (RuntimeError, KeyError, AttributeError, TypeError) as error:
        reason = first_line(error)
        raise UserError(f"{option} with {file}: {reason}; the other results are complete") from error
