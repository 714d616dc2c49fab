"""A comparison at Weights & Biases: a run for each method, with metrics of the same names, and one for all of them."""

from __future__ import annotations

import html
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import wandb

from cs_models.errors import UserError, first_line
from cs_models.evaluation.options import Options
from cs_models.evaluation.pictures import Pictures
from cs_models.evaluation.report.figures import problem_title
from cs_models.evaluation.report.statistics import Difference, paired_differences
from cs_models.evaluation.report.summary import Setting, Summary, current_rows, label, summarise
from cs_models.evaluation.report.wandb_runs import (
    RunIds,
    Variant,
    agents_run,
    by_run,
    configuration,
    metric_prefix,
    metrics,
)
from cs_models.evaluation.results import Row
from cs_models.zoo.methods import parse_methods
from cs_models.zoo.wandb_weights import WEIGHTS, reference_of
from datamodules.images import open_image

SCORES = (
    "method", "dataset", "ratio", "image", "seed", "psnr_db", "ssim", "seconds", "operator", "precision", "schedule",
    "parameters", "macs", "device", "run_key",
)  # fmt: skip
REPORT = ("report.md", "summary.csv", "differences.csv", "per_image.csv", "perceptual.csv")
ERROR_GAIN = 4

Scores = Mapping[Setting, Mapping[str, float]]
"""LPIPS and FID of settings, by their names."""


def log_comparison(rows: Sequence[Row], options: Options, perceptual: Scores) -> None:
    """Log the results of a folder; ``WANDB_MODE=offline`` keeps them on this machine.

    Every method that was asked for is a run, with metrics such as ``Set11/0.1/psnr_db``. The report, the figures and
    what compares methods belong to a run of their own, or to the only run where there is but one.

    Args:
        rows: single results, oldest first.
        options: what was asked for; they become part of the runs' configuration.
        perceptual: LPIPS and FID, where they were measured.

    Raises:
        UserError: if W&B refuses, such as for a missing login; the results folder is complete all the same.
    """
    out = options.output.out
    # W&B holds a table's pictures back until they are uploaded; an offline run keeps them beside the results.
    os.environ.setdefault("WANDB_DATA_DIR", str(out.resolve() / "wandb"))
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", "1800")  # seconds, after which W&B no longer waits for a network
    asked = {spec.text for spec, _ in parse_methods(options.comparison.methods, options.comparison.ratios)}
    runs = {variant: group for variant, group in by_run(rows).items() if variant.method in asked}
    logging = _Logging(options, several=len(runs) > 1)
    try:
        for variant, group in runs.items():
            with logging.run(variant.name, "eval", configuration(variant, group)) as run:
                _log_method(run, variant, group, out, perceptual)
                if not logging.several:
                    _log_report(run, rows, out)
        if logging.several:
            with logging.run("comparison", "comparison", {"methods": sorted(asked)}) as run:
                _log_report(run, rows, out)
    except (wandb.Error, OSError, ValueError) as error:  # ValueError: a server answers in another way
        reason = first_line(error)
        raise UserError(f"W&B: {reason}; results are in {out}, WANDB_MODE=offline logs without a login") from error


class _Logging:
    """Starts the runs of one comparison."""

    def __init__(self, options: Options, several: bool) -> None:
        self.several = several
        self._options = options
        self._agents_run = agents_run()

    @contextmanager
    def run(self, name: str, kind: str, config: dict[str, Any]) -> Iterator[wandb.Run]:
        """A run by its name in this folder, under the id that it had before."""
        output = self._options.output
        entity, _, project = (output.wandb or "").rpartition("/")
        number, resume = RunIds(output.out, output.wandb or "", output.wandb_resume).choose(name)
        if self._agents_run is not None:  # the first run is that of the agent
            number, self._agents_run = self._agents_run, None
        shown = name if output.wandb_name is None else f"{output.wandb_name}: {name}"
        with wandb.init(
            project=project,
            entity=entity or None,
            id=number,
            resume=resume,  # type: ignore[arg-type]
            name=shown if self.several else output.wandb_name or name,
            group=output.wandb_group or (output.out.resolve().name if self.several else None),
            tags=list(output.wandb_tags),
            job_type=kind,
            dir=output.out,
            config=_plain(asdict(self._options)) | config,
            reinit="create_new",
        ) as run:
            yield run


def _log_method(run: wandb.Run, variant: Variant, rows: Sequence[Row], out: Path, perceptual: Scores) -> None:
    """The figures of one method, each image, and where its weights come from."""
    if variant.method.startswith(WEIGHTS) and not run.offline:
        run.use_artifact(reference_of(variant.method))
    summaries = summarise(rows)
    extra = {
        f"{metric_prefix(one)}/{one.ratio:g}/{name}": value
        for one in summaries
        for name, value in perceptual.get(Setting(*(getattr(one, field) for field in Setting._fields)), {}).items()
    }
    figures = metrics(summaries) | extra
    run.log({**figures, "images": _image_table(rows, out), "summary": _table(Summary, summaries)})
    run.summary.update(figures)
    run.define_metric("ratio", hidden=True)
    for one in sorted(summaries, key=lambda summary: summary.ratio):
        curves = {f"{metric_prefix(one)}/{name}": getattr(one, name) for name in ("psnr_db", "ssim")}
        for name in curves:
            run.define_metric(name, step_metric="ratio")
        run.log({"ratio": one.ratio, **curves})


def _log_report(run: wandb.Run, rows: Sequence[Row], out: Path) -> None:
    """What compares methods: tables, charts, figures and the report with its files."""
    summaries = summarise(rows)
    files = sorted(out.glob("figures/*.png"))
    figures = {f"figures/{path.stem}": wandb.Image(str(path)) for path in files}
    report = (out / "report.md").read_text(encoding="utf-8")
    run.log(
        {
            "methods": _table(Summary, summaries),
            "differences": _table(Difference, paired_differences(rows)),
            "report": wandb.Html(f"<pre>{html.escape(report)}</pre>"),
            **_charts(summaries),
            **figures,
        }
    )
    artifact = wandb.Artifact(f"report-{run.id}", type="report")
    for name in REPORT:
        if (out / name).exists():
            artifact.add_file(str(out / name))
    run.log_artifact(artifact)


def _table(kind: type[Any], items: Sequence[Any]) -> wandb.Table:
    """Dataclasses as a table."""
    names = [field.name for field in fields(kind)]
    return wandb.Table(columns=names, data=[[getattr(item, name) for name in names] for item in items])


def _image_table(rows: Sequence[Row], out: Path) -> wandb.Table:
    """A row for each set, ratio and image with the original, the reconstruction and their difference."""
    table = wandb.Table(columns=[*SCORES, "original", "reconstruction", "error"])
    for row in current_rows(rows):
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
