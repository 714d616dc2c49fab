"""The papers' tables as a workflow: all are listed, and each runs at the tiny scale."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY

pytest.importorskip("snakemake")
FOLDER = REPOSITORY / "experiments"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "scales")


def snakemake(folder: Path, *words: str) -> str:
    """What a call of the workflow at the tiny scale prints; its files are in a folder."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(FOLDER / "Snakefile"), "--cores", "2"]
    ended = subprocess.run(
        [*command, "--config", "scale=tiny", f"out={folder / 'out'}", *words],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout + ended.stderr


def test_every_table_is_a_target(tmp_path: Path) -> None:
    assert set(snakemake(tmp_path, "--list-target-rules").split()) >= {"all", *NAMES}


@pytest.mark.slow
def test_every_table_is_made_and_not_made_twice(tmp_path: Path) -> None:
    snakemake(tmp_path)
    for name in NAMES:
        experiment = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
        page = (tmp_path / f"out/tiny/{name}/table.md").read_text()
        experiment |= experiment.get("tiny", {})
        assert page.startswith(f"# {experiment['title']}")
        for first in [*experiment.get("methods", []), *experiment.get("networks", {})][:1]:
            assert f"| {first}" in page
        assert (tmp_path / f"out/tiny/{name}/report/report.md").exists() != ("pivot" in experiment)
        assert (tmp_path / f"out/tiny/{name}/figure.png").exists() == ("plot" in experiment)
    assert "Nothing to be done" in snakemake(tmp_path)
    # What is lost is made again, from what is left.
    (tmp_path / f"out/tiny/{NAMES[0]}/table.md").unlink()
    done = snakemake(tmp_path)
    assert "rule evaluate" not in done
    assert (tmp_path / f"out/tiny/{NAMES[0]}/table.md").exists()


def test_the_papers_figures_stand_beside_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    import table
    import workflow_files

    from cs_models.evaluation.report.summary import summarise
    from tests.test_evaluation_report import rows_of

    experiments = workflow_files.read_experiments(FOLDER, "full", None)
    rows = rows_of("clomp", [20.0], dataset="Set11") + rows_of("clomp_warm", [21.0], dataset="Set11")
    page, lines = table.table(experiments["clomp_table2"], summarise(rows), "full")
    assert "20.00 / 0.5000 (18.52 / 0.4710)" in page or "20.00 / 0.5000 (18.53 / 0.4710)" in page
    assert "| clomp_warm" in page
    assert ["clomp", "Set11", "0.1", "ssim", "0.5000", "0.4710"] in lines
    folder = "runs/recursion_table1/train"
    rows = rows_of(f"{folder}/rista_net_plus_3_10/model.safetensors", [24.0], dataset="CBSD68")
    rows += rows_of(f"{folder}/r_coast/model.safetensors", [26.0], dataset="CBSD68")
    _, lines = table.table(experiments["recursion_table1"], summarise(rows), "full")
    printed = {line[0]: line[5] for line in lines if line[3] == "psnr_db"}
    assert printed["rista_net_plus_3"] < printed["r_coast"]
    # Every method that a paper names has figures in it.
    for experiment in experiments.values():
        named = {method for method, _, _ in table.published(experiment)}
        assert named == set(experiment.paper.get("methods", {}))
