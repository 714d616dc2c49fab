"""deepinv's physics in our loop and ours in deepinv's. Skipped where the optional package is not installed."""

from __future__ import annotations

import pytest
import torch

deepinv = pytest.importorskip("deepinv", reason="optional: pip install 'cs-models[deepinv]'")

from cs_models.errors import UserError  # noqa: E402
from cs_models.operators import adjoint_error, make_operator  # noqa: E402
from cs_models.solvers.deepinv_bridge import (  # noqa: E402
    DeepinvReconstructor,
    OperatorPhysics,
    PhysicsOperator,
    ReconstructorModel,
)
from cs_models.solvers.linear import PseudoInverse  # noqa: E402
from cs_models.solvers.pnp import DCTDenoiser, PlugAndPlay  # noqa: E402
from cs_models.solvers.tv import TotalVariation  # noqa: E402

SIZE = (16, 16)
PHYSICS = {
    "inpainting": lambda: deepinv.physics.Inpainting((1, *SIZE), mask=0.4),
    "gaussian": lambda: deepinv.physics.CompressedSensing(60, (1, *SIZE)),
    "tomography": lambda: deepinv.physics.Tomography(5, SIZE[0], normalize=False),
}


@pytest.mark.parametrize("word", ["block:8", "structured:8", "column", "pixel", "radial", "cartesian", "radon"])
def test_our_operators_are_physics(word: str) -> None:
    operator = make_operator(word, 0.4, SIZE).double()
    physics = OperatorPhysics(operator, channels=3)
    x = torch.rand(2, 3, *SIZE, dtype=torch.float64)
    y = physics(x)
    assert torch.equal(y, operator(x))
    if not y.is_complex():  # deepinv's test takes no complex measurements of real images
        assert float(physics.adjointness_test(x)) < 1e-9
    torch.testing.assert_close(physics.A(physics.A_dagger(y)), y)
    fidelity = deepinv.optim.data_fidelity.L2()
    torch.testing.assert_close(fidelity.grad(x, 0 * y, physics), operator.normal(x))


def test_noise_keeps_its_level() -> None:
    physics = OperatorPhysics(make_operator("pixel", 1.0, (64, 64), noise_sigma=0.1))
    assert physics(torch.zeros(1, 1, 64, 64)).std().item() == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("name", PHYSICS)
def test_its_physics_are_operators_with_the_laws(name: str) -> None:
    operator = PhysicsOperator(PHYSICS[name](), SIZE)  # in float32, as deepinv is made
    x = torch.rand(2, 3, *SIZE)
    measured = operator(x)
    y = torch.randn_like(measured)
    assert adjoint_error(operator, x, y) < 1e-5
    assert (operator(operator.pinv(measured)) - measured).norm() < 1e-4 * measured.norm()
    assert (operator.normal(x) - operator.adjoint(measured)).norm() < 1e-5 * measured.norm()
    assert operator.spec["kind"] == "deepinv"
    with pytest.raises(UserError, match="for 16x16 images"):
        operator.resized(8, 8)


@pytest.mark.parametrize("name", PHYSICS)
def test_our_solvers_take_its_physics(name: str) -> None:
    physics = PHYSICS[name]()
    x = torch.linspace(0, 1, 16)[None, None, :, None].expand(1, 1, *SIZE).contiguous()
    y = physics(x)
    ours = ReconstructorModel(TotalVariation())(y, physics)
    assert ours.shape == x.shape
    assert (ours - x).norm() < 0.15 * x.norm()
    exact = ReconstructorModel(PseudoInverse())(y, physics)
    assert (physics.A(exact) - y).norm() < 1e-4 * y.norm()


def test_its_models_run_in_our_loop() -> None:
    operator = make_operator("block:8", 0.3, SIZE)
    y = operator(torch.rand(2, 1, *SIZE))
    model = deepinv.models.ArtifactRemoval(deepinv.models.MedianFilter(3), mode="pinv")
    solver = DeepinvReconstructor(model)
    expected = deepinv.models.MedianFilter(3)(operator.pinv(y))
    torch.testing.assert_close(solver.reconstruct(y, operator), expected)
    assert solver.settings()["deepinv"] == "ArtifactRemoval"


def test_denoisers_need_no_bridge() -> None:
    """Its denoiser in our plug-and-play, ours in its prior."""
    operator = make_operator("pixel", 0.5, SIZE)
    y = operator(torch.rand(1, 1, *SIZE))
    denoiser = deepinv.models.TVDenoiser(n_it_max=5)
    assert PlugAndPlay(denoiser=denoiser, iterations=2).reconstruct(y, operator).isfinite().all()
    prior = deepinv.optim.prior.PnP(denoiser=DCTDenoiser())
    x = torch.rand(1, 1, *SIZE)
    torch.testing.assert_close(prior.prox(x, 0.1), DCTDenoiser()(x, 0.1))


def test_mistakes() -> None:
    with pytest.raises(UserError, match="takes no images of 8x8"):
        PhysicsOperator(deepinv.physics.CompressedSensing(60, (1, 16, 16)), (8, 8))
    with pytest.raises(UserError, match="no linear physics"):
        PhysicsOperator(deepinv.physics.Physics(), SIZE)
    colour = deepinv.physics.Inpainting((3, *SIZE), mask=0.5)
    with pytest.raises(UserError, match="3 channels together"):
        ReconstructorModel(PseudoInverse())(torch.rand(1, 3, *SIZE), colour)
