"""The papers' tables and figures as a workflow: all are targets, their commands are right, what is killed goes on."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from cs_models.cli.configs import with_configs_found
from cs_models.cli.evaluate import parse
from cs_models.cli.spelling import check_spelling
from cs_models.errors import UserError
from tests import forked
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "experiments"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem not in ("scales", "networks"))
SCALES = ("full", "small", "tiny")


@pytest.fixture(autouse=True)
def _as_the_scripts_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


def experiments(scale: str) -> dict[str, Any]:
    from workflow_files import read_experiments

    return read_experiments(FOLDER, scale, None)


def trainings(scale: str) -> dict[str, str]:
    """The options of all trainings, by name; experiments share those that they have in common."""
    return {name: text for one in experiments(scale).values() for name, text in one.trainings.items()}


# The workflow


def command(folder: Path, *words: str, cores: int = 2) -> dict[str, Any]:
    """How subprocess calls the workflow at the tiny scale; its files are in a folder."""
    pytest.importorskip("snakemake")
    start = [sys.executable, "-m", "snakemake", "--snakefile", str(FOLDER / "Snakefile"), "--cores", str(cores)]
    return {
        "args": [*start, "--config", "scale=tiny", f"out={folder / 'out'}", *words],
        "cwd": folder,
        "env": os.environ | {"OMP_NUM_THREADS": "1"},
    }


def snakemake(folder: Path, *words: str, cores: int = 2) -> str:
    """What a call of the workflow prints."""
    ended = subprocess.run(
        **command(folder, *words, cores=cores), capture_output=True, text=True, check=False, timeout=3000
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout + ended.stderr


def test_every_table_and_figure_is_a_target(tmp_path: Path) -> None:
    assert set(snakemake(tmp_path, "--list-target-rules").split()) >= {"all", *NAMES}
    planned = snakemake(tmp_path, "--dry-run", "all")
    tiny = experiments("tiny")
    files = {f"tiny/{name}/{file}" for name, one in tiny.items() for file in one.files}
    assert files <= set(re.findall(r"tiny/\w+/[\w.]+", planned))
    assert int(re.search(r"^train +(\d+)$", planned, re.MULTILINE)[1]) == len(trainings("tiny")) < len(NAMES)


@pytest.fixture
def python() -> Iterator[str]:
    """A word of the workflow that saves its hundred programs their imports."""
    pytest.importorskip("snakemake")
    with forked.interpreter() as words:
        yield f"python={words}"


def test_a_killed_workflow_goes_on_with_what_it_has(tmp_path: Path, python: str) -> None:
    """It is killed while it makes a table: nothing is evaluated twice, nobody has to unlock anything."""
    target, done = "tutorial_1d", tmp_path / "out/tiny/tutorial_1d"
    printed = tmp_path / "printed"
    with (
        printed.open("w") as lines,
        subprocess.Popen(
            **command(tmp_path, "--", target), start_new_session=True, stdout=lines, stderr=lines
        ) as running,
    ):
        # Not as soon as the mark of the evaluation is there: Snakemake notes after it that the evaluation has ended.
        while "rule table" not in printed.read_text():
            assert running.poll() is None, "it has ended before it was killed"
            time.sleep(0.02)
        os.killpg(running.pid, signal.SIGKILL)
    again = snakemake(tmp_path, python, "--", target)
    assert "rule table" in again
    assert "rule evaluate" not in again
    assert (done / "table.md").read_text().startswith("# Tutorial")
    assert "Nothing to be done" in snakemake(tmp_path, python, "--", target)


@pytest.mark.experiments
def test_every_table_and_figure_is_made(tmp_path: Path, python: str) -> None:
    snakemake(tmp_path, python, cores=os.cpu_count() or 2)
    for name, experiment in experiments("tiny").items():
        made = tmp_path / "out/tiny" / name
        page = (made / "table.md").read_text()
        assert page.startswith(f"# {experiment.title}")
        for first in [*experiment.methods, *(one.label for one in experiment.networks)][:1]:
            assert f"| {first}" in page
        assert (made / "report/report.md").exists() == experiment.compared
        assert (made / "figure.png").exists() == bool(experiment.plot)
    assert "Nothing to be done" in snakemake(tmp_path, python)
    # A training that was killed goes on from its last checkpoint, which here is that of its last step.
    training = tmp_path / "out/tiny/train/r_coast"
    (training / "trained").unlink()
    (tmp_path / "out/tiny/recursion_fig8/table.md").unlink()
    steps = (training / "metrics.csv").read_text()
    assert "rule train" in snakemake(tmp_path, python, "--", "recursion_fig8")
    assert (training / "metrics.csv").read_text() == steps


# The commands


@pytest.fixture(scope="module")
def parser() -> Any:
    """Lightning's parser of train.py's options, built once."""
    from cs_models.cli.training_cli import FullNamesParser, TrainCLI
    from cs_models.training.trainer import Trainer

    parser = FullNamesParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    TrainCLI.add_core_arguments_to_parser(SimpleNamespace(trainer_class=Trainer, trainer_defaults={}), parser)
    return parser


def test_trainings_are_commands_of_train_py(parser: Any) -> None:
    """All options have names that exist; their values are of the right kind, where the experiments set them."""
    parsed: set[str] = set()
    for scale in SCALES:
        for name, text in trainings(scale).items():
            words = with_configs_found(shlex.split(text), "train")
            check_spelling(["fit", *words])
            # Values in files are trained with elsewhere; those of a scale are the same for a whole family.
            own = re.sub(r"--config \S+|\d+", "", text)
            if own not in parsed:
                parsed.add(own)
                config = parser.parse_args(words)
                if scale == "tiny":
                    assert config.trainer.max_steps == 1, name
    assert len(parsed) > len(SCALES)


def test_networks_of_learned_sampling_exist_at_the_ratios_of_their_trainings(parser: Any) -> None:
    built = set()
    for name, text in trainings("full").items():
        words = with_configs_found(shlex.split(text), "train")
        if "learned_sampling" in Path(words[words.index("--config") + 1]).read_text():
            config = parser.parse_args(words)
            with torch.device("meta"):
                parser.instantiate_classes(config)
            built.add(name)
    assert built >= {"opine_net_plus_10", "csnet_plus_10", "rk_ccsnet_50", "rk_ccsnet_wired_50"}
    assert "rk_ccsnet_10" not in built


def test_small_trainings_need_no_more_than_train400_and_t91() -> None:
    for name, text in trainings("small").items():
        words = with_configs_found(shlex.split(text), "train")
        files = [Path(file).read_text() for word, file in itertools.pairwise(words) if word == "--config"]
        sets = [yaml.safe_load(file).get("data", {}).get("train_sets") for file in files]
        sets += [yaml.safe_load(word.partition("=")[2]) for word in words if word.startswith("--data.train_sets=")]
        assert set([given for given in sets if given][-1]) <= {"Train400", "T91"}, name


@pytest.mark.parametrize("scale", SCALES)
def test_evaluations_are_commands_of_eval_py(scale: str) -> None:
    from cs_models.zoo.methods import parse_methods

    for name, experiment in experiments(scale).items():
        if experiment.compared:
            options = parse(shlex.split(experiment.evaluation_words(experiment.ratios[0], Path("train"))))
            parse_methods(experiment.methods, experiment.ratios)
            networks = [Path(method).parent.name for method in options.comparison.methods if "/" in method]
            assert set(networks) <= set(experiment.trainings), name


@pytest.mark.parametrize("scale", SCALES)
def test_programs_have_the_options_that_they_are_given(scale: str) -> None:
    from cs_models.evaluation import iterates

    for experiment in experiments(scale).values():
        for program in experiment.programs:
            first, *others = shlex.split(experiment.program_words(program, Path("train")))
            source = Path(iterates.__file__) if first == "-m" else Path(first)
            known = set(re.findall(r"\w+", source.read_text()))
            given = {word.removeprefix("--") for word in others if word.startswith("--")}
            assert given | {"out"} <= known, experiment.name


# What the files say


def test_a_scale_changes_a_network_by_its_family_and_a_grid_is_many_networks() -> None:
    from trainings import at_scale, choose, read_networks

    networks = read_networks(FOLDER)
    scale = {"train": "--trainer.max_steps 1", "families": {"idm": "--data.crop_size 64"}}
    words = at_scale(networks["coast"], scale, "a b").words
    assert words == "--config coast --trainer.max_steps 1 --data.data_dir 'a b'"
    assert at_scale(networks["idm"], scale, None).words.endswith("--data.crop_size 64")
    assert networks["ista_net_pp_10_stages_64_channels"].settings == {"stages": 10, "channels": 64}
    assert choose("idm@0.3", networks).training(0.5) == "idm_30"
    assert "ratios=[0.3]" in choose("idm@0.3", networks).words(0.5)
    assert choose("idm", networks).training(0.025) == "idm_2p5"
    assert choose("coast", networks).training(0.5) == "coast"
    with pytest.raises(UserError, match=r"unknown network 'coats'.*coast"):
        choose("coats", networks)


def test_what_a_section_says_of_an_evaluation_comes_after_what_its_scale_says() -> None:
    limits = {
        (scale, name): re.findall(r"--limit (\d+)", experiments(scale)[name].evaluate)[-1]
        for scale in SCALES[1:]
        for name in ("clomp_table2", "ista_net_pp_table1")
    }
    assert limits["small", "clomp_table2"] == "1" != limits["small", "ista_net_pp_table1"]
    assert limits["tiny", "clomp_table2"] == limits["tiny", "ista_net_pp_table1"] == "1"


def test_the_page_lists_every_target() -> None:
    page = (REPOSITORY / "docs/experiments.md").read_text()
    assert [name for name in NAMES if f"`{name}`" not in page] == []


def summaries(*rows: tuple[str, dict[str, Any]]) -> Any:
    from cs_models.evaluation.report.summary import summarise
    from tests.test_evaluation_report import rows_of

    return summarise([row for method, changes in rows for row in rows_of(method, [20.0], **changes)])


def test_the_papers_figures_stand_beside_ours() -> None:
    import table

    full = experiments("full")
    both = summaries(("clomp", {"dataset": "Set11"}), ("clomp_warm", {"dataset": "Set11"}))
    page, lines = table.table(full["clomp_table2"], both, "full")
    assert "20.00 / 0.5000 (18.52 / 0.4710)" in page or "20.00 / 0.5000 (18.53 / 0.4710)" in page
    assert "| clomp_warm" in page
    assert "Scale: full; means over 1 of Set11." in page
    assert ["clomp", "Set11", "0.1", "ssim", "0.5000", "0.4710"] in lines
    page, _ = table.table(full["clomp_table3"], both, "full")  # whose first ratio is 0.3
    assert re.search(r"data set +\| 0.1 +\| 0.3 +\| 0.5 +\|", page)
    trained = summaries(
        ("runs/train/rista_net_plus_3_10/model.safetensors", {"dataset": "CBSD68"}),
        ("runs/train/r_coast/model.safetensors", {"dataset": "CBSD68"}),
    )
    _, lines = table.table(full["recursion_table1"], trained, "full")
    printed = {line[0]: line[5] for line in lines if line[3] == "psnr_db"}
    assert printed["rista_net_plus_3"] < printed["r_coast"]
    _, lines = table.table(full["recursion_table2"], summaries(("coast", {"parameters": 1_122_024})), "full")
    assert next(line[4] for line in lines if line[3] == "parameters") == "1122024"
    costs = summaries(("idm_rgb", {"macs": 35_266_100_000, "seconds": 1.5, "parameters": 703_629}))
    page, lines = table.table(full["idm_table4"], costs, "full")
    assert "20.00 / 1.5 / 703629 / 35.3 / -" in page
    assert next(line[4] for line in lines if line[3] == "macs") == "3.52661e+10"
    # Every method that a paper names has figures in it.
    for experiment in full.values():
        named = {method for method, _, _ in table.published(experiment)}
        assert named == set(experiment.paper.get("methods", {}))


def test_a_network_has_one_name_whatever_it_was_trained_at() -> None:
    import table

    one, other = (
        {"dataset": "Set11", "ratio": 0.5, "operator": "structured:32", "settings_key": key} for key in ("a", "b")
    )
    rows = summaries(("t/idm_30/model.safetensors", one), ("t/idm_50/model.safetensors", other))
    _, lines = table.table(experiments("full")["idm_table7"], rows, "full")
    assert {line[0] for line in lines} == {"idm@0.3", "idm"}


def test_methods_that_cannot_be_had_are_printed_figures() -> None:
    import table

    full = experiments("full")
    printed = table.rivals(full["idm_table2"])
    assert all(f"| {name} " in printed for name in ("DDNM", "PSLD", "SR3"))
    assert "| IDM " not in printed
    assert table.rivals(full["ista_net_pp_table4"]) == ""
    # Of the same set and ratio alone.
    assert "BM3D-AMP" in table.rivals(full["ista_net_pp_table1"])
    assert "BM3D-AMP" not in table.rivals(full["ista_net_pp_table2"])


def test_a_table_is_of_what_was_evaluated_last(tmp_path: Path) -> None:
    import table

    from cs_models.evaluation.results import ResultsFile
    from tests.test_evaluation_report import rows_of

    evaluated = tmp_path / "evaluate/30"
    for psnr in (20.0, 21.0):
        shutil.rmtree(evaluated, ignore_errors=True)
        evaluated.mkdir(parents=True)
        results = ResultsFile(evaluated)
        results.repair()
        results.append(*rows_of("clomp", [psnr], dataset="Set11", ratio=0.3))
        table.write(experiments("full")["clomp_table2"], "full", [evaluated], tmp_path)
        assert f"| {psnr:.2f} / 0.5000 (23.0" in (tmp_path / "table.md").read_text()


def test_tables_tell_what_trainings_took_and_programs_measured(tmp_path: Path) -> None:
    import table

    from cs_models.networks.unfolding.coast import COASTConfig, COASTModule
    from cs_models.training.weights import save_checkpoint

    module = COASTModule(COASTConfig(layers=1, features=2))
    module.provenance = {"steps": 1800, "seconds": 7200.0, "precision": "16-mixed"}
    (tmp_path / "coast").mkdir()
    save_checkpoint(module, tmp_path / "coast/model.safetensors")
    (tmp_path / "step").mkdir()
    (tmp_path / "step/recursion.csv").write_text("network,counts,seconds,iterations\nR,full,2,20\nR,random,1,12.5\n")
    experiment = experiments("full")["recursion_table2"]
    folders = [tmp_path / "coast", tmp_path / "step"]
    assert "| coast | 1,800 | 2.00 | 4 | 16-mixed |" in re.sub(" +", " ", table.trainings(experiment, folders))
    assert "| R | 2 / 20 | 1 / 12.5 |" in re.sub(" +", " ", table.measurements(experiment, folders))
    assert table.measurements(experiment, folders[:1]) == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"title": "x", "networks": ["coats"]}, "unknown network 'coats'"),
        ({"title": "x", "colums": ["ssim"]}, "x.yaml: .*colums"),
    ],
)
def test_a_file_that_says_what_there_is_not(
    content: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workflow_files import read_experiments

    for name in ("scales.yaml", "networks.yaml"):
        (tmp_path / name).write_text((FOLDER / name).read_text())
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=message):
        read_experiments(tmp_path, "full", None)
    with pytest.raises(UserError, match="unknown scale 'big'; choose full, small, tiny"):
        read_experiments(tmp_path, "big", None)


def test_what_is_not_at_hand_is_said(tmp_path: Path) -> None:
    from workflow_files import read_experiments

    file = "alexnet-owt-7be5be79.pth"
    assert file in read_experiments(FOLDER, "full", str(tmp_path))["idm_table3"].missing
    (tmp_path / file).touch()
    experiment = read_experiments(FOLDER, "full", str(tmp_path))["idm_table3"]
    assert file not in experiment.missing
    words = experiment.evaluation_words(0.1, Path("train"))
    assert "--lpips" in words
    assert "--fid" not in words
