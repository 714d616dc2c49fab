"""A comparison as one Weights & Biases run: every image in a table, PSNR curves, bars and a summary."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import wandb

from cs_models.errors import UserError, first_line
from cs_models.evaluation.options import Options
from cs_models.evaluation.pictures import Pictures
from cs_models.evaluation.report.figures import problem_title
from cs_models.evaluation.report.summary import Summary, current_rows, label, summarise
from cs_models.evaluation.results import Row
from datamodules.images import open_image

SCORES = ("method", "dataset", "ratio", "image", "seed", "psnr_db", "ssim", "seconds", "operator")
ERROR_GAIN = 4


def log_comparison(rows: Sequence[Row], options: Options) -> None:
    """Log the results of a folder as one run; ``WANDB_MODE=offline`` keeps it on this machine.

    Args:
        rows: single results, oldest first.
        options: what was asked for; they become the run's configuration.

    Raises:
        UserError: if W&B refuses, such as for a missing login; the results folder is complete all the same.
    """
    out = options.output.out
    summaries = summarise(rows)
    # W&B holds a table's pictures back until they are uploaded; an offline run keeps them beside the results.
    os.environ.setdefault("WANDB_DATA_DIR", str(out.resolve() / "wandb"))
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", "1800")  # seconds, after which W&B no longer waits for a network
    try:
        with wandb.init(
            project=options.output.wandb, dir=out, job_type="eval", config=_plain(asdict(options)), reinit="create_new"
        ) as run:
            files = sorted(out.glob("figures/*.png"))
            figures = {f"figures/{path.stem}": wandb.Image(open_image(path)) for path in files}
            run.log({"images": _image_table(current_rows(rows), out), **_charts(summaries), **figures})
            for summary in summaries:
                key = f"{problem_title(summary)}/{summary.ratio:g}/{label(summary)}"
                run.summary[f"{key}/psnr_db"] = summary.psnr_db
                run.summary[f"{key}/ssim"] = summary.ssim
    except wandb.Error as error:
        reason = first_line(error)
        raise UserError(f"W&B: {reason}; results are in {out}, WANDB_MODE=offline logs without a login") from error


def _image_table(rows: Sequence[Row], out: Path) -> wandb.Table:
    """A row for each method, set, ratio and image with the original, the reconstruction and their difference."""
    table = wandb.Table(columns=[*SCORES, "original", "reconstruction", "error"])
    for row in rows:
        files = Pictures.of_row(out, row)
        pictures: list[Any] = [None, None, None]
        if files.exist() and row.channels != "signal":
            a, b = _read(files.original), _read(files.reconstruction)
            error = np.clip(ERROR_GAIN * np.abs(a - b), 0, 255)
            captions = ("original", f"{row.psnr_db:.2f} dB", f"{ERROR_GAIN} x error")
            pictures = [
                wandb.Image(image.astype(np.uint8), caption=caption)
                for image, caption in zip((a, b, error), captions, strict=True)
            ]
        table.add_data(*(getattr(row, name) for name in SCORES), *pictures)
    return table


def _charts(summaries: Sequence[Summary]) -> dict[str, Any]:
    """For each problem PSNR over the ratio, and bars of the mean PSNR over all its ratios."""
    problems: dict[str, dict[str, list[Summary]]] = defaultdict(lambda: defaultdict(list))
    for summary in summaries:
        problems[problem_title(summary)][label(summary)].append(summary)
    charts = {}
    for title, lines in problems.items():
        charts[f"psnr_over_ratio/{title}"] = wandb.plot.line_series(
            xs=[[point.ratio for point in line] for line in lines.values()],
            ys=[[point.psnr_db for point in line] for line in lines.values()],
            keys=list(lines),
            title=f"{title}: PSNR in dB",
            xname="CS ratio",
        )
        means = [[name, float(np.mean([point.psnr_db for point in line]))] for name, line in lines.items()]
        bars = wandb.Table(data=means, columns=["method", "psnr_db"])
        charts[f"psnr/{title}"] = wandb.plot.bar(bars, "method", "psnr_db", title=f"{title}: mean PSNR in dB")
    return charts


def _read(path: Path) -> npt.NDArray[np.float32]:
    return np.asarray(open_image(path), dtype=np.float32)


def _plain(value: Any) -> Any:
    """Nested options as W&B can store them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
