"""Networks and solvers in files of a user's own: what they may be, how errors are told, what makes rows' keys."""

from __future__ import annotations

import csv
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from cs_models.cli import evaluate, train
from cs_models.errors import UserError
from cs_models.evaluation.options import Execution
from cs_models.evaluation.plan import Candidate, make_candidate
from cs_models.operators import make_operator
from cs_models.reconstruction import Reconstructor
from cs_models.training.module import ReconstructionModule
from cs_models.training.weights import save_checkpoint
from cs_models.zoo.checkpoints import load_checkpoint
from cs_models.zoo.methods import build_method, load, parse_method
from cs_models.zoo.own_methods import OwnMethod
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs/own_networks.md").read_text()
FILES = dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = [line for line in PAGE.splitlines() if line.startswith("python ")]
SIZE = (20, 19)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, with the files of the page in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def run_command(line: str, images: Path) -> int:
    """A command of the page, on small images, and a training of two steps."""
    _, program, *words = shlex.split(line)
    if program == "eval.py":
        words = [str(images) if word == "bundled" else word for word in words]
        return evaluate.main([*words, "--device", "cpu"])
    assert program == "train.py"
    return train.main(
        [*words, f"--data.train_sets=[{images}]", f"--data.validation_sets=[{images}]", "--data.validation_limit=1",
         "--data.batches_per_epoch=2", "--data.batch_size=2", "--data.distinct_patches=4", "--trainer.max_steps=2",
         "--trainer.num_sanity_val_steps=0", "--trainer.accelerator=cpu", "--trainer.precision=32-true",
         "--trainer.enable_progress_bar=false"]
    )  # fmt: skip


@pytest.mark.slow
def test_the_page(folder: Path, tiny_images: Path) -> None:
    """Every command of docs/own_networks.md, in its order; each gives a row for every method that it names."""
    assert set(FILES) == {"my_net.py", "my_solver.py", "my_module.py", "my_net.yaml", "compare.py"}
    assert len(COMMANDS) == 4
    assert FILES["my_net.py"].count("\n") <= 32
    for line in COMMANDS:
        assert run_command(line, tiny_images) == 0, line
    with open("results/mine/per_image.csv") as file:
        rows = list(csv.DictReader(file))
    methods = {method for line in COMMANDS if "eval.py" in line for method in shlex.split(line)[3].split(",")}
    assert {row["method"] for row in rows} == methods
    assert {"tv", "r_coast", "linear"} < methods
    by_method = {row["method"]: row for row in rows}
    assert int(by_method["module:my_net.py:build"]["parameters"]) == 305
    assert int(by_method["module:my_net.py:build"]["macs"]) > 0
    trained = by_method["module:my_module.py:MyModule:checkpoint=runs/my_net/model.safetensors"]
    assert int(trained["parameters"]) == 32 * 9 + 32 + 32 * 9 + 1
    origins = {"tv": "training-free", "r_coast": "trained", "module:my_net.py:build": "own code"}
    assert {name: by_method[name]["provenance"] for name in origins} == origins
    assert trained["provenance"] == "trained"


def test_the_script_of_the_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path("compare.py", run_name="__main__")
    assert "'module:my_net.py:build': " in capsys.readouterr().out


FORMS = {
    "function that gives a network": """
        class Net(nn.Module):
            def forward(self, y, A, At):
                return At(y)
        def make(): return Net()""",
    "network's class": """
        class make(nn.Module):
            def forward(self, y, A, At):
                return At(y)""",
    "network": """
        class Net(nn.Module):
            def forward(self, y, A, At):
                return At(y)
        make = Net()""",
    "reconstruct": """
        class make:
            def reconstruct(self, y, operator): return operator.adjoint(y)""",
    "solve with a tensor": """
        class make:
            def solve(self, y, operator): return operator.adjoint(y)""",
    "our interface": """
        class make(Reconstructor):
            def _solve(self, y, operator): return Solution(operator.adjoint(y), iterations=torch.ones(len(y)))
            def settings(self): return {}""",
    "closure": """
        def make(scale: float = 1.0):
            def method(y, A, At): return scale * At(y)
            return method""",
    "partial": """
        def method(y, A, At, scale): return scale * At(y)
        def build(scale): return functools.partial(method, scale=scale)
        make = functools.partial(build, 1)""",
    "what needs gradients": """
        def make():
            def method(y, A, At):
                with torch.enable_grad():
                    x = torch.zeros_like(At(y)).requires_grad_()
                    loss = (A(x) - y).square().sum() / 2
                    return -torch.autograd.grad(loss, x)[0]
            return method""",
}  # fmt: skip
HEADER = """\
import functools
import torch
from torch import nn
from cs_models.reconstruction import Reconstructor, Solution
"""


def write(path: Path, body: str) -> Path:
    """A file of these lines, taken out of their indentation, after some imports."""
    lines = body.strip("\n").splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    path.write_text(HEADER + "\n".join(line[indent:] for line in lines) + "\n")
    return path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("channels", [1, 3])
def test_what_a_method_may_be(folder: Path, form: str, channels: int) -> None:
    write(folder / "mine.py", FORMS[form])
    method = build_method("module:mine.py:make", 0.3)
    operator = make_operator("block:8", 0.3, SIZE)
    y = operator(torch.rand(2, channels, *SIZE))
    solution = method.solve(y, operator)
    torch.testing.assert_close(solution.x, operator.adjoint(y))
    assert not solution.x.requires_grad
    assert (solution.iterations is not None) == (form == "our interface")


def test_settings_and_the_ratio(folder: Path) -> None:
    """Types as declared; undeclared ones are read like YAML; `ratio` is given where it is asked for."""
    body = """
        class make:
            def __init__(self, ratio, steps: int, name="a", factor=1):
                self.given = (ratio, steps, name, factor)
            def reconstruct(self, y, operator): return operator.adjoint(y)"""
    write(folder / "mine.py", body)
    method = build_method("module:mine.py:make:steps=3:name=b:factor=2.5", 0.25)
    assert isinstance(method, OwnMethod)
    assert method.target.given == (0.25, 3, "b", 2.5)
    with pytest.raises(UserError, match=r"mine\.py:make needs steps"):
        build_method("module:mine.py:make", 0.25)
    with pytest.raises(UserError, match=r"mine\.py:make has no setting 'stps'; did you mean 'steps'"):
        build_method("module:mine.py:make:stps=3", 0.25)
    with pytest.raises(UserError, match="steps=x is not of type"):
        build_method("module:mine.py:make:steps=x", 0.25)


# What stands in the file, after the four lines of HEADER, and what is told.
MISTAKES = {
    "def make(:": r"mine\.py, line 5: SyntaxError: ",
    "import absent_package": r"mine\.py, line 5: ModuleNotFoundError: No module named 'absent_package'",
    "raise SystemExit(0)": r"mine\.py, line 5: it ends the program",
    "x = 1\ndef make(): return x / 0": r"mine\.py, line 6: ZeroDivisionError: division by zero",
    "def make(): return 3": r"mine\.py:make gives a int, which has none of solve",
    "def mke(): pass": r"mine\.py has no 'make'; did you mean 'mke'",
    "x = 1": r"mine\.py has no 'make'",
    "make = 3": r"mine\.py:make gives a int, which has none of",
    "from helper import broken": r"helper\.py, line 2: NameError: ",
    "class make(Reconstructor): pass": r"class mine\.py:make does not define .*solve",
    "def make(): return lambda y, A, At: At(y)[..., 1:]": r"gives the shape \(1, 1, 48, 47\); expected",
    "def make(): return lambda y, A, At: At(y).sum()": r"gives the shape \(\)",
    "def make(): return lambda y, A, At: None": r"gives a NoneType; expected a tensor",
    "def make(): return lambda y, A, At: At(y) / 0": r"mine\.py:make gave values that are not finite",
    "def make():\n  def method(y, A, At):\n    return y @ y\n  return method": r"mine\.py, line 7: RuntimeError: ",
    "class make:\n  def solve(self, y):\n    return y": r"mine\.py:make: it is called with \(y, operator\)",
    "class make(nn.Module):\n  def forward(self, y):\n    return y": r"mine\.py:make: it is called with \(y, A, At\)",
    "make = dict": r"mine\.py:make does not say what arguments it takes",
}


@pytest.mark.parametrize("body", MISTAKES)
def test_mistakes_end_in_one_line(folder: Path, tiny_images: Path, capsys: pytest.CaptureFixture, body: str) -> None:
    (folder / "mine.py").write_text(HEADER + body + "\n")
    (folder / "helper.py").write_text("\nundefined\n")
    words = ["--methods", "module:mine.py:make", "--datasets", str(tiny_images), "--ratios", "0.3", "--device", "cpu"]
    assert evaluate.main([*words, "--limit", "1"]) == 2
    message = capsys.readouterr().err.strip()
    assert "\n" not in message
    assert re.search(MISTAKES[body], message), message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("module:absent.py:make", "file not found: absent.py"),
        ("module:mine.py", "written module:my_file.py:NAME"),
        ("module::make", "written module:my_file.py:NAME"),
        ("module:my_net.py:build:3", "written module:my_net.py:build:key=value"),
        ("module:no_such_module:make", "no Python module 'no_such_module'"),
        ("module:sys:make", "no Python module 'sys'"),
    ],
)
def test_words_that_name_no_method(folder: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        parse_method(text)
    assert "\n" not in str(caught.value)


def candidate(text: str) -> Candidate:
    return make_candidate(parse_method(text), 0.3, Execution(precision="auto"), torch.device("cpu"))


def test_keys_are_made_of_source_settings_and_weights(folder: Path) -> None:
    body = """
        from pack.inner import scale
        from helper import table
        class make:
            def __init__(self, weights: str = "a.pt", steps: int = 1):
                self.parts = [{"net": torch.load(weights)}, nn.Linear(1, 1).half()]
            def reconstruct(self, y, operator): return operator.adjoint(y)"""
    write(folder / "mine.py", body)
    (folder / "pack").mkdir()
    (folder / "pack/__init__.py").write_text("")
    (folder / "pack/inner.py").write_text("from . import third\nscale = 1\n")
    (folder / "pack/third.py").write_text("")
    (folder / "helper.py").write_text("import deeper\nfrom cs_models import errors\ntable = 1\n")
    (folder / "cs_models").mkdir()
    (folder / "cs_models/errors.py").write_text("")
    (folder / "deeper.py").write_text("")
    (folder / "unrelated.py").write_text("")
    torch.save(torch.ones(2, dtype=torch.bfloat16), "a.pt")
    torch.save(torch.zeros(2), "b.pt")

    def facts(text: str = "module:mine.py:make") -> dict:
        return candidate(text).facts

    seen = [facts()]
    assert facts() == seen[0], "random weights are those of a seed"
    for file in ("unrelated.py", "cs_models/errors.py"):
        (folder / file).write_text("changed = 1\n")
    assert facts() == seen[0]
    assert facts(f"module:{folder / 'mine.py'}:make") == seen[0], "the same file by another path"
    seen += [facts("module:mine.py:make:steps=2"), facts("module:mine.py:make:weights=b.pt")]
    torch.save(torch.tensor([1.0, 2.0]), "a.pt")
    seen.append(facts())
    for file in ("mine.py", "helper.py", "deeper.py", "pack/inner.py", "pack/third.py", "pack/__init__.py"):
        with open(folder / file, "a") as source:
            source.write("# changed\n")
        seen.append(facts())
    for index, one in enumerate(seen):
        assert one not in seen[:index]


def test_a_changed_file_runs_anew_and_an_unchanged_one_once(folder: Path) -> None:
    source = "count = 0\nclass make:\n    value = {}\n    def reconstruct(self, y, operator): return y\n"
    (folder / "mine.py").write_text(source.format(1))
    first, again = (build_method("module:mine.py:make", ratio).target for ratio in (0.1, 0.3))
    assert type(first) is type(again)
    (folder / "mine.py").write_text(source.format(2))
    assert build_method("module:mine.py:make", 0.1).target.value == 2


def test_what_it_imports_runs_anew_too(folder: Path) -> None:
    (folder / "helper.py").write_text("value = 1\n")
    source = "import helper\nclass make:\n    value = helper.value\n    def solve(self, y, operator): return y\n"
    (folder / "mine.py").write_text(source)
    assert build_method("module:mine.py:make", 0.1).target.value == 1
    (folder / "helper.py").write_text("value = 2\n")  # as long, and within the same second
    assert build_method("module:mine.py:make", 0.1).target.value == 2


def test_a_module_by_its_dotted_name(folder: Path) -> None:
    (folder / "pack").mkdir()
    (folder / "pack/mine.py").write_text("from pack import helper\nclass make:\n    def solve(self, y): return y\n")
    (folder / "pack/helper.py").write_text("")
    code = parse_method("module:pack.mine:make").code
    assert [path.name for path in code.files] == ["helper.py", "mine.py"]
    with pytest.raises(UserError, match="it is called with"):
        build_method("module:pack.mine:make", 0.1)


def test_own_networks_run_in_float32_unless_asked_otherwise(folder: Path) -> None:
    """Their authors may have written data consistency with plain products, which autocast would round."""
    (folder / "mine.py").write_text(HEADER + "def make(): return Net()\nclass Net(nn.Conv2d):\n"
                                    "    def __init__(self): super().__init__(1, 1, 3, padding=1)\n"
                                    "    def forward(self, y, A, At): return super().forward(At(y))\n")  # fmt: skip
    operator = make_operator("block:8", 0.3, SIZE)
    y = operator(torch.rand(1, 1, *SIZE))
    spec, cpu = parse_method("module:mine.py:make"), torch.device("cpu")
    exact = make_candidate(spec, 0.3, Execution(), cpu)
    rounded = make_candidate(spec, 0.3, Execution(precision="bf16"), cpu)
    assert (exact.precision, rounded.precision) == ("fp32", "bf16")
    assert exact.parameters == 10
    assert not torch.equal(exact.solve(y, operator).x, rounded.solve(y, operator).x.float())
    assert not exact.modules[0].training


def trained(folder: Path) -> Path:
    """A checkpoint of the page's class, as a training in another process leaves it."""
    module = build_method("module:my_module.py:MyModule", 0.3)
    assert isinstance(module, ReconstructionModule)
    nn.init.constant_(next(module.network.parameters()), 0.25)
    return save_checkpoint(module, folder / "mine.safetensors")


def test_a_checkpoint_of_an_own_class(folder: Path) -> None:
    path = trained(folder)
    word = f"module:my_module.py:MyModule:checkpoint={path}"
    module = load(word)
    assert next(module.network.parameters()).unique().tolist() == [0.25]
    assert candidate(word).network is not None
    before = candidate(word).facts
    path.rename(folder / "moved.safetensors")
    word = "module:my_module.py:MyModule:checkpoint=moved.safetensors"
    assert candidate(word).facts == before
    with open(folder / "my_module.py", "a") as source:
        source.write("# changed\n")
    assert candidate(word).facts != before
    with pytest.raises(UserError, match="is no trained network"):
        load("module:my_net.py:build")


def test_nothing_is_imported_because_a_checkpoint_names_it(folder: Path) -> None:
    path = trained(folder)
    for name in [name for name in sys.modules if name.startswith("_own_my_module")]:
        del sys.modules[name]
    with pytest.raises(UserError, match=r"unknown model 'my_net'.*module:my_file\.py:MyModule:checkpoint=FILE"):
        load_checkpoint(path)
    assert not [name for name in sys.modules if name.startswith("_own_my_module")]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("module:my_module.py:MyModule:checkpoint=absent.safetensors", "checkpoint not found: absent.safetensors"),
        ("module:my_module.py:MyModule:features=3", "takes the setting checkpoint=FILE alone"),
        (
            "module:other.py:MyModule:checkpoint=mine.safetensors",
            "it holds the network 'my_net', and the class",
        ),
        ("module:deeper.py:MyModule:checkpoint=mine.safetensors", r"its weights do not fit: .*missing"),
        ("module:nameless.py:MyModule", "class MyModule does not define name"),
        ("module:dictionary.py:MyModule", "gives a dict as its configuration"),
    ],
)
def test_checkpoints_that_do_not_fit(folder: Path, word: str, message: str) -> None:
    trained(folder)
    page = FILES["my_module.py"]
    (folder / "other.py").write_text(page.replace('name = "my_net"', 'name = "another"'))
    (folder / "deeper.py").write_text(page.replace("nn.ReLU()", "nn.Conv2d(features, features, 1)"))
    (folder / "nameless.py").write_text(page.replace('    name = "my_net"\n', ""))
    (folder / "dictionary.py").write_text(page.replace("), network, training)", '), {"features": 1}, training)'))
    with pytest.raises(UserError, match=message) as caught:
        build_method(word, 0.3)
    assert "\n" not in str(caught.value)


def test_the_interface_of_an_own_method() -> None:
    """From Python, any object at all."""
    method = OwnMethod(lambda y, A, At: At(y), "mine")
    assert isinstance(method, Reconstructor)
    operator = make_operator("column", 0.5, (16, 3))
    y = operator(torch.rand(1, 1, 16, 3))
    assert method.reconstruct(y, operator).shape == (1, 1, 16, 3)
