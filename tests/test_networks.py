"""Every network of the framework, small: forward and backward, odd sizes, schedules, checkpoints and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cs_models.errors import UserError
from cs_models.networks.learned_sampling.csnet_plus import CSNetPlusConfig, CSNetPlusModule
from cs_models.networks.learned_sampling.opine_net import OPINENet, OPINENetConfig, OPINENetModule
from cs_models.networks.learned_sampling.rk_ccsnet import RKCCSNetConfig, RKCCSNetModule
from cs_models.networks.unfolding.coast import COAST, COASTConfig, COASTModule
from cs_models.networks.unfolding.ista_net import ISTANet, ISTANetConfig, ISTANetModule, shrink
from cs_models.networks.unfolding.ista_net_pp import ISTANetPP, ISTANetPPConfig, ISTANetPPModule
from cs_models.networks.unfolding.modulation import RFMU
from cs_models.networks.unfolding.module import UnfoldingTraining
from cs_models.networks.unfolding.recursion import UnfoldingNetwork, draw_schedule, iterations
from cs_models.networks.unfolding.scnet import SCNet, SCNetConfig, SCNetModule
from cs_models.networks.unfolding.sodas_net import SODASNet, SODASNetConfig, SODASNetModule, SODASStage
from cs_models.operators import MeasurementOperator, Sampling, make_operator
from cs_models.training.module import ReconstructionModule
from cs_models.training.options import Training
from cs_models.training.weights import save_checkpoint
from cs_models.zoo.checkpoints import MODELS, load_checkpoint

BLOCK = 8
FLEXIBLE = UnfoldingTraining(Sampling(block_size=BLOCK))
FIXED = UnfoldingTraining(Sampling(ratios=(0.3,), block_size=BLOCK))
HALF = Training(Sampling(ratios=(0.5,), block_size=BLOCK))


def ista_net(**options: object) -> ISTANetModule:
    module = ISTANetModule(ISTANetConfig(**options), FIXED)
    module.network.q_init.copy_(module.carried.phi_19.T)
    return module


def opine_net(**options: object) -> OPINENetModule:
    module = OPINENetModule(OPINENetConfig(layers=2, features=8, **options), FIXED)
    torch.nn.init.constant_(module.network.sampling.scale, 1 / BLOCK)  # the paper's is for blocks of 33
    return module


NETWORKS: dict[str, Callable[[], ReconstructionModule]] = {
    "ista_net": lambda: ista_net(variant="basic", layers=2, features=8),
    "ista_net_plus": lambda: ista_net(layers=2, features=8),
    "one layer, nine times": lambda: ista_net(layers=1, features=8, iterations_per_layer=(9,)),
    "rista_net_plus": lambda: ista_net(layers=2, features=8, iterations_per_layer=(3, 3), modulation="rfmu"),
    "ista_net_pp": lambda: ISTANetPPModule(ISTANetPPConfig(layers=3, features=8), FLEXIBLE),
    "ista_net_pp, recursive": lambda: ISTANetPPModule(
        ISTANetPPConfig(layers=2, features=8, iterations_per_layer=(2, 3)), FLEXIBLE
    ),
    "ista_net_pp, blocks": lambda: ISTANetPPModule(
        ISTANetPPConfig(layers=2, features=8, cross_block=False, condition="none"), FLEXIBLE
    ),
    "ista_net_pp, steps only": lambda: ISTANetPPModule(
        ISTANetPPConfig(layers=2, features=8, condition="step"), FLEXIBLE
    ),
    "ista_net_pp, sigmas only": lambda: ISTANetPPModule(
        ISTANetPPConfig(layers=2, features=8, condition="sigma"), FLEXIBLE
    ),
    "coast": lambda: COASTModule(COASTConfig(layers=3, features=8), FLEXIBLE),
    "coast, noise": lambda: COASTModule(COASTConfig(layers=2, features=8, noise=True), FLEXIBLE),
    "coast, isolated blocks": lambda: COASTModule(COASTConfig(layers=2, features=8, deblock=False), FLEXIBLE),
    "coast, no modulation": lambda: COASTModule(COASTConfig(layers=2, features=8, modulation="none"), FLEXIBLE),
    "r_coast": lambda: COASTModule(
        COASTConfig(layers=2, features=8, iterations_per_layer=(3, 3), modulation="rfmu"), FLEXIBLE
    ),
    "scnet": lambda: SCNetModule(SCNetConfig(layers=3, features=8), FLEXIBLE),
    "scnet, recursive": lambda: SCNetModule(
        SCNetConfig(layers=2, features=8, iterations_per_layer=(2, 3), modulation="rfmu"), FLEXIBLE
    ),
    "sodas_net": lambda: SODASNetModule(SODASNetConfig(layers=3, features=8), FIXED),
    "sodas_net, recursive": lambda: SODASNetModule(
        SODASNetConfig(layers=2, features=8, iterations_per_layer=(2, 3)), FIXED
    ),
    "opine_net_plus": opine_net,
    "opine_net_plus, recursive": lambda: opine_net(iterations_per_layer=(3, 1), modulation="rfmu"),
    "csnet_plus": lambda: CSNetPlusModule(CSNetPlusConfig(features=8, blocks=2), FIXED),
    "csnet_plus, binary": lambda: CSNetPlusModule(CSNetPlusConfig(features=8, blocks=2, binary=True), FIXED),
    "csnet_plus, wired": lambda: CSNetPlusModule(
        CSNetPlusConfig(features=8, blocks=2, injectors=True, wired=True), FIXED
    ),
    "rk_ccsnet": lambda: RKCCSNetModule(RKCCSNetConfig(features=8, blocks=2), HALF),
    "rk_ccsnet, wired": lambda: RKCCSNetModule(RKCCSNetConfig(features=8, blocks=2, injectors=True, wired=True), HALF),
}


@pytest.fixture(params=NETWORKS)
def module(request: pytest.FixtureRequest) -> ReconstructionModule:
    return NETWORKS[request.param]()


def operators(module: ReconstructionModule, size: tuple[int, int]) -> list[MeasurementOperator]:
    """Ten ratios, unseen ones among them, for flexible networks; its own for the others."""
    own = module.training_options.sampling.ratios
    ratios = own if len(own) == 1 else (0.02, 0.1, 0.15, 0.2, 0.3, 0.33, 0.4, 0.5, 0.7, 1.0)
    return [module.default_operator(ratio, size) for ratio in ratios]


@pytest.mark.parametrize("size", [(16, 24), (13, 21), (8, 8), (5, 6)])
def test_any_size_and_ratio(module: ReconstructionModule, size: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *size)
    for operator in operators(module, size):
        estimate = module.reconstruct(operator(x), operator)
        assert estimate.shape == x.shape
        assert estimate.isfinite().all()


def test_batch_invariance(module: ReconstructionModule) -> None:
    operator = operators(module, (13, 21))[0]
    x = torch.rand(3, 1, 13, 21)
    together = module.reconstruct(operator(x), operator)
    alone = torch.cat([module.reconstruct(operator(image[None]), operator) for image in x])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_gradients_reach_every_parameter(module: ReconstructionModule) -> None:
    module.network.train()
    operator = module.training_operator((16, 16))
    x = torch.rand(2, 1, 16, 16)
    module.training_loss(x, operator.measure(x), operator).backward()
    dead = [name for name, p in module.network.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_safetensors_and_back(module: ReconstructionModule, tmp_path: Path) -> None:
    operator = operators(module, (13, 21))[0]
    y = operator(torch.rand(1, 1, 13, 21))
    path = save_checkpoint(module, tmp_path / "net.safetensors")
    loaded = load_checkpoint(path)
    assert torch.equal(loaded.reconstruct(y, operator), module.reconstruct(y, operator))
    assert loaded.settings() == module.settings()
    assert loaded.config == module.config
    assert loaded.carried.shapes() == module.carried.shapes()
    assert [file.name for file in tmp_path.iterdir()] == ["net.safetensors"]


def test_another_schedule(module: ReconstructionModule) -> None:
    network = module.network
    if not isinstance(network, UnfoldingNetwork):
        with pytest.raises(UserError, match="takes no iterations_per_layer"):
            module.set_schedule((1,))
        return
    operator = operators(module, (13, 21))[0]
    y = operator(torch.rand(1, 1, 13, 21))
    before, settings = module.reconstruct(y, operator), module.settings()
    module.set_schedule(network.iterations_per_layer)
    assert torch.equal(module.reconstruct(y, operator), before)
    longer = [count + 1 for count in network.iterations_per_layer]
    module.set_schedule(longer)
    assert not torch.equal(module.reconstruct(y, operator), before)
    assert module.settings() != settings
    iterates = module.reconstruct(y, operator, return_all=True)
    assert len(iterates) == sum(longer)
    assert torch.equal(iterates[-1], module.reconstruct(y, operator))


@pytest.mark.parametrize("schedule", [[1], [1, 1, 1, 1, 1], [0, 1, 1], [-1, 2, 2]])
def test_wrong_schedule(schedule: list[int]) -> None:
    module = NETWORKS["ista_net_pp"]()
    with pytest.raises(UserError, match="iterations_per_layer") as caught:
        module.set_schedule(schedule)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ista_net_plus", "ista_net_pp", "r_coast", "scnet", "sodas_net", "opine_net_plus"])
def test_bfloat16_stays_near_float32(name: str) -> None:
    """Only the convolutions run in bfloat16, so the result moves by the rounding of a few of them."""
    module = NETWORKS[name]()
    operator = operators(module, (16, 24))[0]
    y = operator(torch.rand(1, 1, 16, 24))
    exact = module.reconstruct(y, operator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = module.reconstruct(y, operator)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize(
    ("network", "count"),
    [
        (lambda: ISTANet(ISTANetConfig(variant="basic")), 171_090),
        (lambda: ISTANet(ISTANetConfig()), 336_978),
        (lambda: ISTANet(ISTANetConfig(layers=3, iterations_per_layer=(3, 3, 3), modulation="rfmu")), 114_630),
        (lambda: ISTANetPP(ISTANetPPConfig(condition="none", cross_block=False)), 752_040),
        (lambda: ISTANetPP(ISTANetPPConfig(condition="none")), 752_040),
        (lambda: ISTANetPP(ISTANetPPConfig(condition="step")), 753_800),
        (lambda: ISTANetPP(ISTANetPPConfig(condition="sigma")), 759_580),
        (lambda: ISTANetPP(ISTANetPPConfig()), 760_220),
        (lambda: COAST(COASTConfig()), 1_122_024),
        (lambda: COAST(COASTConfig(layers=5)), 280_554),
        (lambda: COAST(COASTConfig(layers=5, iterations_per_layer=(4,) * 5, modulation="rfmu")), 281_674),
        (lambda: SCNet(SCNetConfig()), 370_817),
        (lambda: SODASNet(SODASNetConfig()), 921_960),
        (lambda: OPINENet(OPINENetConfig(), 0.1), 621_568),
    ],
)
def test_parameter_counts_of_the_papers(network: Callable[[], torch.nn.Module], count: int) -> None:
    assert sum(parameter.numel() for parameter in network().parameters() if parameter.requires_grad) == count


def test_the_table_of_models_is_complete() -> None:
    from cs_models.zoo.checkpoints import model_class

    for name in MODELS:
        assert model_class(name).name == name


def test_iterations_count_over_the_whole_network() -> None:
    assert [(step.layer, step.current, step.total) for step in iterations((2, 1))] == [(0, 1, 3), (0, 2, 3), (1, 3, 3)]


def test_random_schedules_are_uniform_independent_and_repeatable() -> None:
    draws = torch.tensor([draw_schedule((4, 4, 3), seed=0, step=step) for step in range(3000)])
    assert draw_schedule((4, 4, 3), seed=0, step=17) == tuple(draws[17].tolist())
    for layer, most in enumerate((4, 4, 3)):
        share = torch.bincount(draws[:, layer], minlength=most + 1)[1:] / 3000
        torch.testing.assert_close(share, torch.full((most,), 1 / most), atol=0.04, rtol=0)
    assert torch.corrcoef(draws.T.float())[0, 1].abs() < 0.06


def test_rfmu_inputs() -> None:
    """``[2 M/N, R_total / S, R_current / S]`` with S fixed by the full schedule, also when fewer iterations run."""
    unit = RFMU(4, full_iterations=20)
    seen: list[torch.Tensor] = []
    unit.layers.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    unit(0.25, total=10)
    torch.testing.assert_close(seen[0][2], torch.tensor([0.5, 0.5, 0.15]))


def test_symmetry_branch_runs_in_training_alone() -> None:
    module = NETWORKS["ista_net_plus"]()
    operator = module.default_operator(0.3, (8, 8))
    y = operator(torch.rand(1, 1, 8, 8))
    network = module.network
    assert isinstance(network, UnfoldingNetwork)
    assert len(network.train().unfold(y, operator).penalties) == 2
    assert network.eval().unfold(y, operator).penalties == []


def test_deblocking_sees_the_cropped_image() -> None:
    """COAST convolves the image cut to its size; ISTA-Net++ convolves the padded one."""
    operator = make_operator("block:8", 0.3, (13, 21))
    y = operator(torch.rand(1, 1, 13, 21))
    for name, size in {"coast": (13, 21), "ista_net_pp": (16, 24), "coast, isolated blocks": (8, 8)}.items():
        shapes: list[torch.Size] = []
        layer = NETWORKS[name]().network.layers[0]
        layer.register_forward_pre_hook(lambda _, inputs, shapes=shapes: shapes.append(inputs[0].shape))
        module = NETWORKS[name]()
        module.network.layers[0] = layer
        module.reconstruct(y, operator)
        assert shapes[0][-2:] == size


@pytest.mark.parametrize("name", ["ista_net_plus", "sodas_net"])
def test_fixed_matrix_networks_refuse_others(name: str) -> None:
    module = NETWORKS[name]()
    x = torch.rand(1, 1, 16, 16)
    for operator in (make_operator("block:8", 0.3, (16, 16), seed=1), make_operator("column", 0.3, (16, 16))):
        with pytest.raises(UserError, match="trained for one matrix"):
            module.reconstruct(operator(x), operator)
    with pytest.raises(UserError, match=r"ratio 0\.297 alone"):
        module.default_operator(0.1, (16, 16))
    with pytest.raises(UserError, match="one ratio and one matrix"):
        type(module)(training=FLEXIBLE)


def test_flexible_networks_take_any_operator() -> None:
    """COAST needs no more than ``A^T A`` and ``A^T y``."""
    module = NETWORKS["r_coast"]()
    x = torch.rand(1, 1, 16, 16)
    for word in ("structured:8", "column", "pixel", "fourier", "block:5"):
        operator = make_operator(word, 0.4, (16, 16))
        assert module.reconstruct(operator(x), operator).shape == x.shape


@pytest.mark.parametrize("name", ["scnet", "scnet, recursive"])
def test_scnet_ends_on_the_images_that_fit_the_measurements(name: str) -> None:
    """Every intermediate estimate is projected, since what travels between stages are features, no images."""
    module = NETWORKS[name]()
    operator = make_operator("block:8", 0.3, (13, 21)).padded()
    y = operator(torch.rand(1, 1, 16, 24))
    iterates = module.reconstruct(y, operator, return_all=True)
    assert len(iterates) == sum(module.schedule)
    for iterate in iterates:
        torch.testing.assert_close(operator(iterate), y, atol=1e-4, rtol=1e-4)


def test_thresholds_of_sodas_net_are_means_of_the_coefficients() -> None:
    """Channel by channel and image by image; a negative mean makes coefficients larger."""
    stage = SODASStage(4)
    s = torch.randn(2, 4, 5, 5)
    level = stage.level(s)
    assert level.shape == (2, 4, 1, 1)
    torch.testing.assert_close(level[1, 2, 0, 0], s[1, 2].mean())
    expected = s.sign() * (s.abs() - s.mean((2, 3), keepdim=True)).relu()
    with torch.no_grad():
        torch.testing.assert_close(shrink(s, level), expected)
    with pytest.raises(UserError, match="needs block sampling"):
        SODASNetModule(training=UnfoldingTraining(Sampling((0.3,), kind="fourier")))


@pytest.mark.parametrize("damage", ["missing", "suffix", "truncated", "foreign", "other model", "config"])
def test_bad_checkpoints(tmp_path: Path, damage: str) -> None:
    from safetensors.torch import load_file, save_file

    path = save_checkpoint(NETWORKS["coast"](), tmp_path / "net.safetensors")
    if damage == "missing":
        path = tmp_path / "absent.safetensors"
    elif damage == "suffix":
        path = path.rename(tmp_path / "net.pkl")
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:500])
    elif damage == "foreign":
        save_file({"a": torch.zeros(1)}, path)
    elif damage in ("other model", "config"):
        header = (
            NETWORKS["ista_net_pp"]().header() if damage == "other model" else {"model": "coast", "network": {"x": 1}}
        )
        import json

        save_file(load_file(path), path, metadata={"cs_models": json.dumps(header)})
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("threshold", [-0.1, 0.0, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shrinking_is_the_same_with_and_without_gradients(threshold: float, dtype: torch.dtype) -> None:
    s = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    level = torch.tensor(threshold, dtype=dtype)
    expected = torch.sign(s) * (s.abs() - level).relu()
    assert torch.equal(shrink(s, level), expected)
    with torch.no_grad():
        assert torch.equal(shrink(s, level), expected)
