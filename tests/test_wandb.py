"""Weights & Biases: what evaluations log, read from the files of offline runs, and weights that are fetched from it."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cs_models.cli.evaluate import main
from cs_models.errors import UserError
from cs_models.evaluation.report.summary import Setting
from cs_models.evaluation.report.wandb_log import log_comparison
from cs_models.evaluation.report.wandb_runs import RunIds, Variant, by_run, metrics, short_name
from cs_models.evaluation.results import ResultsFile, Row
from cs_models.training.loggers import log_weights
from cs_models.zoo.methods import parse_method
from cs_models.zoo.wandb_weights import download, reference_of
from tests.conftest import REPOSITORY
from tests.test_evaluation_report import rows_of
from tests.wandb_files import complete_records


class Logged:
    """What an offline run holds."""

    def __init__(self, path: Path) -> None:
        records = complete_records(path)
        (self.run,) = [record.run for record in records if record.HasField("run")][:1]
        self.config = {item.key: json.loads(item.value_json) for item in self.run.config.update}
        self.history = {item.nested_key[0] for record in records for item in record.history.item}
        updates = [item for record in records for item in record.summary.update]
        self.summary = {item.key or item.nested_key[0]: item.value_json for item in updates}
        self.artifacts = [
            record.request.log_artifact.artifact if record.HasField("request") else record.artifact
            for record in records
            if record.HasField("artifact") or record.request.HasField("log_artifact")
        ]

    @property
    def metrics(self) -> set[str]:
        return {name for name in self.history if name.count("/") == 2}

    def table(self, key: str) -> tuple[list[dict[str, Any]], dict[str, Path]]:
        """The lines of a table, and the files that its cells name."""
        (artifact,) = [artifact for artifact in self.artifacts if artifact.name.endswith(f"-{key}")]
        files = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
        content = json.loads(files[f"{key}.table.json"].read_text())
        return [dict(zip(content["columns"], line, strict=True)) for line in content["data"]], files


def logged(out: Path) -> dict[str, Logged]:
    """Offline runs by their names; of one that was continued the last part."""
    runs = [Logged(path) for path in sorted(out.glob("wandb/offline-run-*/*.wandb"))]
    return {one.run.display_name: one for one in runs}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (6, 5), dtype=np.uint8)
    for name in ("one", "two"):
        Image.fromarray(pixels).resize((40, 36), Image.Resampling.BICUBIC).save(folder / f"{name}.png")
        pixels = pixels[::-1]
    return folder


def test_methods_are_runs_whose_metrics_have_the_same_names(
    pictures: Path, tmp_path: Path, wandb_offline: None
) -> None:
    """Two checkpoints of one comparison, which is logged a second time: the same runs go on."""
    out = tmp_path / "logged"
    methods = [str(REPOSITORY / f"checkpoints/{name}.safetensors") for name in ("idm_small_10", "ista_net_plus_10")]
    words = ["--methods", ",".join(methods), "--datasets", str(pictures), "--ratios", "0.1", "--device", "cpu"]
    words += [
        "--precision",
        "fp32",
        "--out",
        str(out),
        "--wandb",
        "team/project",
        "--wandb_tags",
        "a,b",
        "--wandb_name",
        "first",
    ]
    assert main(words) == 0
    before = logged(out)
    first, second, comparison = (
        before[f"first: {name}"] for name in ("idm_small_10", "ista_net_plus_10", "comparison")
    )
    assert first.metrics == second.metrics
    assert {"tiny/0.1/psnr_db", "tiny/0.1/ssim", "tiny/0.1/seconds"} <= first.metrics
    assert not any("safetensors" in name for name in first.history | comparison.history)
    assert (first.run.project, first.run.entity, first.run.run_group) == ("project", "team", "logged")
    assert list(first.run.tags) == ["a", "b"]
    assert first.config["method"] == methods[0]
    assert first.config["comparison"]["ratios"] == [0.1]
    assert {"methods", "differences", "report", "figures/images_tiny", "psnr/tiny_table"} <= comparison.history
    (report,) = [artifact for artifact in comparison.artifacts if artifact.type == "report"]
    assert {"report.md", "differences.csv"} <= {entry.path for entry in report.manifest.contents}

    lines, files = first.table("images")
    rows = [row for row in ResultsFile(out).rows() if row.method == methods[0]]
    assert float(first.summary["tiny/0.1/psnr_db"]) == pytest.approx(np.mean([row.psnr_db for row in rows]))
    assert len(lines) == len(rows) == 2
    for line, row in zip(lines, rows, strict=True):
        for name in ("image", "precision", "schedule", "parameters", "macs", "device", "run_key"):
            assert line[name] == getattr(row, name)
        shown = ("original", "reconstruction", "error")
        original, reconstruction, error = (
            np.asarray(Image.open(files[line[name]["path"]])).astype(int) for name in shown
        )
        assert np.array_equal(error, np.clip(4 * np.abs(original - reconstruction), 0, 255))
        assert 10 * np.log10(255**2 / ((original - reconstruction) ** 2).mean()) == pytest.approx(row.psnr_db, abs=0.05)

    assert main(words) == 0
    after = logged(out)
    assert {name: one.run.run_id for name, one in after.items()} == {
        name: one.run.run_id for name, one in before.items()
    }
    assert len(list(out.glob("wandb/offline-run-*"))) == 6


def test_one_method_is_one_run_under_its_own_name(tmp_path: Path, wandb_offline: None) -> None:
    from cs_models.cli.evaluate import parse
    from cs_models.evaluation.report.tables import write_report

    method = "tv:weight=0.01"
    words = ["--methods", method, "--datasets", "Set11", "--ratios", "0.1", "--out", str(tmp_path), "--wandb", "p"]
    options = parse(words)
    assert options is not None
    rows = rows_of("omp", [20.0, 21.0]) + rows_of(method, [22.0, 24.0])
    write_report(rows, tmp_path)
    setting = Setting(method, "Set11", 0.1, "block:33", "luminance", 0.0, None, "fp32", "")
    log_comparison(rows, options, {setting: {"lpips": 0.25}})
    ((name, run),) = logged(tmp_path).items()
    assert name == method
    assert run.config["settings"] == {"weight": 0.01}
    assert float(run.summary["Set11/0.1/psnr_db"]) == 23
    assert float(run.summary["Set11/0.1/lpips"]) == 0.25
    assert {"differences", "images", "summary"} <= run.history
    assert run.table("differences")[0][0]["difference_db"] == pytest.approx(2.5)
    assert "omp" in {line["method"] for line in run.table("methods")[0]}


# Names and ids


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("runs/r_coast_2/model.safetensors", "r_coast_2"),
        ("runs/r_coast/checkpoints/last.ckpt", "r_coast"),
        ("zoo/scnet.safetensors", "scnet"),
        ("model.safetensors", "model"),
        ("wandb:team/project/r_coast-mine:v3", "r_coast-mine:v3"),
        ("clomp:epochs=7", "clomp:epochs=7"),
    ],
)
def test_names_have_no_paths(method: str, name: str) -> None:
    assert short_name(method) == name


def test_what_is_measured_in_two_ways_is_two_runs() -> None:
    rows: list[Row] = rows_of("omp", [20.0]) + rows_of("omp", [21.0], operator="pixel")
    rows += rows_of("omp", [22.0], noise=5.0) + rows_of("omp", [22.0], ratio=0.3, noise=5.0, operator="column")
    names = [variant.name for variant in by_run(rows)]
    assert names == ["omp [block:33]", "omp [pixel]", "omp noise 5"]


def test_the_ids_of_a_folder_stay(tmp_path: Path) -> None:
    first, resume = RunIds(tmp_path, "project", "allow").choose("tv")
    assert resume == "allow"
    assert RunIds(tmp_path, "project", "allow").choose("tv") == (first, "allow")
    assert RunIds(tmp_path, "project", "must").choose("tv") == (first, "must")
    assert RunIds(tmp_path, "another", "allow").choose("tv")[0] != first
    fresh, resume = RunIds(tmp_path, "project", "never").choose("tv")
    assert resume is None
    assert fresh != first
    with pytest.raises(UserError, match="has no run 'omp' in project; allow starts one"):
        RunIds(tmp_path, "project", "must").choose("omp")
    (tmp_path / "wandb_runs.json").write_text("[1]")
    with pytest.raises(UserError, match="delete it"):
        RunIds(tmp_path, "project", "allow").choose("tv")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--wandb_tags", "a"], "give --wandb PROJECT too"),
        (["--wandb", "team/"], "expected PROJECT or ENTITY/PROJECT"),
        (["--wandb", "p", "--wandb_resume", "maybe"], "--wandb_resume expects allow or must or never"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--methods", "pinv", "--datasets", "bundled", "--ratios", "0.1", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("error", [ConnectionResetError("Connection lost"), ValueError("1 validation error")])
def test_a_process_or_a_server_of_theirs_that_fails_is_one_line(
    error: Exception,
    pictures: Path,
    tmp_path: Path,
    wandb_offline: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def log(*_: object) -> None:
        raise error

    monkeypatch.setattr("wandb.Run.log", log)
    words = ["--methods", "pinv", "--datasets", str(pictures), "--ratios", "0.1", "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "out"), "--wandb", "project"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"error: W&B: {error}; results are in ")
    assert (tmp_path / "out/report.md").exists()


# Weights


class FakeEntry:
    def download(self, root: str) -> str:
        target = Path(root) / "model.safetensors"
        target.parent.mkdir(parents=True)
        target.write_bytes((REPOSITORY / "checkpoints/idm_small_10.safetensors").read_bytes())
        return str(target)


class FakeArtifact:
    """As much of an artifact as is asked for."""

    entity, project, name = "team", "project", "idm_small-mine:v3"

    def __init__(self, *files: str) -> None:
        self.manifest = type("Manifest", (), {"entries": dict.fromkeys(files)})

    def get_entry(self, name: str) -> FakeEntry:
        return FakeEntry()


def fake_api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *files: str) -> list[str]:
    """Let wandb answer with an artifact of these files; what it was asked for."""
    asked: list[str] = []

    def artifact(self: object, name: str) -> FakeArtifact:
        asked.append(name)
        return FakeArtifact(*files)

    monkeypatch.setattr("wandb.Api", type("Api", (), {"artifact": artifact}))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    download.cache_clear()
    return asked


def test_weights_are_fetched_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake_api(monkeypatch, tmp_path, "model.safetensors", "notes.txt")
    spec = parse_method("wandb:team/project/idm_small-mine")
    assert asked == ["team/project/idm_small-mine:latest"]
    assert spec.text == "wandb:team/project/idm_small-mine"
    assert PurePosixPath(spec.name).parts[-3:] == ("project", "idm_small-mine_v3", "model.safetensors")
    assert not spec.training_free
    assert parse_method("wandb:team/project/idm_small-mine").name == spec.name


@pytest.mark.parametrize("text", ["wandb:name", "wandb:team/project/../x", "wandb:team/project/name:a:b"])
def test_weights_that_cannot_be_named(text: str) -> None:
    with pytest.raises(UserError, match="wandb:ENTITY/PROJECT/NAME:TAG"):
        reference_of(text)


def test_an_artifact_without_a_checkpoint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_api(monkeypatch, tmp_path, "notes.txt")
    with pytest.raises(UserError, match="holds 0 checkpoints"):
        download("wandb:team/project/name:v1")


def test_an_unreachable_server_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def artifact(self: object, name: str) -> None:
        raise wandb.errors.CommError("no route\nto host")

    monkeypatch.setattr("wandb.Api", type("Api", (), {"artifact": artifact}))
    download.cache_clear()
    with pytest.raises(UserError, match="cannot fetch 'wandb:team/project/name:v1': no route"):
        download("wandb:team/project/name:v1")


@pytest.mark.parametrize("error", [ConnectionResetError("Connection lost"), ValueError("1 validation error")])
def test_a_training_ends_well_without_the_upload_of_its_weights(
    error: Exception, tmp_path: Path, wandb_offline: None, caplog: pytest.LogCaptureFixture
) -> None:
    def log_artifact(*_: object, **__: object) -> None:
        raise error

    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    logger: Any = SimpleNamespace(experiment=SimpleNamespace(id="run", log_artifact=log_artifact))
    method: Any = SimpleNamespace(name="coast", header=dict)
    log_weights(logger, path, method, 2)
    assert f"W&B: {error}; {path} is on disk and was not uploaded" in caplog.text


def test_the_evaluation_links_back_to_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Online, the run says which artifact it used; here it is asked what it would say."""
    from cs_models.evaluation.report import wandb_log

    class Run:
        offline, used, names, summary = False, [], set(), {}  # type: ignore[var-annotated]

        def use_artifact(self, name: str) -> None:
            self.used.append(name)

        def log(self, values: dict[str, Any]) -> None:
            self.names |= set(values)

        def define_metric(self, *_: object, **__: object) -> None: ...

    method, run = "wandb:team/project/r_coast-mine", Run()
    rows = rows_of(method, [20.0])
    wandb_log._log_method(run, Variant(method, "fp32", "", 0.0, None), rows, tmp_path, {})  # type: ignore[arg-type]
    assert run.used == ["team/project/r_coast-mine:latest"]
    assert "Set11/0.1/psnr_db" in run.names
    assert metrics([]) == {}
