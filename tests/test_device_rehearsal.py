"""Every network, operator, method and metric on an accelerator that this machine lacks: see `tests.rehearsal`.

What the tables of the project name is rehearsed without an edit here. A tensor on the wrong device fails; so does a
wait of the host for the device, except for those of `WAITS`.
"""

from __future__ import annotations

import fnmatch
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

torch = pytest.importorskip("torch")
if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip("this torch cannot rehearse a device", allow_module_level=True)

Case = dict[str, Any]

# Of each place that may wait the kinds of waits (`tests.rehearsed_device`), and why. Nothing here allows a copy to the
# host, apart from the one number that a training step reads.
WAITS: dict[str, tuple[set[str], str]] = {
    "training/agreement.py:HostCopy.read": (
        {"to host"}, "the loss, once a step, while the backward pass keeps the device busy"
    ),
    "numerics.py:conjugate_gradients": ({"read"}, "ends with the last image that has not settled"),
    "reconstruction.py:check_finite": ({"read"}, "what waits anyway looks at its result, once a call"),
    "solvers/base.py:column_norm": ({"read", "from host"}, "the scale of the problem, once a call"),
    "solvers/base.py:check_measurements": ({"read"}, "measurements are looked at once a call"),
    "solvers/clomp.py:CoefficientsLearning._solve": ({"read"}, "the stopping rule, in every epoch"),
    "solvers/clomp.py:CoefficientsLearning._s_forward": ({"from host"}, "random numbers of the CPU, once a call"),
    "solvers/convex.py:ConvexSolver._iterate": ({"read"}, "settled images leave the batch"),
    "solvers/convex.py:DataProximal.__init__": ({"read"}, "an inverse, once a call"),
    "solvers/convex.py:_probe": ({"from host"}, "random numbers of the CPU, once a call"),
    "solvers/convex.py:has_orthonormal_rows": ({"read"}, "chooses the algorithm, once a call"),
    "solvers/convex.py:operator_norm_squared": ({"read"}, "the step length, once a call"),
    "solvers/iht.py:*": ({"read"}, "the stopping rule, and the trials of a step length"),
    "solvers/irls.py:*": ({"read"}, "settled signals leave the batch"),
    "solvers/linear.py:LinearEstimate._markov_estimate": ({"from host"}, "a spectrum, once a call"),
    "solvers/omp.py:*": ({"read"}, "signals have supports of different sizes"),
    "solvers/owlqn.py:line_search": ({"read"}, "ends with the last image whose step is short enough"),
    "solvers/sparse_problem.py:*": ({"read", "from host"}, "the scale of the problem, once a call"),
    "solvers/stomp.py:StOMP._pursue": ({"read"}, "the stopping rule, in every stage"),
    "solvers/subspace_pursuit.py:*": ({"read"}, "the stopping rule, and that of the least squares"),
    "solvers/tv.py:*": ({"read", "from host"}, "eigenvalues of the differences, once a call"),
}  # fmt: skip
# Pairs that make no sense; every method must run with some operator.
REFUSED = {"method linear column", "method omp fourier", "method stomp fourier"}


@pytest.fixture(scope="module")
def found(tiny_ddpm: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """What each case met, from a process of its own: the device stays registered to its end."""
    out = tmp_path_factory.mktemp("rehearsal") / "found.json"
    ended = subprocess.run(
        [sys.executable, "-m", "tests.rehearsal", str(out), str(tiny_ddpm)],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
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
        for place, kind, count in case.get("waits", []):
            if not any(fnmatch.fnmatch(place, pattern) and kind in kinds for pattern, (kinds, _) in WAITS.items()):
                lines.append(f"{name}: waits {count} times at {place} ({kind})")
    return lines


@pytest.mark.parametrize("kind", ["network", "operator", "method", "transform", "metric", "tiles", "lightning"])
def test_everything_runs_on_its_device_without_waiting(kind: str, found: dict[str, Case]) -> None:
    cases = {name: case for name, case in found.items() if name.startswith(kind)}
    assert cases
    assert problems(cases) == []


def test_every_entry_of_the_tables_is_rehearsed(found: dict[str, Case]) -> None:
    from cs_models.operator_names import OPERATORS
    from cs_models.zoo.checkpoints import MODELS
    from cs_models.zoo.methods import METHODS

    ran = {name for name, case in found.items() if "refused" not in case}
    for model in MODELS:
        parts = {f"network {model} {what}" for what in ("inference", "inference bf16", "training", "training bf16")}
        assert parts <= ran
    assert {f"operator {name} pinv" for name in OPERATORS} <= ran
    assert {f"method {name} block" for name in METHODS} <= ran


def test_faults_are_found(found: dict[str, Case]) -> None:
    """A copy to the host, a number that it reads, and a tensor that stays on the CPU."""
    lines = [problems({name: found[f"fault {name}"]}) for name in ("copies", "reads", "leaves_behind")]
    assert lines[0] == ["copies: waits 1 times at elsewhere (to host)"]
    assert lines[1] == ["reads: waits 1 times at elsewhere (read)"]
    assert "WrongDeviceError" in lines[2][0]
