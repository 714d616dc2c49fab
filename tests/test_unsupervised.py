"""Training without ground truth, sets of measurements, and adaptation of a network to one image."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cs_models.cli import evaluate, measure, train
from cs_models.errors import UserError
from cs_models.evaluation.loop import run
from cs_models.evaluation.options import Execution, Options
from cs_models.evaluation.plan import Plan, make_candidate
from cs_models.networks.unfolding.coast import COAST, COASTConfig
from cs_models.networks.unfolding.ista_net import ISTANetModule
from cs_models.networks.unfolding.module import UnfoldingTraining
from cs_models.networks.unfolding.scnet import SCNetConfig, SCNetModule
from cs_models.operators import BlockOperator, MeasurementOperator, PixelOperator, Sampling, make_operator
from cs_models.training.adaptation import Adaptation
from cs_models.training.lightning import LightningTraining
from cs_models.training.supervision import LOSSES, loss_without_truth, sure, unsupervised_loss
from cs_models.zoo.methods import parse_method
from datamodules.measurements import MeasurementBatches, read_measurements
from tests.conftest import REPOSITORY

SAMPLING = Sampling(ratios=(0.4,), block_size=8, noise_sigma=5.0)


def small(supervision: Any = "ground_truth", **changed: Any) -> SCNetModule:
    """A network of two stages."""
    torch.manual_seed(0)
    training = UnfoldingTraining(sampling=SAMPLING, supervision=supervision, **changed)
    return SCNetModule(SCNetConfig(layers=2, features=4), training)


def problem(images: int = 2, noise_sigma: float = 0.0, ratio: float = 0.4) -> tuple[Tensor, Tensor, BlockOperator]:
    """Images, their measurements, and what measured them."""
    operator = BlockOperator.gaussian(ratio, (16, 24), block_size=8, noise_sigma=noise_sigma)
    x = torch.rand(images, 1, 16, 24)
    return x, operator.measure(x, torch.Generator().manual_seed(0)), operator


class Images(Tensor):
    """Images that nobody may look at once they were measured."""

    measured = False

    @classmethod
    def __torch_function__(cls, *args: Any, **kwargs: Any) -> Any:
        assert not Images.measured, "the images were read after they had been measured"
        return super().__torch_function__(*args, **kwargs)


@pytest.mark.parametrize("supervision", ["ground_truth", *LOSSES])
def test_the_images_are_never_looked_at(supervision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(operator: MeasurementOperator, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        y = original(operator, x.as_subclass(Tensor), generator)
        Images.measured = True
        return y

    original = MeasurementOperator.measure
    monkeypatch.setattr(MeasurementOperator, "measure", measured)
    monkeypatch.setattr(Images, "measured", False)
    training = LightningTraining(small(supervision))
    batch = torch.randint(256, (2, 1, 16, 16), dtype=torch.uint8).as_subclass(Images)
    if supervision == "ground_truth":
        with pytest.raises(AssertionError, match="read after"):
            training.training_step(batch, 0)
        return
    training.training_step(batch, 0).backward()
    gradients = [parameter.grad for parameter in training.method.network.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("supervision", ["measurements", "equivariant"])
def test_two_processes_see_what_one_sees(supervision: str) -> None:
    _, y, operator = problem()
    method = small(supervision)
    both, other_step = (unsupervised_loss(method, y, operator, step) for step in (3, 4))
    halves = [unsupervised_loss(method, one, operator, 3) for one in y.split(1)]
    torch.testing.assert_close(torch.stack(halves).mean(), both)
    assert (other_step - both).abs() > 1e-5


def zeros(y: Tensor, operator: MeasurementOperator) -> Tensor:
    return torch.zeros(len(y), 1, *operator.image_size)


@pytest.mark.parametrize(
    ("kind", "ratio", "estimate", "expected"),
    [
        ("measurements", 0.4, zeros, lambda y: y.abs().mean()),  # each measurement is predicted once
        ("equivariant", 0.4, zeros, lambda y: y.square().mean()),
        ("equivariant", 1.0, lambda y, operator: operator.adjoint(y), lambda y: torch.zeros(())),
    ],
)
def test_losses_of_known_estimates(
    kind: str,
    ratio: float,
    estimate: Callable[[Tensor, MeasurementOperator], Tensor],
    expected: Callable[[Tensor], Tensor],
) -> None:
    _, y, operator = problem(ratio=ratio)
    loss = loss_without_truth(kind, UnfoldingTraining(), estimate, y, operator, step=0)
    torch.testing.assert_close(loss, expected(y), atol=1e-5, rtol=1e-5)


def test_splitting_predicts_the_rows_that_the_network_did_not_see() -> None:
    x, y, operator = problem()
    seen: list[Tensor] = []

    def oracle(y: Tensor, part: MeasurementOperator) -> Tensor:
        torch.testing.assert_close(part(x), y)
        assert isinstance(part, BlockOperator)
        seen.append(part.matrix)
        return x

    loss = loss_without_truth("splitting", UnfoldingTraining(), oracle, y, operator, step=0)
    assert loss < 1e-6
    assert len(seen) == 2  # without the cycle there is nothing else to reconstruct
    rows = torch.cat(seen)
    assert rows.shape == operator.matrix.shape
    torch.testing.assert_close(rows.T @ rows, operator.matrix.T @ operator.matrix)  # all rows, each once

    parts: list[Tensor] = []

    def blank(y: Tensor, part: MeasurementOperator) -> Tensor:
        parts.append(y)
        return zeros(y, part)

    loss = loss_without_truth("splitting", UnfoldingTraining(), blank, y, operator, step=0)
    torch.testing.assert_close(loss, (parts[0].abs().mean() * parts[1].abs().mean()).sqrt())


@pytest.mark.parametrize("name", ["block:8", "radial"])  # measurements are real, and complex
def test_sure_agrees_with_the_true_error(name: str) -> None:
    sigma = 0.1
    operator, x = make_operator(name, 0.4, (16, 24), noise_sigma=sigma), torch.rand(8, 1, 16, 24)
    # Not SCNet, which ends on a projection: A f(y) is y there, whatever f learned.
    network, generator = COAST(COASTConfig(layers=2, features=4)), torch.Generator().manual_seed(1)
    differences, without_divergence = [], []
    with torch.no_grad():
        for _ in range(40):
            y = operator.measure(x, generator)
            estimate = network(y, operator)
            error = (operator(estimate) - operator(x)).abs().square().mean()
            differences.append(sure(network, estimate, y, operator, generator) - error)
            without_divergence.append((operator(estimate) - y).abs().square().mean() - sigma**2 - error)
    difference = torch.stack(differences)
    uncertainty = float(difference.std()) / len(difference) ** 0.5
    assert float(difference.std()) < 0.2 * sigma**2
    assert abs(float(difference.mean())) < 3 * uncertainty
    assert abs(float(torch.stack(without_divergence).mean())) > 30 * uncertainty


@pytest.mark.parametrize(
    ("kind", "operator", "expected"),
    [
        ("measurements", PixelOperator((16, 24), 0.4), "pixel has none"),
        ("measurements", BlockOperator.gaussian(0.01, (16, 24), block_size=8), "1 row"),
        ("sure", BlockOperator.gaussian(0.4, (16, 24), block_size=8), "known standard deviation"),
    ],
)
def test_losses_that_an_operator_does_not_have(kind: str, operator: MeasurementOperator, expected: str) -> None:
    y = operator(torch.rand(1, 1, 16, 24))
    with pytest.raises(UserError, match=expected):
        loss_without_truth(kind, UnfoldingTraining(), zeros, y, operator, step=0)


def test_networks_and_losses_that_need_images() -> None:
    with pytest.raises(UserError, match="set loss_on final"):
        UnfoldingTraining(supervision="equivariant", loss_on="all")
    training = UnfoldingTraining(sampling=Sampling(ratios=(0.1,)), supervision="equivariant")
    with pytest.raises(UserError, match="networks that take any operator"):
        ISTANetModule(training=training)


def test_turns_keep_the_size_that_an_operator_is_for() -> None:
    operator = PixelOperator.from_mask(torch.rand(16, 24) < 0.4, 0.4)
    y = operator(torch.rand(1, 1, 16, 24))
    losses = [loss_without_truth("equivariant", UnfoldingTraining(), small().network, y, operator, n) for n in range(4)]
    assert torch.stack(losses).isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_adapting_changes_a_copy_for_each_image(loss: str) -> None:
    _, y, operator = problem(noise_sigma=0.02)
    method = small()
    before, plain = method.settings(), method.reconstruct(y, operator)
    adaptation = Adaptation(steps=3, rate=1e-2, loss=loss)
    adapted = adaptation.solve(method, y, operator).x
    assert method.settings() == before
    torch.testing.assert_close(method.reconstruct(y, operator), plain)
    assert (adapted - plain).abs().amax() > 1e-3
    torch.testing.assert_close(adaptation.solve(method, y[1:], operator).x, adapted[1:])


def test_adapting_lowers_the_loss_also_in_bfloat16() -> None:
    _, y, operator = problem(images=1)
    method, options = small(), UnfoldingTraining()
    adaptation = Adaptation(steps=30, rate=1e-2, loss="equivariant")
    with torch.autocast("cpu", torch.bfloat16):
        adapted = adaptation.adapted(method, y, operator)
        first, last = (
            loss_without_truth("equivariant", options, one.training_estimate, y, operator, step=0).detach()
            for one in (method, adapted)
        )
    assert float(last) < 0.9 * float(first)


def test_adaptation_is_part_of_the_key_and_not_for_solvers(tmp_path: Path) -> None:
    spec, device = parse_method("scnet"), torch.device("cpu")
    executions = [Execution(), Execution(adapt=2), Execution(adapt=2, adapt_rate=1e-3)]
    facts = [json.dumps(make_candidate(spec, 0.1, execution, device).facts) for execution in executions]
    assert len(set(facts)) == 3
    assert "adaptation" not in facts[0]
    for method in ("omp", "ista_net_plus"):
        with pytest.raises(UserError, match="networks that take any operator"):
            make_candidate(parse_method(method), 0.1, executions[1], device)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--adapt", "-1"], "--adapt -1"),
        (["--adapt", "2", "--adapt_rate", "0"], "--adapt_rate 0"),
        (["--adapt", "2", "--tile", "99"], "--tile"),
        (["--adapt", "2", "--adapt_loss", "sure"], "give --noise"),
    ],
)
def test_adaptations_that_make_no_sense(words: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        evaluate.parse(["--methods", "scnet", "--datasets", "bundled", "--ratios", "0.1", *words])


# Sets of measurements


def make_set(images: Path, out: Path, *words: str) -> Path:
    assert measure.main([str(images), "--ratio=0.3", f"--out={out}", *words]) == 0
    return out


def test_a_set_is_measured_trained_on_and_adapted_to(tiny_images: Path, tmp_path: Path) -> None:
    folder = make_set(tiny_images, tmp_path / "set", "--operator=block:16", "--shape=32,32", "--noise=2", "--bits=10")
    measured = read_measurements(folder)
    assert measured.y.shape == (12, 1, 4, 77)  # four pieces of each of three images
    assert measured.operator.noise_sigma == pytest.approx(2 / 255)
    words = [
        "fit", "--config", str(REPOSITORY / "configs/train/scnet.yaml"), "--config", "measurements",
        "--model.init_args.network={layers: 2, features: 4}", f"--data.measurements={folder}",
        f"--data.validation_sets=[{tiny_images}]", "--data.batches_per_epoch=2", "--data.batch_size=2",
        "--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.precision=32-true",
        "--trainer.num_sanity_val_steps=0", "--trainer.enable_progress_bar=false",
        f"--trainer.logger.init_args.save_dir={tmp_path}", "--trainer.logger.init_args.name=run",
    ]  # fmt: skip
    assert train.main(words) == 0
    with open(tmp_path / "run/metrics.csv") as file:
        columns = [row for row in csv.DictReader(file) if row.get("val/psnr_30")]
    assert columns  # of the set's operator, at its one ratio
    assert not columns[0].get("val/psnr_10")
    np.save(tmp_path / "one.npy", measured.y[:2].numpy())
    evaluation = ["--methods", str(tmp_path / "run/model.safetensors"), "--operator=block:16", "--ratios=0.3",
                  f"--out={tmp_path}/out", "--adapt_rate=0.05"]  # fmt: skip
    words = [*evaluation, "--adapt=2", f"--measurements={tmp_path / 'one.npy'}", "--shape=32,32"]
    assert evaluate.main(words) == 0
    assert len(list((tmp_path / "out/reconstructions").glob("*.png"))) == 2
    for steps in (0, 2):
        rows = run(Plan(parsed([*evaluation, f"--adapt={steps}", f"--datasets={tiny_images}", "--limit=1"])))
    assert len(rows) == len({row.run_key for row in rows}) == len({row.settings_key for row in rows}) == 2
    assert abs(rows[0].psnr_db - rows[1].psnr_db) > 1e-3
    assert min(row.seconds for row in rows) > 0


def parsed(words: list[str]) -> Options:
    options = evaluate.parse(words)
    assert options is not None
    return options


def test_ground_truth_needs_images(tiny_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "--config", "scnet", f"--data.measurements={tmp_path}", "--trainer.accelerator=cpu",
             f"--trainer.logger.init_args.save_dir={tmp_path}/runs"]  # fmt: skip
    assert train.main(words) == 2
    assert "data.measurements has no images" in capsys.readouterr().err


def test_a_matrix_of_ones_own_lies_beside_the_measurements(tiny_images: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "phi.npy", np.random.default_rng(0).standard_normal((30, 64)))
    folder = make_set(tiny_images, tmp_path / "set", f"--operator=block:{tmp_path / 'phi.npy'}")
    measured = read_measurements(folder)
    assert measured.y.shape == (3, 1, 81, 19)
    (folder / "measurements.npy").unlink()
    for number, y in enumerate(measured.y):  # the same in a file for each image
        np.save(folder / f"{number}.npy", y.numpy())
    again = read_measurements(folder)
    torch.testing.assert_close(again.y, measured.y)
    halves = [MeasurementBatches(again, 2, 5, seed=1, rank=rank, world_size=2) for rank in (0, 1)]
    whole = MeasurementBatches(again, 4, 5, seed=1)
    assert torch.equal(torch.cat([half[7] for half in halves]), whole[7])
    assert not torch.equal(whole[7], whole[8])
    assert set(whole.files(7)) <= set(again.files)


GOOD = {"operator": "block:16", "image_size": [32, 32], "ratio": 0.3}


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("", "cannot read"),
        ("[" * 5000, "cannot read"),
        (" " * 10_001, "longer than any"),
        ("[1]", "expected names and values"),
        ('{"operator": "block"}', "does not say image_size and ratio"),
        (GOOD | {"size": 3}, "no setting 'size'"),
        (GOOD | {"image_size": [32]}, "expected \\[H, W\\]"),
        (GOOD | {"image_size": [10**6, 10**6]}, "memory"),
        (GOOD | {"image_size": "32"}, "image_size is '32'"),
        (GOOD | {"ratio": 3.0}, "outside"),
        (GOOD | {"noise": -1.0}, "noise must be at least 0"),
        (GOOD | {"operator": "../phi.npy"}, "by its name alone"),
        (GOOD | {"operator": "blok"}, "unknown operator"),
        (GOOD | {"operator": "phi.npy"}, "matrix file not found"),
        (GOOD, "no measurements in"),
    ],
    ids=range(15),
)
def test_descriptions_that_describe_no_set(description: Any, expected: str, tmp_path: Path) -> None:
    text = description if isinstance(description, str) else json.dumps(description)
    (tmp_path / "measurements.json").write_text(text)
    with pytest.raises(UserError, match=expected) as caught:
        read_measurements(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        (np.zeros((4, 76)), "has the shape"),
        (np.full((4, 77), np.nan), "finite"),
        (np.zeros((0, 4, 77)), "of no image"),
    ],
    ids=["shape", "nan", "empty"],
)
def test_measurements_that_do_not_fit(y: np.ndarray, expected: str, tmp_path: Path) -> None:
    (tmp_path / "measurements.json").write_text(json.dumps(GOOD))
    np.save(tmp_path / "y.npy", y)
    with pytest.raises(UserError, match=expected):
        read_measurements(tmp_path)


def test_a_folder_without_a_description(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=r"measurements\.json"):
            read_measurements(folder)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--shape=32"], "height and width"),
        (["--shape=320,320"], "holds a piece"),
        (["--bits=40"], "--bits 40"),
        (["--noise=-1"], "noise"),
        (["--out=."], "is not empty"),
        (["--operator=blok"], "unknown operator"),
        (["--ratio=2"], "outside"),
    ],
)
def test_measuring_that_makes_no_set(
    words: list[str], expected: str, tiny_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measure.main([str(tiny_images), "--ratio=0.3", f"--out={tmp_path / 'set'}", *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert expected in line
    assert not (tmp_path / "set").exists()
