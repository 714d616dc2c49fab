"""Differences between methods on the same images, with the confidence that so few images allow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cs_models.evaluation.report.summary import current_rows, label, means_by, setting_of, with_finite_psnr
from cs_models.evaluation.results import Row, to_text, write_table

CONFIDENCE = 0.95
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Difference:
    """PSNR of one method minus that of another, image by image.

    Attributes:
        images: images that both have.
        difference_db: mean difference.
        low_db: lower end of the 95 % bootstrap interval of the mean, over images; None for a single image.
        high_db: upper end.
        wins: share of the images on which the first method is better.
    """

    dataset: str
    ratio: float
    channels: str
    noise: float
    bits: int | None
    method: str
    other: str
    images: int
    difference_db: float
    low_db: float | None
    high_db: float | None
    wins: float


def paired_differences(rows: Iterable[Row]) -> list[Difference]:
    """Every pair of methods that share images, the better method first.

    Of several draws of the operator each image's mean counts, so that the interval is one over images.
    """
    methods: dict[tuple[str, float, str, float, int | None], dict[str, list[Row]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in current_rows(rows):
        setting = setting_of(row)
        problem = (setting.dataset, setting.ratio, setting.channels, setting.noise, setting.bits)
        methods[problem][label(row)].append(row)
    result = []
    for (dataset, ratio, channels, noise, bits), by_method in methods.items():
        scores = {name: means_by(with_finite_psnr(group), "image", "psnr_db") for name, group in by_method.items()}
        best_first = sorted(scores, key=lambda name: -float(np.mean(list(scores[name].values()))))
        for one, other in combinations(best_first, 2):
            shared = [image for image in scores[one] if image in scores[other]]
            gains = np.array([scores[one][image] - scores[other][image] for image in shared])
            if not len(gains) or not np.isfinite(gains).all():
                continue
            low, high = confidence_interval(gains)
            result.append(
                Difference(
                    dataset=dataset,
                    ratio=ratio,
                    channels=channels,
                    noise=noise,
                    bits=bits,
                    method=one,
                    other=other,
                    images=len(gains),
                    difference_db=float(gains.mean()),
                    low_db=low,
                    high_db=high,
                    wins=float((gains > 0).mean()),
                )
            )
    return result


def confidence_interval(values: npt.NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Bootstrap interval (percentiles, fixed seed) of the mean; None, None for a single value, or infinite ones."""
    if len(values) < 2 or not np.isfinite(values).all():
        return None, None
    from scipy.stats import bootstrap

    interval = bootstrap(
        (values,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, method="percentile", rng=0
    ).confidence_interval
    return float(interval.low), float(interval.high)


def write_differences(differences: Sequence[Difference], path: Path) -> None:
    """Write the differences as CSV.

    Raises:
        UserError: if the file cannot be written.
    """
    columns = [field.name for field in fields(Difference)]
    write_table(path, columns, [[to_text(value) for value in asdict(item).values()] for item in differences])
