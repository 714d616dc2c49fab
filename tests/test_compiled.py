"""torch.compile: a few graphs serve a network at all sizes, ratios and schedules, and none of them is broken.

`fullgraph` makes a break an error, and so does a graph more than the network allows itself.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from cs_models.errors import UserError
from cs_models.networks.unfolding.coast import COASTConfig, COASTModule
from cs_models.networks.unfolding.module import UnfoldingModule, UnfoldingTraining
from cs_models.operators import make_operator
from cs_models.training.lightning import LightningTraining
from cs_models.training.module import ReconstructionModule, keep_compiled_code_apart
from cs_models.zoo.checkpoints import MODELS
from tests.small_networks import make_network

# The first step, and one each with another height and width: from then on both may be anything.
SIZES = (32, 32), (64, 32), (32, 96), (64, 64)
CHOICES = "csnet_plus wired=True", "ista_net modulation=rfmu"
# A graph of fixed size, one of any width, one of any size; what is wired runs once without gradients and once with.
MOST, MOST_WIRED = 3, 6


def training_step(module: ReconstructionModule, size: tuple[int, int], step: int) -> Tensor:
    """Loss and gradients, each step with another schedule, and another ratio where the network takes any."""
    if isinstance(module, UnfoldingModule):
        schedule = tuple(1 + (step + layer) % 3 for layer in range(len(module.network.layers)))
        module.training_schedule = lambda _: schedule  # type: ignore[method-assign]
    operator = module.training_operator(size, step)
    if module.name in ("coast", "ista_net_pp", "scnet"):
        operator = make_operator("block:8", 0.1 * (1 + step % 5), size)
    x = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(step))
    module.network.train().zero_grad()
    loss = module.training_loss(x, operator.measure(x), operator, step)
    loss.backward()
    return loss


def compared(name: str, backend: str, sizes: tuple[tuple[int, int], ...]) -> list[int]:
    """Train a compiled network beside one that is not; how many graphs there were after each step."""
    torch._dynamo.reset()
    modules = []
    for _ in range(2):
        torch.manual_seed(0)
        modules.append(make_network(name))
    plain, module = modules
    counter = CompileCounterWithBackend(backend)
    module.compile_layers(backend=counter, fullgraph=True)
    counts = []
    for step, size in enumerate(sizes):
        losses = [training_step(one, size, step) for one in modules]
        torch.testing.assert_close(*losses)
        counts.append(counter.frame_count)
    for ours, theirs in zip(module.network.parameters(), plain.network.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-3)
    return counts


@pytest.mark.parametrize("name", [*(name for name in MODELS if name != "idm"), *CHOICES])
def test_training_steps_share_graphs(name: str) -> None:
    counts = compared(name, "aot_eager", SIZES)
    assert 0 < counts[2] == counts[-1] <= (MOST_WIRED if "wired" in name else MOST)


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__ < (2, 13), reason="older ones count the graphs of all blocks together, to eight")
def test_blocks_of_idm_are_graphs() -> None:
    """Its U-Net has blocks of many shapes; further steps and other sizes need no more graphs."""
    counts = compared("idm invertible=both", "eager", SIZES[:3])
    assert 0 < counts[1] == counts[-1] <= 24


@pytest.mark.parametrize(
    ("limit", "chosen", "expected"),
    [("AVX2", None, "me_AVX2"), ("AVX2", "me", "me_AVX2"),
     ("../x", None, "me____x"), (None, None, None), ("AVX2", "mine", "mine")],
)  # fmt: skip
def test_compiled_code_is_kept_apart_by_instructions(
    limit: str | None, chosen: str | None, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [None if name is None else str(tmp_path / name) for name in (chosen, expected)]
    variables = {"ONEDNN_MAX_CPU_ISA": limit, "TORCHINDUCTOR_CACHE_DIR": folders[0]}
    monkeypatch.setattr("os.environ", {name: value for name, value in variables.items() if value is not None})
    monkeypatch.setattr("torch._inductor.runtime.runtime_utils.default_cache_dir", lambda: str(tmp_path / "me"))
    keep_compiled_code_apart()
    assert os.environ.get("TORCHINDUCTOR_CACHE_DIR") == folders[1]


def test_recorded_kernels_are_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    steps: list[int] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compiled.append(options["mode"]))
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: steps.append(1))
    training = UnfoldingTraining(compile=True, compile_mode="reduce-overhead")
    module = COASTModule(COASTConfig(layers=2, features=4), training)
    LightningTraining(module)
    assert compiled == ["reduce-overhead"] * 2
    operator = make_operator("block:8", 0.25, (16, 16))
    module.reconstruct(operator(torch.rand(1, 1, 16, 16)), operator)
    assert steps == [1]
    with pytest.raises(UserError, match="changes nothing without"):
        UnfoldingTraining(compile_mode="reduce-overhead")
