"""IDM: the parameter counts and equations of the paper, exact gradients, every size, colour, loading."""

from __future__ import annotations

import copy
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cs_models.errors import UserError
from cs_models.networks.diffusion.idm import IDM, IDMConfig, IDMModule, IDMTraining
from cs_models.networks.diffusion.stable_diffusion import build_unet, prune
from cs_models.operators import MeasurementOperator, Sampling, adjoint_error, make_operator
from cs_models.operators.canvas import Canvas
from cs_models.training.lightning import LightningTraining
from cs_models.training.weights import save_checkpoint
from cs_models.zoo.checkpoints import load_checkpoint
from cs_models.zoo.import_idm import import_idm_state
from tests import forked

# One group in every normalisation: with few channels a group would swallow the biases of injectors.
TINY = {
    "block_out_channels": (8, 16, 32, 32),
    "attention_head_dim": 2,
    "norm_num_groups": 1,
    "cross_attention_dim": 8,
}
# Two levels, the deeper one without attention, so that the whole U-Net stays tiny too.
WHOLE = TINY | {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def tiny(**settings: Any) -> IDM:
    return IDM(IDMConfig(**({"steps": 2, "unet": TINY} | settings)))


def structured(ratio: float = 0.3, size: tuple[int, int] = (16, 16)) -> MeasurementOperator:
    return make_operator("structured:8", ratio, size)


def gradients(network: nn.Module, operator: MeasurementOperator, x: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    (network(operator(x), operator) - x).abs().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("pruned", [True, False])
def test_attention_is_the_one_of_diffusers(pruned: bool) -> None:
    network = tiny(pruned=pruned, unet=TINY if pruned else WHOLE).double()
    operator = structured().double()
    y = operator(torch.rand(2, 1, 16, 16, dtype=torch.float64))
    with torch.no_grad():
        ours = network(y, operator)
        layers = [module for module in network.modules() if isinstance(module, Attention)]
        assert layers
        for layer in layers:
            layer.set_processor(AttnProcessor2_0())
        torch.testing.assert_close(network(y, operator), ours, rtol=1e-10, atol=1e-10)


def randomise_scalars(network: IDM) -> None:
    """Scales start at 0 and 1 and every v at one half, where mistakes could hide."""
    for v in network.all_v():
        nn.init.uniform_(v, 0.4, 0.8)
    for name, parameter in network.named_parameters():
        if name.endswith(("_scale", "_scales")):
            nn.init.uniform_(parameter, 0.2, 0.8)
    nn.init.uniform_(network.alphas, 0.3, 0.8)


def largest_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest relative error among the parameters; every one of them must have a gradient."""
    assert found.keys() == expected.keys()
    assert all(gradient.norm() > 0 for gradient in expected.values())
    return max(float((found[name] - expected[name]).norm() / expected[name].norm()) for name in expected)


# Parameters


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters_of_the_core() -> None:
    unet = build_unet({})
    assert count(unet) == 859_520_964
    prune(unet)
    assert count(unet) == 115_247_684


def test_parameters_of_the_paper() -> None:
    network = IDM(IDMConfig(steps=3))
    assert count(network) == 115_247_733 + 6_022 * 3
    assert sum(len(v) for v in network.all_v()) == 37 + 3
    assert all(parameter.isfinite().all() for parameter in network.parameters())


def test_parameters_for_colour() -> None:
    assert count(IDM(IDMConfig(steps=2, channels=3))) == 115_293_821 + 15_662 * 2


@torch.no_grad()
@pytest.mark.parametrize("pruned", [True, False])
def test_without_the_wiring_it_is_ddnm_with_the_unet_itself(pruned: bool) -> None:
    """As with every v at 0 and every w out at 0: nothing of the pairs is left, nor of their parameters."""
    wired, operator = tiny(pruned=pruned, unet=TINY if pruned else WHOLE), structured()
    plain = tiny(pruned=pruned, unet=TINY if pruned else WHOLE, wired=False)
    assert plain.all_v() == []
    assert not [name for name, _ in plain.named_parameters() if name.endswith(("_scale", "_scales"))]
    for v in wired.all_v():
        nn.init.zeros_(v)
    state = {re.sub(r"(wiring|wired)\.sequence\.", r"\1.", name): value for name, value in wired.state_dict().items()}
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    y = operator(torch.rand(2, 1, 16, 16))
    torch.testing.assert_close(plain(y, operator), wired(y, operator), rtol=1e-4, atol=1e-4)


def test_without_the_wiring_every_activation_is_kept() -> None:
    """Whatever `invertible` says: less than the wiring keeps under plain autograd, far more than it keeps inverted."""

    def kept(**settings: Any) -> int:
        network, operator, sizes = tiny(**settings), structured(), {}
        x = torch.rand(1, 1, 16, 16)
        hook = lambda tensor: sizes.setdefault(tensor.data_ptr(), tensor.nbytes) and tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(hook, lambda tensor: tensor):
            loss = (network(operator(x), operator) - x).abs().mean()
        loss.backward()
        return sum(sizes.values())

    assert kept(wired=False) == kept(wired=False, invertible="none") > 3 * kept()


def test_noise_prediction_learns_one_step_at_a_time() -> None:
    """The noise is that of the batch, the step that of the training step; other steps and the alphas stay."""
    training = IDMTraining(Sampling(ratios=(0.3,), kind="structured", block_size=8), objective="noise")
    module = IDMModule(IDMConfig(steps=2, unet=TINY, wired=False, start="noise"), training)
    operator = structured()
    x = torch.rand(2, 1, 15, 16)
    operator = structured(size=(15, 16))
    y = operator(x)

    def loss(step: int, seed: int = 0) -> Tensor:
        return module.training_loss(x, y, operator, step, torch.Generator().manual_seed(seed))

    assert loss(0) == loss(0) != loss(0, seed=1)
    assert len({loss(step).item() for step in range(20)}) == 2, "one for each of the two steps"
    loss(0).backward()
    trained = {name for name, parameter in module.network.named_parameters() if parameter.grad is not None}
    assert "alphas" not in trained
    assert any(name.startswith("unet.conv_in") for name in trained)
    # A U-Net that knows the noise has no loss.
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    module.network.noise = lambda *_: noise  # type: ignore[method-assign]
    assert loss(0) == 0
    assert set(module.monitored()) == {"largest_alpha"}


# Gradients


@pytest.mark.parametrize("injector_kernel", [1, 3, None])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_gradients_equal_plain_autograd(steps: int, injector_kernel: int | None) -> None:
    network = tiny(steps=steps, injector_kernel=injector_kernel).double()
    randomise_scalars(network)
    operator = structured().double()
    x = torch.rand(2, 1, 16, 16, dtype=torch.float64)
    network.set_invertible("none")
    expected = gradients(network, operator, x)
    for invertible in ("steps", "blocks", "both"):
        network.set_invertible(invertible)
        assert largest_error(gradients(network, operator, x), expected) < 1e-9


def test_gradients_of_the_whole_unet() -> None:
    network = tiny(pruned=False, unet=WHOLE).double()
    randomise_scalars(network)
    nn.init.normal_(network.unet.prompt)
    operator = structured().double()
    x = torch.rand(2, 1, 16, 16, dtype=torch.float64)
    found = gradients(network, operator, x)
    network.set_invertible("none")
    assert largest_error(found, gradients(network, operator, x)) < 1e-9


def test_twelve_steps_in_float32_stay_exact() -> None:
    network = tiny(steps=12)
    operator, x = structured(), torch.rand(1, 1, 16, 16)
    found = gradients(network, operator, x)
    network.set_invertible("none")
    expected = gradients(network, operator, x)
    difference, whole = (
        torch.cat([value.flatten() for value in values])
        for values in ([found[name] - expected[name] for name in found], expected.values())
    )
    assert difference.norm() < 1e-4 * whole.norm()


@pytest.mark.slow
def test_the_full_network_in_float32() -> None:
    network = IDM(IDMConfig(steps=2))
    operator, x = make_operator("structured:32", 0.1, (32, 32)), torch.rand(1, 1, 32, 32)
    found = torch.cat([gradient.flatten() for gradient in gradients(network, operator, x).values()])
    network.set_invertible("none")
    found -= torch.cat([gradient.flatten() for gradient in gradients(network, operator, x).values()])
    whole = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    assert found.norm() < 1e-4 * whole.norm()


def test_training_under_autocast() -> None:
    network = tiny()
    operator, x = structured(size=(32, 32)), torch.rand(4, 1, 32, 32)
    found = []
    for invertible in ("both", "none"):
        network.set_invertible(invertible)
        with torch.autocast("cpu", torch.bfloat16):
            values = gradients(network, operator, x)
        found.append(torch.cat([value.flatten() for value in values.values()]))
    assert (found[0] - found[1]).norm() < 0.05 * found[1].norm()


def distributed_worker(rank: int, store: str, out: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    network = tiny().double()
    randomise_scalars(network)
    # The whole is a sum of means over equal parts: two accumulation steps of two processes.
    model = DistributedDataParallel(network)
    operator = structured().double()
    parts = torch.rand(4, 1, 16, 16, dtype=torch.float64).chunk(4)
    with model.no_sync():
        x = parts[rank]
        (model(operator(x), operator) - x).abs().mean().backward()
    x = parts[2 + rank]
    (model(operator(x), operator) - x).abs().mean().backward()
    found = {name: parameter.grad / 2 for name, parameter in network.named_parameters()}
    if rank == 0:
        network.set_invertible("none")
        expected = gradients(network, operator, torch.cat(parts))
        torch.save(largest_error(found, expected), out)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_and_two_accumulation_steps(tmp_path: Path) -> None:
    out = tmp_path / "error"
    torch.multiprocessing.start_processes(  # by "forkserver" where there is one, from what has imported torch
        distributed_worker, (str(tmp_path / "store"), str(out)), nprocs=2, start_method=forked.METHOD
    )
    assert torch.load(out, weights_only=True) < 1e-9


# The equations


def official_state(steps: int, unet: UNet2DConditionModel, widths: tuple[int, int]) -> dict[str, Tensor]:
    """Random weights with the names and shapes of a state dict of the authors' code."""
    state = {f"unet.{name}": value for name, value in unet.state_dict().items()}
    state |= {"alpha": torch.rand(steps) / 2 + 0.3}
    state |= {"input_help_scale_factor": torch.rand(1), "merge_scale_factor": torch.rand(1)}
    state |= {f"body.{i}.v": torch.rand(1) / 2 + 0.3 for i in range(steps)}
    for prefix, width, scale, injectors in (
        ("unet.down_blocks.0", widths[0], 2, 4),
        ("unet.down_blocks.1", widths[1], 4, 4),
        ("unet.up_blocks.0", widths[1], 4, 6),
        ("unet.up_blocks.1", widths[0], 2, 6),
    ):
        inner = width // scale**2
        for i in range(injectors):
            for t in range(steps):
                injector = f"{prefix}.injectors.{i}"
                state[f"{injector}.f2i.{t}.1.weight"] = torch.randn(1, inner, 1, 1) / inner
                state[f"{injector}.f2i.{t}.1.bias"] = torch.randn(1)
                state[f"{injector}.i2f.{t}.0.weight"] = torch.randn(inner, 3, 1, 1)
                state[f"{injector}.i2f.{t}.0.bias"] = torch.randn(inner)
        state[f"{prefix}.input_help_scale_factor"] = torch.rand(1)
        name = "merge_scale_factors" if "down" in prefix else "merge_scale_factor"
        state[f"{prefix}.{name}"] = torch.rand(2 if "down" in prefix else 1)
        for sequence, layers in official_sequences(prefix).items():
            for k, layer in enumerate(layers):
                state[f"{prefix}.{sequence}.{k}.v"] = torch.rand(1) / 2 + 0.3
                # The body of the wiring is the layer itself, so that a state dict holds it twice.
                copies = {key: value for key, value in state.items() if key.startswith(f"{prefix}.{layer}.")}
                for key, value in copies.items():
                    state[f"{prefix}.{sequence}.{k}.body.{key.removeprefix(f'{prefix}.{layer}.')}"] = value
    return state


def official_sequences(prefix: str) -> dict[str, list[str]]:
    """The wired layers of a block, sequence by sequence."""
    triples = [[f"injectors.{2 * j}", f"attentions.{j}", f"injectors.{2 * j + 1}"] for j in range(3)]
    if "up" in prefix:
        return {"rev_module_list": [*triples[0], "resnets.1", *triples[1], "resnets.2", *triples[2]]}
    first = [] if prefix.endswith("1") else ["resnets.0"]
    return {"rev_module_lists.0": [*first, *triples[0]], "rev_module_lists.1": ["resnets.1", *triples[1]]}


class Reference:
    """The network of the paper in plain words, straight from tensors under the authors' names."""

    def __init__(self, state: dict[str, Tensor], unet: UNet2DConditionModel, operator: MeasurementOperator) -> None:
        self.state, self.unet, self.operator = state, unet, operator

    def layer(self, name: str, x: Tensor, t: int, skips: Iterator[Tensor]) -> Tensor:
        if "injectors" in name:
            scale = 2 if name.startswith(("unet.down_blocks.0", "unet.up_blocks.1")) else 4
            weights = [self.state[f"{name}.{k}"] for k in (f"f2i.{t - 1}.1.weight", f"f2i.{t - 1}.1.bias")]
            image = F.conv2d(F.pixel_shuffle(x, scale), *weights)
            image = torch.cat([image, self.operator.adjoint(self.operator(image)), self.aty], dim=1)
            weights = [self.state[f"{name}.{k}"] for k in (f"i2f.{t - 1}.0.weight", f"i2f.{t - 1}.0.bias")]
            return x + F.pixel_unshuffle(F.conv2d(image, *weights), scale)
        module = self.unet.get_submodule(name.removeprefix("unet."))
        if "attentions" in name:
            return module(x, return_dict=False)[0]
        return module(torch.cat([x, next(skips)], dim=1) if "up_blocks" in name else x, None)

    def sequence(self, prefix: str, name: str, pair: list[Tensor], t: int, skips: Iterator[Tensor]) -> list[Tensor]:
        x, h = pair
        for k, layer in enumerate(official_sequences(prefix)[name]):
            v = self.state[f"{prefix}.{name}.{k}.v"]
            x, h = (1 - v) * self.layer(f"{prefix}.{layer}", x, t, skips) + v * h, x
        return [x, h]

    def noise(self, x: Tensor, t: int) -> Tensor:
        x = self.unet.conv_in(x)
        features = [x]
        for i in range(2):
            prefix = f"unet.down_blocks.{i}"
            if i == 1:
                x = self.unet.down_blocks[1].resnets[0](x, None)
            pair = [x, self.state[f"{prefix}.input_help_scale_factor"] * x]
            for j in range(2):
                pair = self.sequence(prefix, f"rev_module_lists.{j}", pair, t, iter(()))
                x = pair[0] + self.state[f"{prefix}.merge_scale_factors"][j] * pair[1]
                features.append(x)
            if i == 0:
                x = self.unet.down_blocks[0].downsamplers[0](x)
                features.append(x)
        x = torch.cat([x, x], dim=1)
        for i in range(2):
            prefix = f"unet.up_blocks.{i}"
            skips = iter([features.pop() for _ in range(3)])
            x = self.unet.up_blocks[i].resnets[0](torch.cat([x, next(skips)], dim=1), None)
            pair = self.sequence(
                prefix, "rev_module_list", [x, self.state[f"{prefix}.input_help_scale_factor"] * x], t, skips
            )
            x = pair[0] + self.state[f"{prefix}.merge_scale_factor"] * pair[1]
            if i == 0:
                x = self.unet.up_blocks[0].upsamplers[0](x)
        return self.unet.conv_out(F.silu(self.unet.conv_norm_out(x)))

    def __call__(self, y: Tensor) -> Tensor:
        steps = len(self.state["alpha"])
        bars = torch.cat([torch.ones(1), self.state["alpha"].cumprod(0)])
        self.aty = self.operator.adjoint(y)
        x = bars[-1].sqrt() * self.aty
        h = self.state["input_help_scale_factor"] * x
        for i, t in enumerate(range(steps, 0, -1)):
            noise = F.pixel_shuffle(self.noise(F.pixel_unshuffle(x, 2), t), 2)
            clean = (x - (1 - bars[t]).sqrt() * noise) / bars[t].sqrt()
            clean = clean - self.operator.adjoint(self.operator(clean) - y)
            v = self.state[f"body.{i}.v"]
            x, h = (1 - v) * (bars[t - 1].sqrt() * clean + (1 - bars[t - 1]).sqrt() * noise) + v * h, x
        return x + self.state["merge_scale_factor"] * h


@pytest.fixture(scope="module")
def official() -> tuple[dict[str, Tensor], UNet2DConditionModel]:
    torch.manual_seed(1)
    unet = UNet2DConditionModel(block_out_channels=(32, 64, 128, 128), cross_attention_dim=8)
    prune(unet)
    unet.requires_grad_(False)
    return official_state(2, unet, (32, 64)), unet


@torch.no_grad()
def test_official_weights_give_the_network_of_the_paper(
    official: tuple[dict[str, Tensor], UNet2DConditionModel],
) -> None:
    state, unet = official
    module = import_idm_state(state)
    operator = make_operator("structured:8", 0.3, (32, 32))
    y = operator(torch.rand(2, 1, 32, 32))
    torch.testing.assert_close(
        module.reconstruct(y, operator), Reference(state, unet, operator)(y), rtol=1e-3, atol=1e-3
    )
    assert module.default_operator(0.1, (64, 64)).spec["kind"] == "structured"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("unet.up_blocks.1.rev_module_list.3.v"),
            r"1 misshapen \(unet.up_blocks.1.wired.sequence.v\)",
        ),
        (lambda state: state.pop("unet.conv_norm_out.bias"), r"1 missing \(unet.conv_norm_out.bias\)"),
        (lambda state: state.pop("alpha"), "nothing in them gives 'alphas'"),
        (lambda state: state.update(more=torch.zeros(1)), r"1 unexpected \(more\)"),
        (lambda state: state.update({"unet.conv_in.bias": torch.zeros(3)}), r"1 misshapen \(unet.conv_in.bias\)"),
    ],
)
def test_official_weights_that_do_not_fit_are_refused(
    official: tuple[dict[str, Tensor], UNet2DConditionModel], change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    state = dict(official[0])
    change(state)
    with pytest.raises(UserError, match=message):
        import_idm_state(state)


# Reconstruction


@pytest.mark.parametrize("spec", ["structured:8", "block:33", "block:5", "pixel", "fourier", "column"])
@pytest.mark.parametrize("size", [(17, 23), (32, 20)])
@pytest.mark.parametrize("whole", [False, True])
def test_any_operator_and_any_size(spec: str, size: tuple[int, int], whole: bool) -> None:
    network = tiny(steps=1, pruned=not whole, unet=WHOLE if whole else TINY)
    operator = make_operator(spec, 0.4, size)
    with torch.no_grad():
        result = network(operator(torch.rand(2, 1, *size)), operator)
    assert result.shape == (2, 1, *size)
    assert result.isfinite().all()


def test_a_ratio_that_was_not_trained() -> None:
    network = tiny()
    for ratio in (0.1, 0.5, 1.0):
        operator = structured(ratio)
        assert network(operator(torch.rand(1, 1, 16, 16)), operator).shape == (1, 1, 16, 16)


def test_canvas_is_an_operator() -> None:
    operator = make_operator("pixel", 0.4, (7, 9)).double()
    canvas = Canvas(operator, (8, 12)).double()
    x, y = torch.rand(2, 1, 8, 12, dtype=torch.float64), torch.rand(2, 1, round(0.4 * 63), dtype=torch.float64)
    assert adjoint_error(canvas, x, y) < 1e-14
    torch.testing.assert_close(canvas(x), operator(x[..., :7, :9]))
    torch.testing.assert_close(canvas(canvas.pinv(canvas(x))), canvas(x))


@torch.no_grad()
def test_a_network_for_luminance_takes_channels_one_by_one() -> None:
    network, operator = tiny(), structured()
    x = torch.rand(2, 3, 16, 16)
    whole = network(operator(x), operator)
    for c in range(3):
        torch.testing.assert_close(whole[:, c : c + 1], network(operator(x[:, c : c + 1]), operator))


@torch.no_grad()
def test_a_network_for_colour_mixes_channels() -> None:
    network, operator = tiny(channels=3), structured()
    y = operator(torch.rand(2, 3, 16, 16))
    result = network(y, operator)
    assert result.shape == (2, 3, 16, 16)
    module = IDMModule(replace(network.config, unet=TINY))
    module.network.load_state_dict(network.state_dict())
    torch.testing.assert_close(module.reconstruct(y, operator), result)
    y[:, 2] *= 2
    assert not torch.allclose(network(y, operator)[:, 0], result[:, 0])
    with pytest.raises(UserError, match="for 3 channels, the measurements have 1"):
        network(y[:, :1], operator)


@torch.no_grad()
def test_measurements_are_honoured_by_a_single_step() -> None:
    """The last step ends on the measurements; one step with v = 0 is that step alone."""
    network, operator = tiny(steps=1), structured()
    nn.init.zeros_(network.wiring.sequence.v)
    y = operator(torch.rand(2, 1, 16, 16))
    torch.testing.assert_close(operator(network(y, operator)), y, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_start_from_noise() -> None:
    network, operator = tiny(start="noise"), structured()
    y = operator(torch.rand(1, 1, 16, 16))

    def run(seed: int) -> Tensor:
        return network(y, operator, torch.Generator().manual_seed(seed))

    assert torch.equal(run(0), run(0))
    assert not torch.allclose(run(0), run(1), atol=1e-3)
    assert not torch.allclose(network(y, operator), network(y, operator), atol=1e-3)
    network.eval()
    assert torch.equal(network(y, operator), network(y, operator))


@torch.no_grad()
def test_training_from_noise_depends_on_the_batch_alone() -> None:
    """And not on torch's own random numbers, which are the same in every process and do not survive resuming."""
    network, operator = tiny(start="noise"), structured()
    module = IDMModule(replace(network.config, unet=TINY))
    x = torch.rand(1, 1, 16, 16)
    first, again, other = (
        module.training_loss(x, operator(x), operator, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert first == again != other


@torch.no_grad()
def test_step_and_prompt_reach_the_whole_unet() -> None:
    network, operator = tiny(pruned=False, unet=WHOLE, injector_kernel=None), structured()
    x, aty = torch.rand(1, 4, 8, 8), torch.rand(1, 1, 16, 16)
    first, second = (network.unet(x, step, operator, aty) for step in (0, 1))
    assert not torch.allclose(first, second, atol=1e-4)
    nn.init.normal_(network.unet.prompt)
    assert not torch.allclose(network.unet(x, 0, operator, aty), first, atol=1e-4)


def test_attention_is_scaled_dot_product_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    attention = F.scaled_dot_product_attention

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return attention(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    operator = structured()
    with torch.no_grad():
        tiny(steps=3)(operator(torch.rand(1, 1, 16, 16)), operator)
    assert len(calls) == 3 * 10


def test_constrain_keeps_steps_defined() -> None:
    network = tiny()
    nn.init.constant_(network.alphas, 1.2)
    for v in network.all_v():
        nn.init.constant_(v, -0.1)
    network.constrain()
    operator = structured()
    assert network(operator(torch.rand(1, 1, 16, 16)), operator).isfinite().all()
    assert all((v >= 0.3).all() for v in network.all_v())


# Settings and loading


def test_random_start_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("network access")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    tiny()


@pytest.mark.parametrize("whole_pipeline", [False, True])
def test_pretrained_folder(tmp_path: Path, whole_pipeline: bool) -> None:
    unet = UNet2DConditionModel(**TINY)
    unet.save_pretrained(tmp_path / "unet" if whole_pipeline else tmp_path)
    network = tiny(unet={}, pretrained=str(tmp_path))
    taken = network.unet.up_blocks[1].wired.sequence.layers[3].resnet.conv1.weight
    assert torch.equal(taken, unet.up_blocks[3].resnets[1].conv1.weight)
    assert torch.equal(network.unet.conv_in.weight, unet.conv_in.weight)
    # What is written out needs the folder no more.
    again = IDM(network.config)
    again.load_state_dict(network.state_dict())
    colour = tiny(unet={}, pretrained=str(tmp_path), channels=3)
    x = torch.rand(1, 4, 8, 8)
    torch.testing.assert_close(colour.unet.conv_in(x.repeat(1, 3, 1, 1)), network.unet.conv_in(x))


def one_line(error: pytest.ExceptionInfo[UserError], *words: str) -> None:
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words)


def test_missing_pretrained_folder(tmp_path: Path) -> None:
    missing = str(tmp_path / "nothing" / "here")
    with pytest.raises(UserError) as error:
        tiny(pretrained=missing)
    one_line(error, missing, "config.json")
    with pytest.raises(UserError) as error:
        tiny(pretrained=str(tmp_path))  # a folder without a model
    one_line(error, str(tmp_path), "config.json")


def test_missing_hub_id(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise OSError("We couldn't connect to 'https://huggingface.co'\nand more")

    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", offline)
    with pytest.raises(UserError) as error:
        tiny(pretrained="stable-diffusion-v1-5/stable-diffusion-v1-5")
    one_line(error, "hub id 'stable-diffusion-v1-5/stable-diffusion-v1-5'", "give a diffusers folder")


def test_null_prompt(tmp_path: Path) -> None:
    prompt = np.random.RandomState(0).standard_normal((77, 8)).astype(np.float32)
    np.save(tmp_path / "prompt.npy", prompt)
    network = tiny(pruned=False, unet=WHOLE, null_prompt=str(tmp_path / "prompt.npy"))
    assert torch.equal(network.unet.prompt[0], torch.from_numpy(prompt))
    np.save(tmp_path / "prompt.npy", prompt[:5])
    with pytest.raises(UserError, match=r"holds \(5, 8\); the null prompt of this U-Net is \(77, 8\)"):
        tiny(pruned=False, unet=WHOLE, null_prompt=str(tmp_path / "prompt.npy"))
    with pytest.raises(UserError, match="belongs to the whole U-Net"):
        tiny(null_prompt=str(tmp_path / "prompt.npy"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"unet": {"block_out_channel": (8,)}}, "did you mean 'block_out_channels'"),
        ({"unet": TINY | {"in_channels": 3}}, "4 input and 4 output channels"),
        ({"unet": TINY | {"block_out_channels": (8, 24, 32, 32)}}, "multiple of 16 features"),
        ({"unet": TINY | {"block_out_channels": (8, 16, 24, 24)}}, "decoder reads 24 features"),
        ({"unet": TINY | {"block_out_channels": (8, 16)}}, "diffusers cannot build"),
    ],
)
def test_settings_that_make_no_network(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        tiny(**settings)
    one_line(error)


def test_training_and_checkpoint(tmp_path: Path) -> None:
    sampling = Sampling(ratios=(0.3,), kind="structured", block_size=8)
    module = IDMModule(IDMConfig(steps=2, unet=TINY), IDMTraining(sampling=sampling, ema_decay=0.9))
    before = copy.deepcopy(module.network.state_dict())
    batches = torch.utils.data.DataLoader(torch.randint(0, 256, (4, 1, 16, 16), dtype=torch.uint8), batch_size=2)
    trainer = pl.Trainer(
        max_steps=2, precision="bf16-mixed", accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(LightningTraining(module), batches)
    still = [name for name, value in module.network.state_dict().items() if torch.equal(value, before[name])]
    assert not still
    operator = module.default_operator(0.3, (16, 16))
    y = operator(torch.rand(1, 1, 16, 16))
    expected = module.reconstruct(y, operator)
    loaded = load_checkpoint(save_checkpoint(module, tmp_path / "idm.safetensors"))
    torch.testing.assert_close(loaded.reconstruct(y, operator), expected)
    assert replace(loaded.config, unet={}) == replace(module.config, unet={})
