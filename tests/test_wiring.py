"""Invertible wiring: gradients equal plain autograd's, whatever surrounds it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from cs_models.networks.invertible import Context, InvertibleSequence, Wired


class Scaled(nn.Module):
    """A layer that reads a tensor, a module and a constant besides x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor, tensor: Tensor, module: nn.Module, power: int) -> Tensor:
        return torch.tanh(self.linear(x) + tensor * module(x) ** power)


class Nested(nn.Module):
    """A layer that is itself wired."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wired = Wired([Scaled(width), nn.Tanh(), Scaled(width)], v=0.6)

    def forward(self, x: Tensor, tensor: Tensor, module: nn.Module, power: int) -> Tensor:
        context = (tensor, module, power)
        return self.wired(x, [context, (), context])


def plain_copy(module: nn.Module) -> nn.Module:
    """The same network under plain autograd."""
    module = copy.deepcopy(module)
    for part in module.modules():
        if isinstance(part, InvertibleSequence):
            part.invertible = False
    return module


def gradients(module: nn.Module, loss: Tensor, *others: Tensor) -> dict[str, Tensor]:
    for parameter in module.parameters():
        parameter.grad = None
    named = dict(module.named_parameters())
    found = torch.autograd.grad(loss, [*named.values(), *others], allow_unused=True)
    return dict(zip([*named, *map(str, range(len(others)))], found, strict=True))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient is not None
        assert gradient.norm() > 0, name
        assert (found[name] - gradient).norm() <= tolerance * gradient.norm(), name


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("layer", [lambda: Scaled(6), lambda: Nested(6)], ids=["one level", "two levels"])
def test_gradients_equal_plain_autograd(layer: Callable[[], nn.Module], depth: int) -> None:
    module = nn.ModuleDict({"wired": Wired([layer() for _ in range(depth)], v=0.4), "shared": nn.Linear(6, 6)}).double()
    plain = plain_copy(module)
    nn.init.constant_(module["wired"].output_scale, 0.3)
    nn.init.constant_(plain["wired"].output_scale, 0.3)
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    tensor = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)

    def run(network: nn.Module) -> dict[str, Tensor]:
        # The last layer reads another tensor, which depends on the first.
        contexts = [(tensor, network["shared"], 2)] * (depth - 1) + [(tensor.exp(), network["shared"], 3)]
        return gradients(network, network["wired"](x, contexts).square().sum(), x, tensor)

    assert_same(run(module), run(plain))


def test_gradcheck() -> None:
    module = InvertibleSequence([nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)], v=0.7).double()
    inputs = tuple(torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x, h: module(x, h), inputs)


def test_inverse_gives_back_the_pair() -> None:
    module = InvertibleSequence([nn.Linear(8, 8) for _ in range(5)], v=0.5).double()
    x, h = torch.randn(2, 4, 8, dtype=torch.float64)
    torch.testing.assert_close(module.inverse(*module(x, h)), (x, h), rtol=1e-11, atol=1e-11)


def orthogonal_sequence(depth: int, v: float) -> InvertibleSequence:
    """Layers that keep distances, so that only v and the depth matter."""
    layers = [nn.utils.parametrizations.orthogonal(nn.Linear(64, 64, bias=False)) for _ in range(depth)]
    module = InvertibleSequence(layers, v=v)
    for layer in layers:
        nn.utils.parametrize.remove_parametrizations(layer, "weight")
    return module


def inversion_error(depth: int, v: float) -> float:
    module = orthogonal_sequence(depth, v)
    x, h = torch.randn(2, 256, 64)
    found = module.inverse(*module(x, h))
    return float((found[1] - h).norm() / h.norm())


def test_inversion_error_grows_with_depth_at_most_by_one_over_v_per_layer() -> None:
    errors = {(depth, v): inversion_error(depth, v) for depth in (4, 12) for v in (0.3, 0.5, 0.8)}
    for v in (0.3, 0.5, 0.8):
        growth = (errors[12, v] / errors[4, v]) ** (1 / 8)
        assert v**-0.5 * 0.8 < growth < 1 / v
    assert errors[12, 0.3] > 10 * errors[12, 0.5] > 10 * errors[12, 0.8]
    assert errors[12, 0.5] < 1e-4


def saved_bytes(run: Callable[[], Tensor]) -> int:
    """Bytes of the different tensors that a forward pass keeps for its backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept.values())


def test_kept_activations_do_not_grow_with_depth() -> None:
    def kept(depth: int, invertible: bool) -> int:
        layer = nn.Conv2d(1, 1, 3, padding=1)  # one layer many times: the weights do not grow either
        module = Wired([nn.Sequential(layer, nn.Tanh())] * depth)
        module.sequence.invertible = invertible
        x = torch.randn(4, 1, 32, 32)
        return saved_bytes(lambda: module(x))

    assert kept(16, True) - kept(2, True) <= 16 * 4  # v has one number a layer
    assert kept(16, False) > 5 * kept(2, False)
    assert kept(16, True) < 0.1 * kept(16, False)


def test_a_pair_in_float64_makes_steep_layers_exact() -> None:
    layers = [nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16)) for _ in range(12)]
    for parameter in nn.ModuleList(layers).parameters():
        parameter.data *= 3
    x = torch.randn(8, 16)

    def error(precision: torch.dtype) -> float:
        module = Wired(copy.deepcopy(layers), v=0.3, precision=precision)
        plain = plain_copy(module)
        found, expected = (
            torch.cat([g.flatten() for g in gradients(network, network(x).square().sum()).values()])
            for network in (module, plain)
        )
        assert found.dtype == torch.float32
        return float((found - expected).norm() / expected.norm())

    assert error(torch.float64) < 1e-5 < 1e-2 < error(torch.float32)


def test_weights_in_bfloat16_without_autocast() -> None:
    module = Wired([nn.Linear(4, 4), nn.Linear(4, 4)]).bfloat16()
    x = torch.randn(2, 4, dtype=torch.bfloat16)
    result = module(x)
    assert result.dtype == torch.float32  # the pair
    result.sum().backward()
    assert module.sequence.layers[0].weight.grad.dtype == torch.bfloat16


def test_no_grad_keeps_nothing_and_agrees() -> None:
    module = Wired([nn.Linear(4, 4), nn.Linear(4, 4)])
    x = torch.randn(2, 4)
    with torch.no_grad():
        result = module(x)
    assert not result.requires_grad
    torch.testing.assert_close(result, module(x))
    assert saved_bytes(lambda: torch.no_grad()(module)(x)) == 0


def test_dropout_is_replayed_and_the_random_state_left_alone() -> None:
    layers = [nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5)) for _ in range(3)]
    module = Wired(layers).double()
    x = torch.randn(4, 16, dtype=torch.float64, requires_grad=True)
    results = []
    for network in (module, plain_copy(module)):
        torch.manual_seed(7)
        loss = network(x).square().sum()
        results.append((gradients(network, loss, x), torch.rand(3)))
    for name, gradient in results[1][0].items():
        torch.testing.assert_close(results[0][0][name], gradient, rtol=1e-10, atol=1e-10)
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backward_inside", [False, True])
def test_autocast_is_replayed(dtype: torch.dtype, backward_inside: bool) -> None:
    seen: list[torch.dtype] = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == torch.float32  # the pair
            x = self.conv(x)
            seen.append(x.dtype)
            return x.tanh()

    module = Wired([Spy(), Spy(), Spy()])
    plain = plain_copy(module)
    x = torch.randn(2, 4, 8, 8)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16, init_scale=2.0**8)
    found = []
    for network in (module, plain):
        with torch.autocast("cpu", dtype):
            # A run without gradients first: autocast must not remember its weights for the next.
            with torch.no_grad():
                network(x)
            loss = scaler.scale(network(x).square().mean())
            if backward_inside:
                loss.backward()
        if not backward_inside:
            loss.backward()
        found.append({name: parameter.grad / scaler.get_scale() for name, parameter in network.named_parameters()})
    assert set(seen) == {dtype}
    assert_same(found[0], found[1], tolerance=0.02)
    assert all(gradient.dtype == torch.float32 for gradient in found[0].values())


def test_gradient_scaler_skips_a_step_that_overflows() -> None:
    module = Wired([nn.Linear(4, 4), nn.Linear(4, 4)])
    before = copy.deepcopy(module.state_dict())
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**15)
    with torch.autocast("cpu", torch.float16):
        loss = module(torch.full((2, 4), 1e3)).square().sum()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() < 2.0**15
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_gradients_accumulate_over_two_backward_passes() -> None:
    module = Wired([nn.Linear(6, 6) for _ in range(3)]).double()
    plain = plain_copy(module)
    batches = torch.randn(2, 5, 6, dtype=torch.float64)
    for network in (module, plain):
        for x in batches:
            network(x).square().sum().backward()
    found = {name: parameter.grad for name, parameter in module.named_parameters()}
    assert_same(found, {name: parameter.grad for name, parameter in plain.named_parameters()})


def test_hooks_on_parameters_run_once() -> None:
    layer = nn.Linear(4, 4)
    module = Wired([layer, layer])
    calls = []
    layer.weight.register_hook(lambda gradient: calls.append("tensor"))
    layer.weight.register_post_accumulate_grad_hook(lambda parameter: calls.append("accumulated"))
    module(torch.randn(2, 4)).sum().backward()
    assert calls == ["tensor", "accumulated"]


def test_a_tensor_read_twice_by_one_layer_gets_its_gradient_once() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
            return x * a + b

    a = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, dtype=torch.float64)
    module = Wired([Sum()]).double()
    found, expected = (
        torch.autograd.grad(network(x, [(a, a)]).square().sum(), a)[0] for network in (module, plain_copy(module))
    )
    torch.testing.assert_close(found, expected)


def test_a_parameter_with_two_names_in_one_layer_gets_both_gradients() -> None:
    tied = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    module = Wired([tied, nn.Linear(4, 4)]).double()
    plain = plain_copy(module)
    x = torch.randn(2, 4, dtype=torch.float64)
    assert_same(gradients(module, module(x).square().sum()), gradients(plain, plain(x).square().sum()))


def test_backward_under_saved_tensor_hooks() -> None:
    module = Wired([nn.Linear(4, 4), nn.Linear(4, 4)]).double()
    x = torch.randn(2, 4, dtype=torch.float64)
    expected = gradients(module, module(x).square().sum())
    with torch.autograd.graph.save_on_cpu():
        found = gradients(module, module(x).square().sum())
    assert_same(found, expected)


def test_frozen_parameters_get_no_gradient() -> None:
    module = Wired([nn.Linear(4, 4), nn.Linear(4, 4)])
    module.sequence.layers[0].weight.requires_grad_(False)
    module(torch.randn(2, 4)).square().sum().backward()
    assert module.sequence.layers[0].weight.grad is None
    assert module.sequence.layers[0].bias.grad is not None


def test_interleaved_instances_do_not_disturb_each_other() -> None:
    first, second = (Wired([Scaled(4), Scaled(4)]).double() for _ in range(2))
    inputs = torch.randn(2, 3, 4, dtype=torch.float64)
    shared = nn.Linear(4, 4).double()

    def loss(network: nn.Module, x: Tensor) -> Tensor:
        return network(x, [(x, shared, 1), (2 * x, shared, 2)]).square().sum()

    together = loss(first, inputs[0]), loss(second, inputs[1])  # both forward passes before any backward pass
    for network, x, value in zip((first, second), inputs, together, strict=True):
        plain = plain_copy(network)
        assert_same(gradients(network, value), gradients(plain, loss(plain, x)))


def test_changing_a_weight_between_forward_and_backward_is_refused() -> None:
    module = Wired([nn.Linear(4, 4), nn.Linear(4, 4)])
    loss = module(torch.randn(2, 4)).sum()
    with torch.no_grad():
        module.sequence.layers[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_layer_that_changes_the_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="must keep the shape"):
        Wired([nn.Linear(4, 1)])(torch.randn(2, 4))


def test_one_context_per_layer() -> None:
    contexts: Sequence[Context] = [()]
    with pytest.raises(ValueError, match="argument"):
        Wired([nn.Linear(4, 4), nn.Linear(4, 4)])(torch.randn(2, 4), contexts)
