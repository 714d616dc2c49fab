"""Every network, operator, method and metric on an accelerator that this machine lacks: see `tests.rehearsal`.

What the tables of the project name is rehearsed without an edit here. A tensor on the wrong device fails; so does a
wait of the host for the device, except for those of `WAITS`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from tests import forked
from tests.conftest import REPOSITORY, module_of

torch = pytest.importorskip("torch")
if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip("this torch cannot rehearse a device", allow_module_level=True)

Case = dict[str, Any]

# Of each place that may wait how often it may in a case (of two steps, for training by Lightning), and why. All of them
# read a number, but for the one copy of a training step. Iterations ask every tenth time whether anything is left.
WAITS: dict[str, tuple[int, str]] = {
    "training/agreement.py:HostCopy.read": (2, "the loss, once a step, while the backward pass keeps the device busy"),
    "training/lightning.py:LightningTraining.optimizer_step": (2, "whether float16's gradients overflowed, once"),
    "numerics.py:conjugate_gradients": (8, "the stopping rule, every tenth time, in each iteration of irls"),
    "reconstruction.py:check_finite": (1, "the result of what waits anyway is looked at"),
    "solvers/base.py:column_norm": (1, "the scale of the problem"),
    "solvers/base.py:check_measurements": (1, "measurements are looked at"),
    "solvers/clomp.py:CoefficientsLearning._solve": (1, "the stopping rule, every tenth time"),
    "solvers/convex.py:ConvexSolver._iterate": (4, "settled images leave the batch, in every iteration"),
    "solvers/convex.py:DataProximal.__init__": (1, "whether the matrix can be inverted"),
    "solvers/convex.py:has_orthonormal_rows": (1, "chooses the algorithm"),
    "solvers/convex.py:operator_norm_squared": (2, "the step length"),
    "solvers/iht.py:IHT._solve": (1, "the stopping rule, every tenth time"),
    "solvers/iht.py:NIHT._solve": (1, "the stopping rule, every tenth time"),
    "solvers/iht.py:NIHT._step": (12, "the trials of a step length, of which the first mostly does"),
    "solvers/irls.py:IRLS._solve": (4, "settled signals leave the batch, in every iteration"),
    "solvers/omp.py:OMP._pursue": (1, "the stopping rule, every tenth time"),
    "solvers/omp.py:SupportBasis.extend": (33, "which signals take an atom, and how large their supports are"),
    "solvers/omp.py:SupportBasis.coefficients": (1, "how large the supports are"),
    "solvers/owlqn.py:line_search": (4, "ends with the last image whose step is short enough"),
    "solvers/sparse_problem.py:DictionaryProblem.__init__": (1, "the scale of the problem"),
    "solvers/sparse_problem.py:SparseProblem.squared_norm": (1, "the step length"),
    "solvers/stomp.py:StOMP._pursue": (6, "how many atoms a stage takes, and the stopping rule"),
    "solvers/subspace_pursuit.py:SubspacePursuit._solve": (1, "the stopping rule, every tenth time"),
    "solvers/support.py:within_noise": (1, "whether the operator's noise calls for it, once a call"),
    "solvers/support.py:fit_on_support": (18, "the stopping rule, every tenth time, in each of the fits"),
    "solvers/tv.py:TotalVariation._sylvester_step": (1, "whether the eigenvalues were found"),
}  # fmt: skip
COPIES = {"training/agreement.py:HostCopy.read"}
# Pairs that make no sense; every method must run with some operator.
REFUSED = {"method linear column", "method omp fourier", "method stomp fourier"}


@pytest.fixture(scope="module")
def found(tiny_ddpm: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """What each case met, from a process of its own: the device stays registered to its end."""
    out = tmp_path_factory.mktemp("rehearsal") / "found.json"
    status, printed = forked.run("tests/rehearsal.py", [str(out), str(tiny_ddpm)], out.with_name("log"), seconds=600)
    assert status == 0, printed[-3000:]
    return json.loads(out.read_text(encoding="utf-8"))


def problems(found: dict[str, Case]) -> list[str]:
    """Everything that is wrong, a line for each."""
    lines = []
    for name, case in found.items():
        if "refused" in case:
            lines += [] if name in REFUSED else [f"{name}: {case['refused']}"]
            continue
        lines += [f"{name}: {case['error']}"] if case["error"] else []
        lines += [f"{name}: multiplies in TF32 at {place}" for place in case.get("inexact", [])]
        if name.startswith(("network", "lightning")):
            lines += [f"{name}: adds in an order that changes at {place}" for place in case.get("scattered", [])]
        for place, kind, count in case.get("waits", []):
            most, _ = WAITS.get(place, (0, ""))
            if count > most or kind != ("to host" if place in COPIES else "read"):
                lines.append(f"{name}: waits {count} times at {place} ({kind})")
    return lines


@pytest.mark.parametrize("kind", ["network", "operator", "method", "transform", "metric", "tiles", "lightning"])
def test_everything_runs_on_its_device_without_waiting(kind: str, found: dict[str, Case]) -> None:
    cases = {name: case for name, case in found.items() if name.startswith(kind)}
    assert cases
    assert problems(cases) == []


def test_the_programs_part_on_idm_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wirings of `benchmarks/gpu.py`, with the settings of the program that they are taken from."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    gpu = module_of(REPOSITORY / "benchmarks/gpu.py")
    facts = list(gpu.idm_memory(argparse.Namespace(toy=True, device="cpu")))
    assert [fact["wiring"] for fact in facts] == ["not wired", "plain", "level 1", "level 2", "both"]


PARTS = "inference", "inference bf16", "inference fp16", "training", "training bf16"


def test_every_entry_of_the_tables_is_rehearsed(found: dict[str, Case]) -> None:
    from cs_models.operator_names import OPERATORS
    from cs_models.zoo.checkpoints import MODELS
    from cs_models.zoo.methods import METHODS

    ran = {name for name, case in found.items() if "refused" not in case}
    for model in MODELS:
        parts = {f"network {model} {what}" for what in PARTS}
        assert parts <= ran
    assert {f"operator {name} pinv" for name in OPERATORS} <= ran
    assert {f"method {name} block" for name in METHODS} <= ran


def test_no_exception_is_left_over(found: dict[str, Case]) -> None:
    assert set(WAITS) <= {place for case in found.values() for place, *_ in case.get("waits", [])}


def test_faults_are_found(found: dict[str, Case]) -> None:
    """A copy to the host, a number that it reads, a tensor that stays on the CPU, a sum in an order that changes."""
    names = "copies", "reads", "leaves_behind", "scatters"
    lines = [problems({f"network {name}": found[f"fault {name}"]}) for name in names]
    assert lines[0] == ["network copies: waits 1 times at elsewhere (to host)"]
    assert lines[1] == ["network reads: waits 1 times at elsewhere (read)"]
    assert "WrongDeviceError" in lines[2][0]
    assert lines[3] == ["network scatters: adds in an order that changes at elsewhere"]
