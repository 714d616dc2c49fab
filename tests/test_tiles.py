"""Large images in tiles: what is measured stays, what is reconstructed differs by next to nothing."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from skimage.data import camera
from torch import Tensor

from cs_models.cli.evaluate import main
from cs_models.errors import UserError
from cs_models.evaluation.memory import PeakMemory
from cs_models.evaluation.protocol import score
from cs_models.evaluation.tiles import TileMemory, Tiling, solve_in_tiles
from cs_models.operators import MeasurementOperator, make_operator
from cs_models.reconstruction import Reconstructor, Solution
from cs_models.zoo.checkpoints import load_checkpoint
from cs_models.zoo.methods import build_method, parse_methods
from tests.conftest import REPOSITORY


@dataclass(frozen=True)
class Backprojection(Reconstructor):
    """Looks at nothing beyond a block or column, so tiles change nothing at all."""

    def _solve(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        x = operator.pinv(y)
        ones = torch.ones(len(y))
        return Solution(x, ones * x.shape[-1], ones, ones * x.shape[-1] < 50)

    def settings(self) -> dict[str, object]:
        return {}


@pytest.mark.parametrize("size", [(100, 131), (33, 200), (66, 66), (20, 99)])
@pytest.mark.parametrize("words", ["block", "block:8", "column"])
@pytest.mark.parametrize("tiling", [Tiling(40, 0), Tiling(99, 33), Tiling(120, 20)])
def test_tiles_fit_together_without_gaps(words: str, size: tuple[int, int], tiling: Tiling) -> None:
    operator = make_operator(words, 0.3, size)
    x = torch.rand(2, 3, *size)
    y = operator(x)
    tiled = solve_in_tiles(Backprojection(), y, operator, tiling)
    assert (tiled.x - operator.pinv(y)).abs().max() < 1e-4
    assert tiled.residual is not None
    assert tiled.residual.max() < 1e-4
    assert tiled.iterations is not None
    assert tiled.iterations.max() <= max(tiling.size, 33)


@pytest.mark.slow
def test_a_network_in_tiles_equals_untiled() -> None:
    x = torch.from_numpy(camera()[100:350, 150:400]).float()[None, None] / 255
    network = load_checkpoint(REPOSITORY / "checkpoints/r_coast.safetensors")
    network.set_schedule((1, 1, 1, 1, 1))  # a quarter of the work
    whole, tiled = _scores(network, x, make_operator("block", 0.3, (250, 250)), Tiling(200, 66))
    assert tiled == pytest.approx(whole, abs=0.02)
    assert tiled != whole  # it was cut


@pytest.mark.slow
@pytest.mark.parametrize(("words", "ratio"), [("block", 0.3), ("column", 0.1)])
def test_coefficients_learning_in_tiles_equals_untiled(words: str, ratio: float) -> None:
    """Adam takes another path in each tile: pixels differ either way, and the more there are the less it shows."""
    x = torch.from_numpy(camera()[91:421, 91:421]).float()[None, None] / 255
    clomp = build_method(parse_methods(["clomp_warm"], [ratio])[0][0], ratio)
    whole, tiled = _scores(clomp, x, make_operator(words, ratio, (330, 330)), Tiling(231, 66))
    assert tiled == pytest.approx(whole, abs=0.02)
    assert tiled != whole


def _scores(method: Reconstructor, x: Tensor, operator: MeasurementOperator, tiling: Tiling) -> tuple[float, float]:
    """PSNR of an image in dB, reconstructed as a whole and in tiles."""
    y = operator(x)
    whole = method.reconstruct(y, operator)
    tiled = solve_in_tiles(method, y, operator, tiling).x
    return score(whole[0].clamp(0, 1), x[0])[0], score(tiled[0].clamp(0, 1), x[0])[0]


def test_every_tile_is_as_large_as_allowed_and_keeps_its_margins() -> None:
    for count in range(1, 60):
        spans = Tiling(10 * 33, 60).spans(count, 33)
        assert [span.keep_first for span in spans] == [0, *(span.keep_last for span in spans[:-1])]
        assert (spans[0].first, spans[-1].last, spans[-1].keep_last) == (0, count, count)
        for span in spans:
            assert span.last - span.first == min(count, 10)
            assert span.first == 0 or span.keep_first - span.first >= 2
            assert span.last == count or span.last - span.keep_last >= 2


@pytest.mark.slow
def test_the_command_line_cuts_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cs_models.evaluation.loop.LARGE_IMAGE", 0)  # no reconstruction before those that are timed
    Image.fromarray(camera()[100:298, 150:348]).save(tmp_path / "part.png")
    words = ["--methods", "r_coast", "--iterations_per_layer", "1,1,1,1,1", "--image", str(tmp_path / "part.png")]
    words += ["--channels", "luminance", "--ratios", "0.1", "--precision", "fp32", "--device", "cpu"]
    words += ["--out", str(tmp_path)]
    assert main(words) == 0
    for cut in (["--tile", "165"], ["--tile_memory", "0.05"]):
        assert main([*words, *cut]) == 0
    with open(tmp_path / "per_image.csv") as file:
        whole, *cut_ones = csv.DictReader(file)
    for tiled in cut_ones:
        assert whole["run_key"] != tiled["run_key"]
        assert float(tiled["psnr_db"]) == pytest.approx(float(whole["psnr_db"]), abs=0.02)


@pytest.mark.parametrize(
    ("words", "tiling", "expected"),
    [
        ("structured", Tiling(100, 10), "measures the image as a whole"),
        ("block", Tiling(100, 66), "at least 165"),
        ("column", Tiling(20, 10), "at least 21"),
    ],
)
def test_what_cannot_be_cut_is_refused(words: str, tiling: Tiling, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        tiling.check(make_operator(words, 0.3, (64, 64)))


@dataclass(frozen=True)
class Metered(Reconstructor):
    """A method that notes the memory of each reconstruction."""

    method: Reconstructor
    peaks: list[int]

    def _solve(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        with PeakMemory() as memory:
            solution = self.method.solve(y, operator)
        self.peaks.append(memory.peak)
        return solution

    def settings(self) -> dict[str, object]:
        return self.method.settings()


@pytest.mark.parametrize(("words", "size"), [("block", (600, 800)), ("column", (200, 2400))])
@pytest.mark.parametrize("name", ["tv:iterations=3", "fista:iterations=3", "clomp:epochs=3"])
def test_tiles_stay_under_a_limit_on_memory(name: str, words: str, size: tuple[int, int]) -> None:
    method = Metered(build_method(parse_methods([name], [0.3])[0][0], 0.3), [])
    operator = make_operator(words, 0.3, size)
    y = operator(torch.rand(1, 1, *size))
    limit = 0.01
    tiling = TileMemory(limit, 33).fit(method, y, operator)
    assert tiling.size < size[1]
    trials = len(method.peaks)
    solve_in_tiles(method, y, operator, tiling)
    assert 0.4 * limit < max(method.peaks[trials:]) / 1e9 <= limit


@pytest.mark.parametrize("size", [(64, 64), (40, 900)])
def test_images_below_the_smallest_tile_only_need_to_fit_themselves(size: tuple[int, int]) -> None:
    operator = make_operator("block", 0.3, size)
    y = operator(torch.rand(1, 1, *size))
    method = Metered(build_method(parse_methods(["fista:iterations=2"], [0.3])[0][0], 0.3), [])
    tiling = TileMemory(0.01, 66).fit(method, y, operator)
    solve_in_tiles(method, y, operator, tiling)
    assert max(method.peaks) / 1e9 <= 0.01


def test_memory_is_counted_while_it_is_held() -> None:
    with PeakMemory() as memory:
        x = torch.zeros(1000)
        rest = (x + 1).view(-1)[:5]  # a view holds the whole
        for _ in range(10):
            x = x * 2
        assert memory.peak == 3 * 4000
        del x, rest
        torch.zeros(2500)
    assert memory.peak == 3 * 4000


def test_a_limit_below_the_smallest_tile_is_refused() -> None:
    operator = make_operator("block", 0.3, (500, 400))
    y = operator(torch.rand(1, 1, 500, 400))
    method = build_method(parse_methods(["fista:iterations=2"], [0.3])[0][0], 0.3)
    with pytest.raises(UserError, match=r"--tile_memory 0.0001: the smallest tile, 165 wide with margins of 66,"):
        TileMemory(1e-4, 66).fit(method, y, operator)
