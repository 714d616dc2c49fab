"""The installed package: a wheel in an environment of its own, used from an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment that holds the wheel and sees the packages of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    own = run(python, folder, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # A line of a .pth file adds the folder, but not what editable installs left in it.
    Path(own, "seen.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip(python, "install", "--no-deps", "--no-index", "--quiet", str(wheel))
    return python


def pip(python: Path, *words: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *words], check=True, capture_output=True)


def run(python: Path, folder: Path, *words: str) -> str:
    settings = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CS_DATA")}
    done = subprocess.run([python, *words], cwd=folder, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_wheel_holds_one_package_and_its_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"cs_models", "datamodules"}
    page = [f"evaluation/report/page/leaderboard.{suffix}" for suffix in ("html", "css", "js")]
    for needed in ("shipped/checkpoints/r_coast.safetensors", "shipped/configs/train/r_coast.yaml", "py.typed", *page):
        assert f"cs_models/{needed}" in names


SESSION = """
import sys
from PIL import Image
from cs_models import load, __version__
from cs_models.cli import quickstart
from cs_models.cli.main import main
import cs_models
assert "site-packages" in cs_models.__file__
assert load("r_coast").name == "coast"
assert main(["list"]) == 0
import cs_models.cli.training_cli
assert not {"timm", "wandb", "diffusers", "skimage"} & set(sys.modules), "imported before a training needs it"
small = ["--trainer.max_steps=1", "--data.batches_per_epoch=1", "--data.batch_size=1", "--data.validation_sets=[]",
         "--trainer.enable_progress_bar=false"]
assert main(["train", "--config", "r_coast", "--config", "cpu", "--data.train_sets=[bundled-train]", *small]) == 0
Image.linear_gradient("L").resize((64, 64)).save("picture.png")
assert main(["eval", "--methods", "zoo,linear,iht,pnp,clomp_warm", "--image", "picture.png", "--channels",
             "luminance", "--ratios", "0.1", "--out", "results/zoo"]) == 0
quickstart.TRAIN += small
quickstart.EVALUATE += ["--limit", "1", "--ratios", "0.1"]
quickstart.TRAINING_FREE[:] = ["linear", "omp"]  # its photograph is large
assert quickstart.main([]) == 0
print("version", __version__)
"""


@pytest.mark.slow
def test_everything_works_from_an_empty_folder(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "session.py").write_text(SESSION)
    printed = run(environment, tmp_path, "session.py")
    for made in ("runs/r_coast/model.safetensors", "results/zoo/report.md", "results/quickstart/report.md"):
        assert (tmp_path / made).is_file()
    command = environment.with_name("cs-models")
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    assert f"version {version}" in printed


def test_no_module_is_called_train_or_eval(environment: Path, tmp_path: Path) -> None:
    found = run(
        environment, tmp_path, "-c", "import importlib.util as u; print(u.find_spec('train'), u.find_spec('eval'))"
    )
    assert found.split() == ["None", "None"]


def test_uninstalling_leaves_nothing(environment: Path) -> None:
    pip(environment, "uninstall", "--yes", "cs-models")
    left = [
        path for path in environment.parent.parent.rglob("*") if "cs_models" in str(path) or "cs-models" in path.name
    ]
    assert left == []
