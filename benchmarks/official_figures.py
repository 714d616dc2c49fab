"""Every golden figure of the released weights, through `import_official` and `eval.py`.

``python benchmarks/official_figures.py --data_dir DIR --golden golden.json --out results/official``

``--golden golden_beyond.json`` has those of SCNet, SODAS-Net and OPINE-Net+.

Imports each released checkpoint under DIR/official with its matrix, evaluates it on the whole set, and prints the
largest deviation of PSNR and SSIM over the images. A rerun continues where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from cs_models.cli import evaluate as evaluation
from cs_models.training.weights import save_checkpoint
from cs_models.zoo.import_official import import_official

FAMILIES = {"R-COAST_5x4": "r_coast", "COAST_5_IPL1": "coast", "COAST_5_IPL4": "coast"}


def import_entry(entry: str, facts: dict[str, Any], data: Path, folder: Path) -> Path:
    """Import the checkpoint of a golden entry with the matrix, start or mask that it was measured with."""
    name = entry.split("/")[0]
    model = FAMILIES.get(name, name)
    if name == "opine_net_plus":
        module = import_official(model, data / facts["weights"])
        return save_checkpoint(module, folder / ("-".join(entry.split("/")) + ".safetensors"))
    files = [data / "official/sampling_matrix" / Path(part.strip()).name for part in facts["matrix"].split("+")]
    options: dict[str, Any] = {"phi": files}
    if model == "ista_net_plus_mri":
        options = {"mask": files[0]}
    elif model in ("ista_net", "ista_net_plus"):
        options = {"phi": files[:1], "qinit": files[1]}
    if name == "COAST_5_IPL4":
        options["iterations_per_layer"] = (4,) * 5
    module = import_official(model, data / facts["weights"], **options)
    return save_checkpoint(module, folder / ("-".join([model, *entry.split("/")]) + ".safetensors"))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--golden", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("results/official"))
    parser.add_argument("--only", default="", help="entries whose name contains this")
    options = parser.parse_args()
    golden = {
        entry: facts
        for entry, facts in json.loads(options.golden.read_text(encoding="utf-8")).items()
        if entry != "protocol" and options.only in entry
    }
    columns = ("images", "PSNR", "golden", "SSIM", "golden", "worst dB", "worst SSIM")
    print(f"{'entry':38} {columns[0]:>6} " + " ".join(f"{column:>10}" for column in columns[1:]))
    failed = 0
    for entry, facts in golden.items():
        checkpoint = import_entry(entry, facts, options.data_dir, options.out / "checkpoints")
        words = [
            "--methods", str(checkpoint), "--datasets", entry.split("/")[1],
            "--ratios", str(facts["ratio_percent"] / 100), "--data_dir", str(options.data_dir),
            "--out", str(options.out / checkpoint.stem), "--device", "cpu", "--precision", "fp32",
        ]  # fmt: skip
        sys.stdout.flush()
        if evaluation.main(words) != 0:
            return 2
        with open(options.out / checkpoint.stem / "per_image.csv", encoding="utf-8") as file:
            rows = {row["image"]: (float(row["psnr_db"]), float(row["ssim"])) for row in csv.DictReader(file)}
        worst, means = compare(rows, facts)
        failed += worst[0] > 0.005 or worst[1] > 2e-4
        print(
            f"{entry:38} {len(rows):6} {means[0]:10.4f} {facts['mean_psnr_db']:10.4f} {means[1]:10.4f} "
            f"{facts['mean_ssim']:10.4f} {worst[0]:10.5f} {worst[1]:10.6f}"
        )
    print(f"{len(golden) - failed} of {len(golden)} within 0.005 dB and 2e-4 SSIM on every image")
    return 1 if failed else 0


def compare(rows: dict[str, tuple[float, float]], facts: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Largest absolute deviation over the images, and means, of PSNR and SSIM."""
    deviations: dict[int, list[float]] = defaultdict(list)
    for image, expected in facts["per_image"].items():
        for index in range(2):
            deviations[index].append(abs(rows[Path(image).stem][index] - expected[index]))
    worst = [max(deviations[index]) for index in range(2)]
    means = [sum(row[index] for row in rows.values()) / len(rows) for index in range(2)]
    return worst, means


if __name__ == "__main__":
    sys.exit(main())
