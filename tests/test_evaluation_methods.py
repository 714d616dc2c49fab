"""The table of methods: every entry works, settings get their types, the zoo is found; and the linear estimate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cs_models.errors import UserError
from cs_models.moments import second_moment
from cs_models.operators import make_operator
from cs_models.solvers.linear import LinearEstimate, linear_estimator, markov_field
from cs_models.zoo.methods import (
    METHODS,
    MethodSpec,
    build_method,
    checkpoint_path,
    load,
    parse_method,
    parse_methods,
    zoo,
)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_reconstructs_and_names_its_settings(name: str, tiny_ddpm: Path) -> None:
    method = build_method(f"ddnm:model={tiny_ddpm}:steps=2" if name == "ddnm" else name, 0.3)
    operator = make_operator("block:8", 0.3, (20, 19))
    x = torch.linspace(0, 1, 20)[:, None].expand(2, 1, 20, 19).contiguous()
    solution = method.solve(operator(x), operator)
    assert solution.x.shape == x.shape
    assert torch.isfinite(solution.x).all()
    assert METHODS[name].summary
    assert json.loads(json.dumps(method.settings())) is not None


def documented_pairs() -> list[tuple[str, str, bool]]:
    """Method, operator and whether it takes it, from the table of docs/solvers.md."""
    operators = ["block:16", "structured:16", "column", "pixel", "fourier", "transform2d"]
    page = (Path(__file__).parent.parent / "docs/solvers.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `")]
    table = [row for row in rows if len(row) == 2 + len(operators)]
    assert table, "docs/solvers.md has lost its table of solvers and operators"
    return [
        (method.strip("` "), operator, cell != "-")
        for methods, *cells in table
        for method in methods.split(",")
        for operator, cell in zip(operators, cells[:-1], strict=True)
    ]


@pytest.mark.parametrize(("name", "spec", "taken"), documented_pairs())
def test_each_solver_takes_the_operators_that_the_docs_say(name: str, spec: str, taken: bool) -> None:
    operator = make_operator(spec, 0.4, (32, 32))
    x = torch.linspace(0, 1, 32)[:, None].expand(1, 1, 32, 32).contiguous()
    method = build_method(name, 0.4)
    if taken:
        assert torch.isfinite(method.reconstruct(operator(x), operator)).all()
    else:
        with pytest.raises(UserError) as error:
            method.reconstruct(operator(x), operator)
        assert "\n" not in str(error.value)


def test_settings_have_the_types_of_the_constructor() -> None:
    settings = build_method("clomp:recipe=released:epochs=7:w_tv=0.5", 0.3).settings()
    assert (settings["recipe"], settings["epochs"], settings["w_tv"]) == ("released", 7, 0.5)
    assert parse_method("tv").settings == ()


def test_the_zoo_has_models_for_all_ratios_and_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a_net", "b_net_10", "b_net_30"):
        (tmp_path / f"{name}.safetensors").touch()
    found = zoo(tmp_path)
    monkeypatch.setattr("cs_models.zoo.methods.zoo", lambda: found)
    assert set(found) == {"a_net", "b_net"}
    assert checkpoint_path(MethodSpec("a_net", "a_net"), 0.17).stem == "a_net"
    assert checkpoint_path(MethodSpec("b_net", "b_net"), 0.3).stem == "b_net_30"
    with pytest.raises(UserError, match="weights for 10, 30 %"):
        checkpoint_path(MethodSpec("b_net", "b_net"), 0.2)
    pairs = [(spec.name, ratio) for spec, ratio in parse_methods(["omp", "zoo", "a_net"], [0.1, 0.2])]
    assert pairs == [("omp", 0.1), ("omp", 0.2), ("a_net", 0.1), ("a_net", 0.2), ("b_net", 0.1)]
    with pytest.raises(UserError, match="choose with ratio="):
        load("b_net")
    with pytest.raises(UserError, match="needs no training"):
        load("omp")


def test_the_linear_estimator_is_the_least_squares_solution_over_the_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.rand(16, 500, generator=generator, dtype=torch.float64)
    phi = torch.randn(5, 16, generator=generator, dtype=torch.float64)
    measured = phi @ blocks
    expected = blocks @ measured.T @ torch.linalg.inv(measured @ measured.T)
    result = linear_estimator(phi, blocks @ blocks.T / 500)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spec", ["pixel", "structured:16", "fourier"])
def test_the_linear_estimate_of_whole_images_is_that_of_a_markov_field(spec: str) -> None:
    height, width = 32, 48
    operator = make_operator(spec, 0.4, (height, width)).double()
    x = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    field = markov_field("bundled-train")
    spectrum = torch.outer(field.spectrum(height), field.spectrum(width))
    pixels = torch.eye(height * width, dtype=torch.float64).view(-1, 1, height, width)
    covariance = field.variance * torch.fft.ifft2(torch.fft.fft2(pixels) * spectrum).real
    a, c = operator(pixels).flatten(1).T, covariance.flatten(1)
    real = torch.cat([a.real, a.imag]) if a.is_complex() else a
    gain = c @ real.T @ torch.linalg.inv(real @ c @ real.T + 1e-6 * torch.eye(len(real), dtype=torch.float64))
    expected = field.mean + gain @ real @ (x - field.mean).flatten()
    result = LinearEstimate().reconstruct(operator(x), operator).flatten()
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-3)


def test_the_second_moment_is_that_of_pictures() -> None:
    moment = second_moment(("bundled-train",), 8)
    assert moment.shape == (64, 64)
    torch.testing.assert_close(moment, moment.T)
    assert torch.linalg.eigvalsh(moment).min() > 0
    assert moment[0, 1] > moment[0, 7] > moment[0, 63]


def test_the_linear_estimate_follows_the_operator_it_is_given() -> None:
    x = torch.linspace(0, 1, 32)[:, None].expand(1, 1, 32, 32).contiguous()
    method = LinearEstimate()
    for ratio in (0.2, 0.5, 0.2):
        operator = make_operator("block:8", ratio, (32, 32))
        fresh = LinearEstimate().reconstruct(operator(x), operator)
        torch.testing.assert_close(method.reconstruct(operator(x), operator), fresh)
        assert (fresh - x).abs().mean() < 0.05
