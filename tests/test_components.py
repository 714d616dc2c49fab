"""Principal components as sampling: the rows, the files they are kept in, the command, and training with them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cs_models.errors import UserError
from cs_models.metrics import psnr
from cs_models.moments import second_moment
from cs_models.networks.learned_sampling.csnet_plus import CSNetPlusModule
from cs_models.networks.learned_sampling.opine_net import OPINENetModule
from cs_models.networks.unfolding.coast import COASTConfig, COASTModule
from cs_models.networks.unfolding.ista_net import ISTANetModule
from cs_models.networks.unfolding.module import UnfoldingTraining, nested_rows
from cs_models.networks.unfolding.scnet import SCNetConfig, SCNetModule
from cs_models.operators import BlockOperator, Sampling, SamplingBank, make_operator
from cs_models.operators.components import (
    SHA256,
    assemble,
    components,
    pack,
    principal_rows,
    read_components,
    symmetry_bases,
)
from cs_models.operators.principal import main
from cs_models.solvers.linear import LinearEstimate
from cs_models.training.weights import save_checkpoint
from cs_models.zoo.checkpoints import load_checkpoint
from datamodules.catalog import load_set

PACKAGE = Path(__file__).resolve().parent.parent / "cs_models" / "operators"
SIZES = [4, 5, 6]


def shipped(size: int) -> torch.Tensor:
    return read_components(PACKAGE / f"pca_{size}.safetensors", SHA256[size])


@pytest.mark.parametrize("size", SHA256)
def test_shipped_rows_are_orthonormal_and_symmetric(size: int) -> None:
    rows = shipped(size)
    torch.testing.assert_close(rows @ rows.T, torch.eye(size**2, dtype=torch.float64), rtol=0, atol=1e-12)
    blocks = rows.unflatten(1, (size, size))
    for axis in (1, 2):
        flipped = blocks.flip(axis)
        even, odd = ((blocks + sign * flipped).flatten(1).norm(dim=1) for sign in (1, -1))
        assert torch.minimum(even, odd).max() < 1e-12
    assert (rows[0] > 0).all(), "the first row is nearly the mean of the block"


@pytest.mark.parametrize("size", SHA256)
def test_shipped_rows_nest_up_to_all_of_them(size: int) -> None:
    whole = make_operator(f"block:pca:{size}", 1.0, (size, size)).matrix
    assert whole.shape == (size**2, size**2)
    for ratio in (0.01, 0.1, 0.5, 0.8):
        rows = make_operator(f"block:pca:{size}", ratio, (size, size), seed=3).matrix
        assert torch.equal(rows, whole[: len(rows)])


@pytest.mark.parametrize(("words", "size"), [("block:pca", 33), ("block:pca:33", 33), ("block:pca:32", 32)])
def test_the_operator_names_its_source(words: str, size: int) -> None:
    operator = make_operator(words, 0.1, (40, 50))
    assert isinstance(operator, BlockOperator)
    assert operator.block_size == size
    file = PACKAGE / operator.spec["file"]
    assert operator.spec["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert json.loads(json.dumps(operator.spec)) == operator.resized(7, 9).spec


def test_another_block_size_is_told_how_to_get_one() -> None:
    with pytest.raises(UserError, match=r"32x32 and 33x33, not of 16x16.*--block_size 16 --out rows.npy"):
        make_operator("block:pca:16", 0.1, (33, 33))


@pytest.mark.parametrize("damage", ["flipped byte", "truncated", "missing"])
def test_damaged_file(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "pca_32.safetensors"
    content = bytearray((PACKAGE / path.name).read_bytes())
    content[len(content) // 2] ^= 1
    if damage != "missing":
        path.write_bytes(content if damage == "flipped byte" else content[:1000])
    with pytest.raises(UserError, match="cannot read" if damage == "missing" else "damaged: their sha256") as caught:
        read_components(path, SHA256[32])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", SIZES)
def test_bases_of_symmetry_classes(size: int) -> None:
    bases = symmetry_bases(size)
    transposed = bases["mixed"].unflatten(1, (size, size)).mT.flatten(1)
    whole = torch.cat([*bases.values(), transposed])
    torch.testing.assert_close(whole @ whole.T, torch.eye(size**2, dtype=torch.float64))


@pytest.mark.parametrize("size", SIZES)
def test_components_are_eigenvectors_in_order(size: int) -> None:
    moment = second_moment(("bundled-train",), size)
    tensors = components(moment)
    rows = assemble(tensors)
    values = torch.linalg.eigvalsh(moment).flip(0)
    torch.testing.assert_close(rows @ moment @ rows.T, values.diag(), rtol=1e-9, atol=1e-9 * values[0].item())
    again = components(moment)
    assert all(torch.equal(tensors[name], again[name]) for name in tensors)


def test_signs_do_not_depend_on_the_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = second_moment(("bundled-train",), 5)
    expected, solve = components(moment), torch.linalg.eigh

    def other_signs(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, vectors = solve(matrix)
        return values, -vectors

    monkeypatch.setattr(torch.linalg, "eigh", other_signs)
    assert all(torch.equal(value, expected[name]) for name, value in components(moment).items())


@pytest.mark.parametrize("size", SIZES)
def test_kept_rows_are_orthonormal_and_close(tmp_path: Path, size: int) -> None:
    tensors = components(second_moment(("bundled-train",), size))
    content = pack(tensors, {"block_size": size})
    (tmp_path / "rows.safetensors").write_bytes(content)
    kept = read_components(tmp_path / "rows.safetensors", hashlib.sha256(content).hexdigest())
    torch.testing.assert_close(kept, assemble(tensors), rtol=0, atol=2e-3)
    torch.testing.assert_close(kept @ kept.T, torch.eye(size**2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_command_writes_rows_for_the_operator(tiny_images: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.npy"
    assert main(["--sets", f"{tiny_images},bundled-train", "--block_size", "6", "--out", str(out)]) == 0
    assert np.load(out).shape == (36, 36)
    moment = second_moment((str(tiny_images), "bundled-train"), 6)
    rows = make_operator(str(out), 0.25, (20, 20)).matrix.double()
    assert torch.trace(rows @ moment @ rows.T) == pytest.approx(float(torch.linalg.eigvalsh(moment)[-9:].sum()))


def test_command_writes_the_compact_file(tiny_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.safetensors"
    assert main(["--sets", str(tiny_images), "--block_size", "7", "--out", str(out)]) == 0
    sha256 = capsys.readouterr().out.split()[-1]
    assert read_components(out, sha256).shape == (49, 49)
    first = out.read_bytes()
    main(["--sets", str(tiny_images), "--block_size", "7", "--out", str(out)])
    assert out.read_bytes() == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--sets": "Trian400"}, "unknown dataset 'Trian400'"),
        ({"--block_size": "3"}, "--block_size must be 4 to 64, got 3"),
        ({"--block_size": "3000"}, "--block_size must be 4 to 64, got 3000"),
        ({"--out": "rows.pt"}, "--out ends with '.pt'; expected .npy"),
        ({"--out": "none/rows.npy"}, "cannot write none/rows.npy: No such file"),
    ],
)
def test_command_refuses_in_one_line(
    tiny_images: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str], message: str
) -> None:
    options = {"--sets": str(tiny_images), "--block_size": "4", "--out": "rows.npy"} | changes
    assert main([word for option in options.items() for word in option]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_images_without_a_block(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((20, 7), dtype=np.uint8)).save(tmp_path / "narrow.png")
    with pytest.raises(UserError, match=f"no image of '{tmp_path}' is as large as a 8x8 block"):
        second_moment((str(tmp_path),), 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matrices_per_ratio": 2}, "matrices_per_ratio must be 1, got 2"),
        ({"kind": "structured"}, "for sampling.kind 'block', not 'structured'"),
        ({"block_size": 8}, "not of 8x8"),
    ],
)
def test_training_sampling_that_makes_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sampling(**{"matrices": "pca"} | options)


@pytest.mark.parametrize("size", SHA256)
def test_training_and_evaluation_measure_alike(size: int) -> None:
    sampling = Sampling(ratios=(0.1, 0.3), block_size=size, matrices="pca", noise_sigma=5)
    module = COASTModule(COASTConfig(layers=2, features=8), UnfoldingTraining(sampling))
    drawn = SamplingBank(sampling).draw(4, (40, 50))
    natural = module.default_operator(drawn.ratio, (40, 50), seed=7)
    assert torch.equal(drawn.matrix, natural.matrix)
    assert drawn.spec == natural.spec
    x = torch.rand(1, 1, 40, 50)
    y, operator = module.prepared(natural(x), natural)
    assert operator is natural
    assert torch.equal(y, natural(x))
    loss = module.training_loss(x, drawn(x), drawn)
    loss.backward()
    assert loss.isfinite()


def test_checkpoints_remember_it(tmp_path: Path) -> None:
    training = UnfoldingTraining(Sampling(matrices="pca"))
    path = save_checkpoint(COASTModule(COASTConfig(layers=1, features=8), training), tmp_path / "network.safetensors")
    operator = load_checkpoint(path).default_operator(0.1, (33, 33))
    assert operator.spec == make_operator("block:pca", 0.1, (33, 33)).spec


def _learning(ratios: tuple[float, ...] = (0.05, 0.1), **options: Any) -> SCNetModule:
    training = UnfoldingTraining(Sampling(ratios, block_size=33, matrices="learned"), **options)
    return SCNetModule(SCNetConfig(layers=2, features=4), training)


def test_learned_rows_stay_nested_and_orthonormal(tmp_path: Path) -> None:
    module = _learning()
    x = torch.rand(1, 1, 40, 50)
    start = module.default_operator(0.1, (40, 50)).matrix
    torch.testing.assert_close(start, principal_rows(109, 33), atol=1e-5, rtol=0)
    for step in range(4):
        operator = module.training_operator((40, 50), step)
        gradients = torch.autograd.grad(module.training_loss(x, operator(x), operator, step), [*module.parameters()])
        with torch.no_grad():
            for weight, gradient in zip(module.parameters(), gradients, strict=True):
                weight -= 1e-2 * gradient.sign()
        module.constrain()
    assert {module.training_operator((40, 50), step).ratio for step in range(8)} == {0.05, 0.1}

    loaded = load_checkpoint(save_checkpoint(module, tmp_path / "network.safetensors"))
    large, small = (loaded.default_operator(ratio, (40, 50)) for ratio in (0.1, 0.05))
    torch.testing.assert_close(large.matrix @ large.matrix.T, torch.eye(109), atol=1e-5, rtol=0)
    assert (large.matrix - start).abs().max() > 1e-3
    assert torch.equal(small.matrix, large.matrix[:54])
    assert small.spec == module.default_operator(0.05, (40, 50)).spec
    assert torch.equal(loaded.reconstruct(small(x), small), module.eval().reconstruct(small(x), small))
    with pytest.raises(UserError, match=r"learned its sampling for ratios up to 0\.1, not 0\.2"):
        loaded.default_operator(0.2, (40, 50))


def test_learned_rows_start_from_a_network_with_fixed_ones(tmp_path: Path) -> None:
    fixed = SCNetModule(SCNetConfig(layers=2, features=4), UnfoldingTraining(Sampling((0.1,), matrices="pca")))
    first = _learning(start_from=str(save_checkpoint(fixed, tmp_path / "fixed.safetensors")))
    torch.testing.assert_close(first.default_operator(0.1, (33, 33)).matrix, principal_rows(109, 33), atol=1e-5, rtol=0)
    rows = nested_rows(first.network)
    assert rows is not None
    with torch.no_grad():
        rows.weight.mul_(-1)
    second = _learning(start_from=str(save_checkpoint(first, tmp_path / "learned.safetensors")))
    assert torch.equal(second.network.state_dict()["sampling.weight"], rows.weight)


@pytest.mark.parametrize("cls", [ISTANetModule, OPINENetModule, CSNetPlusModule])
def test_networks_that_cannot_learn_rows_for_all_ratios(cls: Any) -> None:
    with pytest.raises(UserError, match=r"sampling\.matrices 'learned'"):
        cls(training=cls.training_class(Sampling((0.1,), matrices="learned")))


def test_headers_from_before_mean_random_rows(tmp_path: Path) -> None:
    module = COASTModule(COASTConfig(layers=1, features=8), UnfoldingTraining())
    path = save_checkpoint(module, tmp_path / "network.safetensors")
    header = module.header()
    del header["training"]["sampling"]["matrices"]
    save_file(load_file(path), path, metadata={"cs_models": json.dumps(header)})
    operator = load_checkpoint(path).default_operator(0.1, (33, 33))
    assert operator.spec == make_operator("block", 0.1, (33, 33)).spec


@pytest.mark.parametrize(("ratio", "figure"), [(0.1, 26.49), (0.5, 36.97)])
def test_linear_estimate_of_set11(real_data: Path, ratio: float, figure: float) -> None:
    method, found = LinearEstimate(), []
    for _, image in load_set("Set11", real_data):
        operator = make_operator("block:pca", ratio, (image.shape[-2], image.shape[-1]))
        found.append(psnr(method.reconstruct(operator(image[None]), operator).clamp(0, 1), image[None]))
    assert torch.cat(found).mean().item() == pytest.approx(figure, abs=0.01)
