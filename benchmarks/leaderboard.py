"""Fill the leaderboard's results: training-free methods, the zoo and released weights, on Set11 and CBSD68.

``python benchmarks/leaderboard.py --data_dir DIR --out results/leaderboard``

Cheap methods run first, and every row is kept as it finishes, so that a run may be stopped at any time; the same
command continues it. ``cs-models leaderboard results/leaderboard --out site`` makes the page. Released weights are
imported from DIR/official; networks of which something is missing there are passed over and named.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cs_models.cli.evaluate import parse
from cs_models.errors import UserError, report
from cs_models.evaluation.loop import run
from cs_models.evaluation.plan import Plan
from cs_models.training.weights import save_checkpoint
from cs_models.zoo.import_official import import_official
from cs_models.zoo.methods import zoo

# What is worth most comes first.
ROUNDS = ((0.1,), (0.3, 0.5), (0.2, 0.4, 0.01))
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5)
FAST = ("linear", "pinv", "backprojection", "tv", "weighted_l1", "fista", "lasso", "stomp", "iht")
# All but ddnm, which needs a frozen diffusion model.
SLOW = ("pnp", "ista", "niht", "owlqn", "cosamp", "sp", "omp", "clomp_warm", "clomp")
SLOWEST = ("irls",)
SETS = (("Set11", None), ("CBSD68", 10))
# Released networks for any ratio. What the recursion paper calls COAST has 5 layers and another training than the
# network of the COAST paper; their names keep the figures of that from standing beside them.
FLEXIBLE = {
    "ista_net_pp": ("ista_net_pp", "ista_net_pp/net_params_401.pkl", None),
    "scnet": ("scnet", "scnet/ratio_50_net_params_600.pkl", None),
    "recursion_coast_5x1": ("coast", "r_coast/coast_layer_5_ipl_1_full.pkl", (1,) * 5),
    "recursion_coast_5x4": ("coast", "r_coast/coast_layer_5_ipl_4_full.pkl", (4,) * 5),
    "r_coast_5x4": ("r_coast", "r_coast/r_coast_layer_5_ipl_4_full.pkl", (4,) * 5),
}
PERCENTS = {"ista_net": (10, 30, 40), "ista_net_plus": (1, 10, 30, 40, 50)}


@dataclass(frozen=True)
class Stage:
    """One call of the evaluation."""

    method: str
    dataset: str
    ratios: tuple[float, ...]
    limit: int | None = None

    def run(self, data: Path, out: Path) -> None:
        """Compute what is not there yet."""
        words = ["--methods", self.method, "--datasets", self.dataset, "--data_dir", str(data)]
        words += ["--ratios", ",".join(map(str, self.ratios)), "--out", str(out), "--precision", "auto"]
        if self.limit is not None:
            words += ["--limit", str(self.limit)]
        options = parse(words)
        assert options is not None
        run(Plan(options))


def released(official: Path) -> Iterator[tuple[str, tuple[float, ...], dict[str, Any]]]:
    """Name, ratios and the importer's arguments of each released network.

    Flexible networks are measured with the same matrices as the other methods, and not with their authors'.
    """
    matrices = official / "sampling_matrix"
    for name, (model, source, schedule) in FLEXIBLE.items():
        yield name, RATIOS, {"model": model, "source": official / source, "iterations_per_layer": schedule}
    for model, percents in PERCENTS.items():
        for percent in percents:
            files = {
                "source": official / model / f"ratio_{percent}_net_params_200.pkl",
                "phi": [matrices / f"phi_0_{percent}_1089.mat"],
                "qinit": matrices / f"Initialization_Matrix_{percent}.mat",
            }
            yield f"{model}_{percent}", (percent / 100,), {"model": model} | files
    sodas_net = {"source": official / "sodas_net/ratio_10.pkl", "phi": [matrices / "phi_0_10_1089.mat"]}
    yield "sodas_net_10", (0.1,), {"model": "sodas_net"} | sodas_net
    opine_net = official / "opine_net_plus/ratio_10_net_params_170.pkl"
    yield "opine_net_plus_10", (0.1,), {"model": "opine_net_plus", "source": opine_net}


def imported(data: Path, folder: Path) -> dict[str, tuple[float, ...]]:
    """Paths of the released networks, imported where they are not yet, with the ratios that they serve."""
    found: dict[str, tuple[float, ...]] = {}
    for name, ratios, arguments in released(data / "official"):
        path = folder / f"{name}.safetensors"
        try:
            if not path.exists():
                save_checkpoint(import_official(**arguments), path)
        except UserError as error:
            print(f"note: {name} is left out: {error}", file=sys.stderr)
            continue
        found[path.as_posix()] = ratios
    return found


def shipped() -> dict[str, tuple[float, ...]]:
    """The networks of the zoo with the ratios that they serve."""
    return {
        name: RATIOS if None in files else tuple(percent / 100 for percent in files if percent)
        for name, files in zoo().items()
    }


def stages(networks: Mapping[str, tuple[float, ...]]) -> Iterator[Stage]:
    """Everything to compute, what is cheap and what is worth most first.

    Args:
        networks: paths and names with the ratios that they serve.
    """
    fast, slow, slowest = (dict.fromkeys(methods, RATIOS) for methods in (FAST, SLOW, SLOWEST))
    rounds = [(methods, ratios) for ratios in ROUNDS for methods in (networks, slow)]
    for methods, ratios in [(fast, RATIOS), *rounds, *((slowest, ratios) for ratios in ROUNDS)]:
        for dataset, limit in SETS:
            for method, served in methods.items():
                wanted = tuple(ratio for ratio in ratios if ratio in served)
                if wanted:
                    yield Stage(method, dataset, wanted, limit)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("results/leaderboard"))
    options = parser.parse_args()
    try:
        networks = shipped() | imported(options.data_dir, options.out / "official")
        for stage in stages(networks):
            print(f"{stage.dataset}: {stage.method} at {', '.join(map(str, stage.ratios))}", flush=True)
            stage.run(options.data_dir, options.out)
    except UserError as error:
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
