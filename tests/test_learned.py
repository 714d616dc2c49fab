"""Learned sampling: operators that obey the laws while they are trained, CSNet+ and RK-CCSNet, injectors and wiring."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from cs_models.errors import UserError
from cs_models.metrics import psnr
from cs_models.networks.invertible import V_MIN, InvertibleSequence
from cs_models.networks.learned_sampling.csnet_plus import CSNetPlus, CSNetPlusConfig, CSNetPlusModule
from cs_models.networks.learned_sampling.network import LearnedSamplingModule, LearnedSamplingNetwork, learned_sampling
from cs_models.networks.learned_sampling.opine_net import OPINENetConfig, OPINENetModule
from cs_models.networks.learned_sampling.rk_ccsnet import ConvolvedBlocks, RKCCSNet, RKCCSNetConfig, RKCCSNetModule
from cs_models.networks.unfolding.module import UnfoldingTraining
from cs_models.operators import Sampling, adjoint_error, make_operator
from cs_models.operators.learned import DenseBlocks, LearnedBlocks, ScaledSigns
from cs_models.solvers.linear import PseudoInverse
from cs_models.training.lightning import LightningTraining
from cs_models.training.options import Training
from cs_models.training.weights import save_checkpoint
from cs_models.zoo.checkpoints import load_checkpoint

SIZE = (20, 17)
SAMPLINGS: dict[str, Callable[[], LearnedBlocks]] = {
    "gaussian": lambda: DenseBlocks(0.3, 8),
    "signs": lambda: DenseBlocks(0.3, 8, "signs"),
    "dct": lambda: DenseBlocks(0.3, 8, "dct"),
    "binary": lambda: DenseBlocks(0.3, 8, binary=True),
    "binary from cosines": lambda: DenseBlocks(0.3, 8, "dct", binary=True),
    "scaled signs": lambda: ScaledSigns(0.3, 8, scale=0.1),
    "convolutions": lambda: ConvolvedBlocks(0.5, 8, features=5),
}


def training(ratio: float = 0.5, **sampling: object) -> Training:
    return Training(Sampling(ratios=(ratio,), block_size=8, **sampling))


MODULES: dict[str, Callable[..., LearnedSamplingModule]] = {
    "csnet_plus": lambda **switches: CSNetPlusModule(CSNetPlusConfig(6, 3, **switches), training()),
    "rk_ccsnet": lambda **switches: RKCCSNetModule(RKCCSNetConfig(6, 3, **switches), training()),
}


@pytest.mark.parametrize("name", SAMPLINGS)
def test_the_laws_hold_at_any_moment_of_training(name: str) -> None:
    """Each operator stays lawful and as it was, while the parameters move on."""
    sampling = SAMPLINGS[name]().double()
    optimizer = torch.optim.Adam(sampling.parameters(), 0.01)
    x = torch.rand(2, 1, *SIZE, dtype=torch.float64)
    operators = []
    for _ in range(4):
        operator = sampling.operator(SIZE)
        operators.append((operator, operator.matrix.detach().clone()))
        error = operator.pinv(operator(x)) - x
        optimizer.zero_grad()
        error.square().mean().backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in sampling.parameters())
        optimizer.step()
        sampling.constrain()
    with torch.no_grad():
        for operator, matrix in operators:
            assert torch.equal(operator.matrix, matrix)
            y = torch.randn_like(operator(x))
            measured, estimate = operator(x), operator.pinv(y)
            assert adjoint_error(operator, x, y) < 1e-12
            # Smooth rows are nearly dependent on blocks that the border cuts, and below float32's rounding dependent.
            assert relative(operator(operator.pinv(measured)) - measured, measured) < 1e-8
            assert relative(operator.pinv(operator(estimate)) - estimate, estimate) < 1e-7
            assert relative(operator.normal(x) - operator.adjoint(measured), measured) < 1e-12
    assert not torch.equal(operators[0][1], operators[-1][1])


def relative(difference: Tensor, reference: Tensor) -> float:
    return float(difference.norm() / reference.norm())


@pytest.mark.parametrize("name", SAMPLINGS)
def test_gradients_of_the_matrix(name: str) -> None:
    """The gradient with respect to the matrix arrives at the parameters; through signs as if they were not there."""
    sampling = SAMPLINGS[name]().double()
    x, y = torch.rand(1, 1, 8, 8, dtype=torch.float64), torch.randn(1, 1, 1, 32, dtype=torch.float64)
    y = y[..., : len(sampling.matrix())]
    loss = (sampling.operator((8, 8))(x) * y).sum()
    gradients = torch.autograd.grad(loss, list(sampling.parameters()))
    outer = torch.outer(y.flatten(), x.flatten())
    if isinstance(sampling, DenseBlocks):
        torch.testing.assert_close(gradients[0], outer)
    else:
        expected = torch.autograd.grad(sampling.matrix(), list(sampling.parameters()), outer)
        torch.testing.assert_close(gradients, expected)


def test_binary_matrices_are_signs() -> None:
    sampling = DenseBlocks(0.4, 8, binary=True)
    assert set(sampling.matrix().unique().tolist()) == {-0.125, 0.125}
    with torch.no_grad():
        sampling.weight[0] = -5.0
    sampling.constrain()
    assert sampling.weight[0].unique().tolist() == [-0.125]
    assert sampling.matrix()[0].unique().tolist() == [-0.125]


def test_scaled_signs() -> None:
    """Entries are signs times the scale; 0 counts as +1; gradients pass the signs, and reach the scale."""
    sampling = ScaledSigns(0.4, 8, rows=7, scale=0.5).double()
    with torch.no_grad():
        sampling.weight[0, :2] = torch.tensor([0.0, -3.0])
    matrix = sampling.matrix()
    assert matrix.shape == (7, 64)
    assert matrix[0, :2].tolist() == [0.5, -0.5]
    assert set(matrix.abs().unique().tolist()) == {0.5}
    outer = torch.randn(7, 64, dtype=torch.float64)
    weight, scale = torch.autograd.grad((matrix * outer).sum(), [sampling.weight, sampling.scale])
    torch.testing.assert_close(weight, 0.5 * outer)
    torch.testing.assert_close(scale, (matrix.sign() * outer).sum())


def test_opine_net_is_drawn_to_orthonormal_rows() -> None:
    """The third term of its loss; the first two do not see the matrix where the images are black."""
    module = OPINENetModule(OPINENetConfig(layers=1, features=4), UnfoldingTraining(Sampling((0.3,), block_size=8)))
    module.network.train()
    black = torch.zeros(1, 1, 8, 8)
    operator = module.training_operator((8, 8))
    loss = module.training_loss(black, operator(black), operator)
    gram = operator.matrix.detach().double() @ operator.matrix.detach().double().T
    expected = 0.01 * (gram - torch.eye(19)).square().mean()
    torch.testing.assert_close(loss.double(), expected)
    loss.backward()
    assert module.network.sampling.scale.grad < 0  # rows of norm 0.08 must grow


def test_opine_net_travels_with_its_matrix(tmp_path: Path) -> None:
    training = UnfoldingTraining(Sampling((0.25,), block_size=8))
    module = OPINENetModule(OPINENetConfig(layers=1, features=4, rows=15), training)
    with torch.no_grad():
        module.network.sampling.weight.neg_()
    operator = module.default_operator(0.25, SIZE)
    loaded = load_checkpoint(save_checkpoint(module, tmp_path / "opine.safetensors"))
    assert torch.equal(loaded.default_operator(0.25, SIZE).matrix, operator.matrix)
    assert operator.matrix.shape == (15, 64)
    with pytest.raises(UserError, match=r"ratio 0\.25 alone, not 0\.1"):
        loaded.default_operator(0.1, SIZE)
    stranger = make_operator("block:8", 0.25, SIZE)
    with pytest.raises(UserError, match="takes no other operator"):
        loaded.reconstruct(stranger(torch.rand(1, 1, *SIZE)), stranger)


def opine_net_plus() -> OPINENetModule:
    return OPINENetModule(OPINENetConfig(1, 4), UnfoldingTraining(Sampling((0.5,), block_size=8), learning_rate=0.01))


@pytest.mark.parametrize("make", [*MODULES.values(), opine_net_plus], ids=[*MODULES, "opine_net_plus"])
def test_validation_measures_with_the_sampling_as_it_is(make: Callable[[], LearnedSamplingModule]) -> None:
    """After some steps of the fused optimiser, and after a validation before them."""
    module = make()
    x = torch.rand(1, 1, *SIZE)
    trainer = pl.Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=1,
    )  # fmt: skip
    batches = DataLoader(torch.randint(0, 256, (6, 1, 16, 16), dtype=torch.uint8), batch_size=2)
    trainer.fit(LightningTraining(module), batches, DataLoader([(x, ["x"])], batch_size=None))
    operator = learned_sampling(module.network).operator(SIZE)
    assert torch.equal(module.default_operator(0.5, SIZE).matrix, operator.matrix)
    expected = psnr(module.network.eval()(operator(x), operator).clamp(0, 1), x)
    assert trainer.logged_metrics["val/psnr"] == pytest.approx(expected.item(), abs=1e-3)


def test_starts() -> None:
    gaussian = DenseBlocks(0.4, 8).matrix().detach()
    torch.testing.assert_close(gaussian @ gaussian.T, torch.eye(26), atol=1e-5, rtol=0)
    assert not torch.equal(gaussian, DenseBlocks(0.4, 8, seed=1).matrix())
    assert DenseBlocks(0.4, 8, "signs").matrix().abs().unique().tolist() == [0.125]
    # Cosines of lowest frequency measure smooth images almost completely.
    rows = torch.arange(8.0)
    smooth = (rows[:, None] + 2 * rows)[None, None] / 21
    for start, share in (("dct", 0.999), ("signs", 0.95)):
        operator = DenseBlocks(0.2, 8, start).operator((8, 8))  # type: ignore[arg-type]
        captured = PseudoInverse().reconstruct(operator(smooth), operator).norm() / smooth.norm()
        assert (captured > share) == (start == "dct")


def test_convolved_blocks_are_their_convolutions() -> None:
    """The matrix gives what the two convolutions give on isolated blocks."""
    sampling = ConvolvedBlocks(0.75, 8, features=5).double()
    x = torch.rand(2, 1, 16, 24, dtype=torch.float64)
    y = sampling.operator((16, 24))(x)
    blocks = x.unfold(2, 8, 8).unfold(3, 8, 8).reshape(-1, 1, 8, 8)
    maps = sampling.conv2(torch.nn.functional.conv2d(blocks, sampling.conv1.weight, stride=2, padding=1))
    torch.testing.assert_close(y.reshape(-1, 48), maps.flatten(1))


@pytest.mark.parametrize(
    ("network", "count"),
    [
        (lambda: CSNetPlus(CSNetPlusConfig(), 0.5), 1_419_008),
        (lambda: CSNetPlus(CSNetPlusConfig(injectors=True), 0.5), 1_420_613),
        (lambda: CSNetPlus(CSNetPlusConfig(injectors=True, wired=True), 0.5), 1_420_625),
        (lambda: RKCCSNet(RKCCSNetConfig(), 0.5), 630_737),
        (lambda: RKCCSNet(RKCCSNetConfig(injectors=True), 0.5), 633_305),
        (lambda: RKCCSNet(RKCCSNetConfig(injectors=True, wired=True), 0.5), 633_323),
    ],
)
def test_parameter_counts_of_the_papers(network: Callable[[], LearnedSamplingNetwork], count: int) -> None:
    assert sum(parameter.numel() for parameter in network().parameters()) == count


def gradients(module: LearnedSamplingModule, x: Tensor) -> dict[str, Tensor]:
    operator = module.training_operator(SIZE)
    module.network.zero_grad()
    module.training_loss(x, operator(x), operator).backward()
    return {name: parameter.grad for name, parameter in module.network.named_parameters()}


@pytest.mark.parametrize("injectors", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_wired_gradients_are_plain_autograds(name: str, injectors: bool) -> None:
    module = MODULES[name](injectors=injectors, wired=True).double()
    # Away from the start, where the second output of the pair has weight 0.
    with torch.no_grad():
        for parameter in module.network.trunk.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    x = torch.rand(2, 1, *SIZE, dtype=torch.float64)
    invertible = gradients(module, x)
    for part in module.network.modules():
        if isinstance(part, InvertibleSequence):
            part.invertible = False
    plain = gradients(module, x)
    for key, gradient in plain.items():
        assert gradient.any(), key
        error = (invertible[key] - gradient).norm() / gradient.norm()
        assert error < 1e-9, key


@pytest.mark.parametrize("name", MODULES)
def test_injectors_see_the_learned_sampling_and_the_way_back(name: str) -> None:
    """``[f, A^+ A f, A^+ y]`` with the network's own A and initial reconstruction."""
    network = MODULES[name](injectors=True).network.double()
    f = torch.rand(1, 1, 16, 24, dtype=torch.float64)
    operator = network.sensing.sampling.operator((16, 24))
    torch.testing.assert_close(network.sensing.normal(f), network.estimates(operator(f), operator)[1])
    seen: list[Tensor] = []
    injector = network.trunk.plain[1]
    injector.to_features[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    injector.to_image[0].register_forward_hook(lambda *_: f)
    y = operator(torch.rand_like(f))
    initial = network.estimates(y, operator)[1]
    network(y, operator)
    torch.testing.assert_close(seen[0], torch.cat([f, network.sensing.normal(f), initial], dim=1))


@pytest.mark.parametrize("name", MODULES)
def test_a_few_steps_of_training_learn_the_sampling_too(name: str) -> None:
    module = MODULES[name](injectors=True, wired=True)
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    x = (0.5 + 0.2 * torch.sin(rows / 3) + 0.2 * torch.cos(columns / 4))[None, None].repeat(2, 1, 1, 1)
    optimizer = torch.optim.Adam(module.network.parameters(), 5e-3)
    before = module.network.sensing.sampling.matrix().detach().clone()
    losses = []
    for _ in range(30):
        operator = module.training_operator((16, 16))
        loss = module.training_loss(x, operator(x), operator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.constrain()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert not torch.allclose(module.network.sensing.sampling.matrix(), before, atol=1e-3)
    assert all(v.min() >= V_MIN for key, v in module.network.named_parameters() if key.endswith(".v"))


@pytest.mark.parametrize("name", MODULES)
def test_constrain_keeps_inversion_stable(name: str) -> None:
    module = MODULES[name](wired=True)
    (sequence,) = (part for part in module.network.modules() if isinstance(part, InvertibleSequence))
    with torch.no_grad():
        sequence.v.fill_(-1)
    module.constrain()
    assert sequence.v.tolist() == pytest.approx([V_MIN] * len(sequence.v))


def test_the_ratio_and_the_sampling_are_part_of_the_checkpoint(tmp_path: Path) -> None:
    module = CSNetPlusModule(CSNetPlusConfig(6, 1, binary=True), training(0.25))
    path = save_checkpoint(module, tmp_path / "csnet.safetensors")
    with torch.no_grad():
        module.network.sensing.sampling.weight.neg_()
    loaded = load_checkpoint(path)
    operator = loaded.default_operator(0.25, SIZE)
    assert operator.ratio == 0.25
    assert torch.equal(operator.matrix, -module.default_operator(0.25, SIZE).matrix)
    assert operator.spec["carried_by"] == "checkpoint"
    assert operator.spec["sha256"] != module.default_operator(0.25, SIZE).spec["sha256"]
    y = operator(torch.rand(1, 3, *SIZE))
    assert loaded.reconstruct(y, operator).shape == (1, 3, *SIZE)
    with pytest.raises(UserError, match=r"ratio 0\.25 alone, not 0\.1"):
        loaded.default_operator(0.1, SIZE)
    with pytest.raises(UserError, match="takes no other operator"):
        loaded.reconstruct(y, module.default_operator(0.25, SIZE))
    stranger = make_operator("pixel", 0.25, SIZE)
    with pytest.raises(UserError, match="takes no other operator"):
        loaded.reconstruct(stranger(torch.rand(1, 1, *SIZE)), stranger)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CSNetPlusModule(), "one ratio"),
        (lambda: CSNetPlusModule(training=training(kind="structured")), "kind 'block'"),
        (lambda: CSNetPlusModule(training=Training(Sampling((0.5,), matrices="pca"))), "'pca' would change nothing"),
        (lambda: OPINENetModule(), "one ratio"),
        (lambda: RKCCSNetModule(training=training(noise_sigma=5.0)), "without noise"),
        (lambda: RKCCSNetModule(training=training(0.3)), "ratio 0.25, 0.5, 0.75 or 1"),
        (lambda: RKCCSNet(RKCCSNetConfig(4, 1), 0.5, block_size=9), "even block_size"),
    ],
)
def test_mistakes(build: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_the_sampling_stays_in_float32_under_autocast() -> None:
    module = MODULES["rk_ccsnet"](injectors=True)
    x = torch.rand(1, 1, *SIZE)
    exact = copy.deepcopy(module).network.sensing.normal(pad_blocks(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = module.network.sensing.normal(pad_blocks(x))
    assert torch.equal(exact, rounded)


def pad_blocks(x: Tensor) -> Tensor:
    return torch.nn.functional.pad(x, (0, -x.shape[-1] % 8, 0, -x.shape[-2] % 8))
