"""Every command that the pages print is taken as printed: options, files, configurations, methods, operators, sets.

All of it runs in one folder that holds what a reader would have: image sets, files of ``cs-models samples``, the blocks
of `docs/own_networks.md` under their names, trained weights and results of an earlier command. Only what would take
long is left out: methods do not iterate, networks are not trained, traced or uploaded.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from torch import Tensor

from cs_models.cli import evaluate
from cs_models.cli.configs import with_configs_found
from cs_models.cli.main import COMMANDS
from cs_models.cli.main import main as command
from cs_models.cli.samples import NAMES, write_samples
from cs_models.cli.spelling import check_spelling
from cs_models.errors import UserError
from cs_models.evaluation.plan import Candidate, Plan
from cs_models.evaluation.results import ResultsFile
from cs_models.operators import MeasurementOperator
from cs_models.reconstruction import Solution
from cs_models.training.weights import save_checkpoint
from cs_models.zoo.methods import load
from tests.conftest import REPOSITORY, module_of
from tests.test_evaluation_report import rows_of
from tests.test_networks import NETWORKS

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What stands for something of the reader's, and what the tests put there.
PLACEHOLDERS = {
    r"wandb:TEAM/PROJECT/coast-NAME:latest": "r_coast",
    r"--methods M --datasets D": "--methods linear --datasets bundled",
    r"C\.yaml": "r_coast",
    r"\$CS_DATA": "data",
    r"\$SLURM_JOB_ID": "1",
    r"\$resume": "",
    r"(?<= )(?=(configs|checkpoints|benchmarks)/)": f"{REPOSITORY.as_posix()}/",
    r"(?<=,)(?=checkpoints/)": f"{REPOSITORY.as_posix()}/",
}
# Programs of others; what they read here exists, which is all that can be said of them.
OTHERS = ("pip", "uv", "git", "make", "sbatch", "wandb", "snakemake")
OURS = ("cs-models", "python", "torchrun", "srun")


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """The fenced blocks of a page with their languages."""
    yield from ((match[1], match[2]) for match in BLOCK.finditer(page.read_text(encoding="utf-8")))


def commands(page: Path) -> Iterator[str]:
    """The commands of a page, in order, whole and without comments."""
    for language, block in blocks(page):
        if not language and page.name != "architecture.md":
            lines = re.sub(r"\\\n\s*", "", block).splitlines()
            script = block.startswith("#!")  # of which only this project's commands are of interest
            yield from (line for line in lines if line.strip() and (not script or line.split()[0] in OURS))


def words_of(line: str) -> list[str]:
    for pattern, text in PLACEHOLDERS.items():
        line = re.sub(pattern, text, line)
    return shlex.split(line.partition(" > ")[0], comments=True)


def adjoint(self: Candidate, y: Tensor, operator: MeasurementOperator) -> Solution:
    """In place of a method's iterations; noise and scale of the result do not matter here."""
    return Solution(operator.adjoint(y))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, tiny_images: Path) -> Path:
    """A folder with what a reader has who typed all commands before the one that is tried."""
    folder = tmp_path_factory.mktemp("workplace")
    write_samples(folder)
    for name in ("Set11", "CBSD68", "BrainMRI", "Train400", "T91"):
        shutil.copytree(tiny_images, folder / "data" / name)
    for language, block in blocks(REPOSITORY / "docs/own_networks.md"):
        name = re.match(r"# (\w+\.(py|yaml))\n", block)
        if name and language in ("python", "yaml"):
            (folder / name[1]).write_text(block)
    for name in ("r_coast", "scnet"):
        save_checkpoint(NETWORKS[name](), folder / "runs" / name / "model.safetensors")
    save_checkpoint(NETWORKS["rk_ccsnet"](), folder / "runs/rk_ccsnet/model.safetensors")
    for name in ("adam", "muon"):
        save_checkpoint(NETWORKS["scnet"](), folder / "runs" / name / "model.safetensors")
    save_checkpoint(module_of(folder / "my_module.py").MyModule(), folder / "runs/my_net/model.safetensors")
    for name in ("first", "mine"):
        (folder / "results" / name).mkdir(parents=True)
        table = ResultsFile(folder / "results" / name)
        table.repair()
        for row in rows_of("tv", [20, 21]) + rows_of("linear", [19, 20]):
            table.append(replace(row, ratio=0.3))
    for name in ("net_params_200.pkl", "phi_0_10_1089.mat", "Initialization_Matrix_10.mat"):
        (folder / name).touch()
    return folder


@pytest.fixture
def quick(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder to work in, and nothing in it that takes long."""
    from cs_models.zoo import export, hub, import_official

    monkeypatch.chdir(workplace)
    monkeypatch.delenv("CS_DATA", raising=False)
    monkeypatch.setattr(Candidate, "solve", adjoint)

    def imported(model: str, source: str, phi: list[str], qinit: str | None, *_: object) -> object:
        assert model in import_official.MODELS
        assert all(Path(file).is_file() for file in (source, qinit or source, *phi))
        return load("ista_net_plus", 0.1)

    def exported(name: str, ratio: float, out: str, *_: object) -> tuple[Path, Path]:
        assert Path(out).suffix in export.SUFFIXES
        load(name, ratio)
        return Path("phi.npy"), Path("y.npy")

    monkeypatch.setattr(import_official, "import_official", imported)
    monkeypatch.setattr(export, "export", exported)
    monkeypatch.setattr(hub, "push", lambda *_: "pushed")


def try_eval(words: list[str]) -> None:
    """All of an evaluation but what follows the first look at each method and set."""
    options = evaluate.parse(words)
    assert options is not None
    comparison = dataclasses.replace(options.comparison, limit=1)
    execution = dataclasses.replace(options.execution, devices=1)
    if options.measuring.measurements:
        evaluate.evaluate(dataclasses.replace(options, execution=execution))
    else:
        Plan(dataclasses.replace(options, comparison=comparison, execution=execution))


def try_train(words: list[str]) -> None:
    """The settings of a training, by their names; `test_train` trains with each file."""
    found = with_configs_found(words, "train")
    check_spelling(found if not found[0].startswith("-") else ["fit", *found])
    for option, value in pairwise(found):
        if option in ("--data.data_dir", "--data.measurements"):
            assert Path(value).is_dir(), value


def try_others(words: list[str]) -> None:
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets
    for extra in re.findall(r"\.\[(\w+)\]", " ".join(words)):
        assert re.search(rf"^{extra} = \[", (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    for word in words:
        if word.startswith(("configs/", "experiments/")):
            assert (REPOSITORY / word).is_file(), word


def try_script(path: str, words: list[str]) -> None:
    source = (REPOSITORY / path).read_text()
    for word in words:
        assert not word.startswith("--") or f'"{word.partition("=")[0]}"' in source, word


def attempt(words: list[str]) -> None:
    """Try one command, or as much of it as is quick."""
    if words[0] in OTHERS:
        return try_others(words)
    if words[0] == "cs-models":
        name, *rest = words[1:]
        assert name in COMMANDS
        tries: dict[str, Callable[[list[str]], None]] = {"eval": try_eval, "train": try_train}
        if name in tries:
            return tries[name](rest)
        assert command([name, *rest]) == 0
        return None
    assert words[0] in OURS, "an unknown program"
    # The options of python, torchrun or srun, stand before the script or the module.
    if "-m" in words:
        module, *rest = words[words.index("-m") + 1 :]
        assert importlib.import_module(module).main(rest) == 0
        return None
    place = next(index for index, word in enumerate(words) if word.endswith(".py"))
    script, rest = Path(words[place]), words[place + 1 :]
    if script.name in ("eval.py", "train.py"):
        return try_eval(rest) if script.name == "eval.py" else try_train(rest)
    return try_script(words[place], rest)


@pytest.mark.parametrize("page", [page for page in PAGES if any(commands(page))], ids=lambda page: page.name)
def test_commands_are_taken_as_printed(page: Path, quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    for line in commands(page):
        if line.startswith("cs-models samples"):
            for name in NAMES:  # typed into a folder without them
                path = Path(name)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        capsys.readouterr()
        try:
            attempt(words_of(line))
        except (UserError, AssertionError, StopIteration) as error:
            pytest.fail(f"{page.name}: {line}\n{error!r}\n{capsys.readouterr().err}")


def test_a_wrong_command_is_found(quick: None, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for line in (
        "cs-models eval --methods tv --datasets Set12 --ratios 0.1 --data_dir data",
        "python eval.py --methods tv --operator psi.npy --datasets Set11 --ratios 0.1 --data_dir data",
        "cs-models train --config r_cost",
        "python train.py fit --config r_coast --trainer.max_step 3",
        "cs-models leaderbord results/first --out site",
        "make quickstar",
        "cs_models list",
    ):
        page.write_text(f"```\n{line}  # a comment\n```\n")
        (found,) = commands(page)
        with pytest.raises((UserError, AssertionError)):
            attempt(words_of(found))


def test_samples_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "phi.npy").touch()
    assert command(["samples", "--out", str(tmp_path)]) == 2
    assert "phi.npy is there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["phi.npy"]


def test_help_says_how_signals_lie_in_a_file() -> None:
    said = " ".join(evaluate.build_parser().format_help().split())
    assert "a .csv file has one in each column, a .npy file one in each row" in said
