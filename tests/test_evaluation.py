"""The benchmark as its users meet it: rows, reruns, interruptions, several devices, colour, noise."""

from __future__ import annotations

import contextlib
import csv
import os
import select
import shutil
import signal
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch._dynamo.utils import counters

from cs_models.cli.evaluate import main
from cs_models.evaluation.measurements import range_line, to_unit_range
from cs_models.evaluation.pictures import Pictures
from cs_models.evaluation.protocol import measure, quantise
from cs_models.evaluation.results import COLUMNS, ResultsFile, read_rows
from cs_models.evaluation.timing import Timed
from cs_models.networks.unfolding.coast import COASTConfig, COASTModule
from cs_models.networks.unfolding.ista_net_pp import ISTANetPPConfig, ISTANetPPModule
from cs_models.operators import make_operator
from cs_models.reconstruction import Solution
from cs_models.training.weights import save_checkpoint
from tests import forked

REPOSITORY = Path(__file__).resolve().parent.parent
CONTRACT = "method,dataset,image,ratio,seed,psnr_db,ssim,seconds,device,operator,run_key"
VARYING = ("seconds",)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with the set `tiny`: three pictures, two of one size and one of another."""
    return make_images(tmp_path / "data", ((40, 50), (40, 50), (33, 66)))


@pytest.fixture
def drawn() -> None:
    """For tests whose reports have their figures."""


@pytest.fixture(autouse=True)
def _without_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without figures, which take longer to draw than all the rest here takes to compute."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("cs_models.evaluation.report.tables.draw_figures", lambda *_: [])


def make_images(folder: Path, sizes: tuple[tuple[int, int], ...]) -> Path:
    random = np.random.default_rng(0)
    (folder / "tiny").mkdir(parents=True)
    for index, (height, width) in enumerate(sizes):
        coarse = random.integers(0, 255, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(folder / f"tiny/{index}.png")
    return folder


def command(data: Path, out: Path, *extra: str, methods: str = "backprojection,tv:iterations=3") -> list[str]:
    defaults = {"--methods": methods, "--datasets": "tiny", "--ratios": "0.1,0.3"}
    given = {} if "--image" in extra else defaults
    words = [word for pair in given.items() for word in pair] or ["--methods", methods, "--ratios", "0.3"]
    return [*words, "--data_dir", str(data), "--out", str(out), "--device", "cpu", *extra]


def table(out: Path) -> dict[tuple[str, ...], dict[str, str]]:
    """The rows by what they are, without what differs from run to run."""
    with (out / "per_image.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    result = {
        tuple(row[key] for key in ("method", "dataset", "image", "ratio", "seed", "run_key")): {
            key: value for key, value in row.items() if key not in VARYING
        }
        for row in rows
    }
    assert len(result) == len(rows), "a row is there twice"
    return result


on_slurm = pytest.mark.skipif(sys.platform == "win32", reason="there is no SLURM")


def save_network(path: Path, layers: int = 2) -> Path:
    torch.manual_seed(0)
    return save_checkpoint(ISTANetPPModule(ISTANetPPConfig(layers=layers, features=4)), path)


@pytest.mark.usefixtures("drawn")
def test_rows_columns_and_scores(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(command(data, out, methods="pinv")) == 0
    assert (out / "per_image.csv").read_text().startswith(CONTRACT + ",")
    rows = list(read_rows(out / "per_image.csv"))
    assert [(row.image, row.ratio) for row in rows] == [(image, ratio) for ratio in (0.1, 0.3) for image in "012"]
    pixels = np.asarray(Image.open(data / "tiny/0.png").convert("RGB"), dtype=np.float64)
    luminance = np.round(pixels @ [0.299, 0.587, 0.114])
    x = torch.from_numpy(luminance / 255).float()[None, None]
    operator = make_operator("block:33", 0.1, (40, 50))
    estimate = 255 * operator.pinv(operator(x)).clamp(0, 1).double().numpy()[0, 0]
    assert rows[0].psnr_db == pytest.approx(peak_signal_noise_ratio(luminance, estimate, data_range=255), abs=1e-3)
    assert rows[0].ssim == pytest.approx(structural_similarity(luminance, estimate, data_range=255), abs=1e-4)
    assert (rows[0].operator, rows[0].device, rows[0].seed) == ("block:33", "cpu", 0)


def test_a_rerun_computes_nothing_and_a_changed_setting_computes_anew(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main(command(data, out))
    first = (out / "per_image.csv").read_bytes()
    main(command(data, out))
    assert (out / "per_image.csv").read_bytes() == first
    main(command(data, out, methods="tv:iterations=4"))
    added = (out / "per_image.csv").read_bytes().removeprefix(first).decode().splitlines()
    assert len(added) == 6
    assert all(line.startswith("tv:iterations=4,") for line in added)


@pytest.mark.parametrize(
    "change",
    [
        ("--seed", "1"),
        ("--noise", "5"),
        ("--bits", "4"),
        ("--operator", "block:20"),
        ("--channels", "rgb"),
    ],
)
def test_whatever_determines_a_result_changes_its_key(data: Path, tmp_path: Path, change: tuple[str, str]) -> None:
    out = tmp_path / "out"
    main(command(data, out, "--limit", "1", methods="backprojection"))
    main(command(data, out, "--limit", "1", *change, methods="backprojection"))
    rows = list(read_rows(out / "per_image.csv"))
    assert len({row.run_key for row in rows}) == len(rows) == 4
    assert all(a.psnr_db != b.psnr_db for a, b in zip(rows[:2], rows[2:], strict=True))


def test_a_changed_image_computes_anew(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main(command(data, out, methods="backprojection"))
    Image.open(data / "tiny/0.png").rotate(180).save(data / "tiny/0.png")
    main(command(data, out, methods="backprojection"))
    names = [row.image for row in read_rows(out / "per_image.csv")]
    assert names == ["0", "1", "2", "0", "1", "2", "0", "0"]


def test_a_torn_last_line_is_repaired(data: Path, tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    main(command(data, whole))
    main(command(data, torn))
    path = torn / "per_image.csv"
    path.write_bytes(path.read_bytes()[:-20])
    main(command(data, torn))
    assert table(torn) == table(whole)


@pytest.mark.slow
def test_killed_and_started_again_equals_uninterrupted(tmp_path: Path) -> None:
    data = make_images(tmp_path / "data", ((40, 50),) * 6)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    slow = "ista:iterations=80:tolerance=0"
    process = forked.start("eval.py", command(data, killed, methods=slow), tmp_path / "log")
    path = killed / "per_image.csv"
    deadline = time.monotonic() + 120
    while not (path.exists() and path.read_bytes().count(b"\n") >= 3):
        assert process.is_alive(), "it ended before it could be killed"
        assert time.monotonic() < deadline, "no row appeared"
        time.sleep(0.01)
    process.kill()
    process.join()
    assert 2 <= len(list(read_rows(path))) < 12
    assert main(command(data, killed, methods=slow)) == 0
    assert main(command(data, whole, methods=slow)) == 0
    assert table(killed) == table(whole)
    assert len(table(whole)) == 12


@pytest.mark.slow
@on_slurm
def test_more_processes_than_images(data: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(command(data, one, "--limit", "1", methods="backprojection")) == 0
    assert two_processes(command(data, two, "--limit", "1", methods="backprojection"), tmp_path)[0] == [0, 0]
    rows, expected = table(two), table(one)
    assert len(rows) == len(list(read_rows(two / "per_image.csv")))
    assert {key: row["psnr_db"] for key, row in rows.items()} == {k: row["psnr_db"] for k, row in expected.items()}


@pytest.mark.slow
def test_two_processes_give_the_rows_of_one(data: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    network = str(save_network(tmp_path / "network.safetensors"))
    methods = f"backprojection,{network}"
    assert main(command(data, one, "--noise", "3", methods=methods)) == 0
    arguments = command(data, two, "--noise", "3", "--devices", "2", methods=methods)
    status, printed = forked.run("eval.py", arguments, tmp_path / "log")  # and Fabric starts the other one
    assert status == 0, printed
    rows, expected = table(two), table(one)
    assert rows.keys() == expected.keys()
    for key, row in rows.items():
        assert (row["psnr_db"], row["ssim"]) == (expected[key]["psnr_db"], expected[key]["ssim"])
    assert (two / "report.md").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks the second process up under /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_both_processes_end_when_one_is_killed(rank: int, tmp_path: Path) -> None:
    data, out = make_images(tmp_path / "data", ((40, 50),) * 8), tmp_path / "out"
    words = command(data, out, "--devices", "2", methods="ista:iterations=300:tolerance=0")
    os.mkfifo(tmp_path / "errors")
    errors = os.open(tmp_path / "errors", os.O_RDONLY | os.O_NONBLOCK)
    first = forked.start("eval.py", words, tmp_path / "log", tmp_path / "errors")
    assert first.pid is not None
    path, deadline = out / "per_image.csv", time.monotonic() + 200
    while not (path.exists() and all(f",tiny,{image}," in path.read_text() for image in (0, 1))):
        assert first.is_alive(), read_to_the_end(errors, 1)
        assert time.monotonic() < deadline, "no row of each appeared"
        time.sleep(0.05)
    os.kill((first.pid, child(first.pid))[rank], signal.SIGKILL)
    printed = read_to_the_end(errors, 60)
    assert len(list(read_rows(path))) < 16
    assert "Traceback" not in printed
    if rank == 0:  # its place is named, or the other one noticed before, as it waited for it
        assert "process of this run ended" in printed
    else:
        assert "first process of this run ended" not in printed


def read_to_the_end(pipe: int, seconds: float) -> str:
    """What processes write into a pipe, until none of them has it any more."""
    content, deadline = b"", time.monotonic() + seconds
    while select.select([pipe], [], [], max(0, deadline - time.monotonic()))[0]:
        read = os.read(pipe, 2**16)
        if not read:
            os.close(pipe)
            return content.decode()
        content += read
    raise AssertionError(f"a process still runs, after {content.decode()}")


def child(parent: int) -> int:
    """The process that another one has started."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if path.read_text().rpartition(")")[2].split()[1] == str(parent):
                return int(path.parent.name)
    raise AssertionError(f"{parent} has no child")


def two_processes(words: list[str], folder: Path) -> tuple[list[int], list[str], str]:
    """Evaluate in two processes as SLURM starts them; exit statuses, what each printed, and their error streams."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    job = {
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NAME": "eval",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NODEID": "0",
        "MASTER_PORT": port,
    }
    logs, errors = ([folder / f"{kind}{rank}" for rank in range(2)] for kind in ("log", "errors"))
    runs = [
        forked.start("eval.py", [*words, "--devices", "2"], *files, **job, SLURM_PROCID=rank, SLURM_LOCALID=rank)
        for rank, *files in zip("01", logs, errors, strict=True)
    ]
    statuses = [forked.finished(run, 300) for run in runs]
    return statuses, [log.read_text() for log in logs], "".join(path.read_text() for path in errors)


@pytest.mark.slow
@on_slurm
def test_processes_that_slurm_starts_share_the_images(data: Path, tmp_path: Path) -> None:
    statuses, printed, _ = two_processes(command(data, tmp_path / "out", methods="backprojection"), tmp_path)
    assert statuses == [0, 0]
    assert "report.md" in printed[0]
    assert not printed[1]
    assert len(table(tmp_path / "out")) == 6


@pytest.mark.slow
@on_slurm
def test_a_mistake_met_by_one_of_two_processes_is_one_line(data: Path, tmp_path: Path) -> None:
    (data / "tiny/1.png").write_bytes((data / "tiny/1.png").read_bytes()[:60])
    statuses, _, printed = two_processes(command(data, tmp_path / "out", methods="backprojection"), tmp_path)
    assert statuses[0] == 2
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "1.png" in errors[0]
    assert "Traceback" not in printed
    assert {row.image for row in read_rows(tmp_path / "out/per_image.csv")} == {"0", "2"}


def test_batches_do_not_change_the_scores(data: Path, tmp_path: Path) -> None:
    network = str(save_network(tmp_path / "network.safetensors"))
    single, batched = tmp_path / "single", tmp_path / "batched"
    main(command(data, single, methods=f"backprojection,{network}"))
    main(command(data, batched, "--batch_size", "2", methods=f"backprojection,{network}"))
    rows, expected = table(batched), table(single)
    assert rows.keys() == expected.keys()
    for key, row in rows.items():
        assert float(row["psnr_db"]) == pytest.approx(float(expected[key]["psnr_db"]), abs=1e-3)


@pytest.mark.parametrize(("large", "times"), [(10**9, 2), (0, 1)])
def test_a_large_image_is_reconstructed_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: int, times: int
) -> None:
    calls = []
    solve = ISTANetPPModule.solve
    monkeypatch.setattr("cs_models.evaluation.loop.LARGE_IMAGE", large)
    monkeypatch.setattr(ISTANetPPModule, "solve", lambda self, y, A: calls.append(y.shape) or solve(self, y, A))
    network, out = str(save_network(tmp_path / "network.safetensors")), tmp_path / "out"
    assert main(command(data, out, "--limit", "1", methods=network)) == 0
    rows = list(read_rows(out / "per_image.csv"))
    assert len(calls) == len(rows) * times
    assert all(row.macs for row in rows)


def test_a_network_row_says_what_it_is(data: Path, tmp_path: Path) -> None:
    network = str(save_network(tmp_path / "network.safetensors"))
    out = tmp_path / "out"
    extra = ("--precision", "bf16", "--iterations_per_layer", "2,1", "--limit", "1")
    assert main(command(data, out, *extra, methods=network)) == 0
    row = next(read_rows(out / "per_image.csv"))
    module = ISTANetPPModule(ISTANetPPConfig(layers=2, features=4))
    assert row.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert (row.precision, row.schedule) == ("bf16", "2 1")
    assert row.macs is not None
    # Six convolutions on the padded 66x66 image, three times; A and its adjoint come on top.
    convolutions = 3 * 66 * 66 * 9 * (2 * 4 + 4 * 4 * 4 + 4)
    assert convolutions < row.macs < 2 * convolutions
    assert main(command(data, out, "--limit", "1", "--operator", "block", methods=network)) == 0
    keys = [(row.run_key, row.settings_key) for row in read_rows(out / "per_image.csv")]
    assert len(set(keys)) == 4, "precision and schedule are part of the key"


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp32")])
def test_networks_use_bf16_where_the_processor_has_it(
    native: bool, expected: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cs_models.precision._processor_has_bf16", lambda: native)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    network = str(save_network(tmp_path / "network.safetensors"))
    assert main(command(data, tmp_path / "out", "--limit", "1", methods=f"backprojection,{network}")) == 0
    precisions = {row.method: row.precision for row in read_rows(tmp_path / "out/per_image.csv")}
    assert precisions == {"backprojection": "fp32", network: expected}


@pytest.mark.slow
@pytest.mark.filterwarnings("error:Dynamo does not know how to trace")
def test_compiling_does_not_change_the_scores(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cs_models.evaluation.loop.LARGE_IMAGE", 0)  # of which the first is timed without a warm-up
    network = str(save_network(tmp_path / "network.safetensors", layers=1))
    found = []
    for name, extra in (("eager", ()), ("compiled", ("--compile",))):
        graphs = counters["stats"]["unique_graphs"]
        assert main(command(data, tmp_path / name, "--precision", "fp32", *extra, methods=network)) == 0
        assert (counters["stats"]["unique_graphs"] > graphs) == bool(extra)
        rows = list(read_rows(tmp_path / name / "per_image.csv"))
        found.append(([row.psnr_db for row in rows], [row.macs for row in rows]))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-3)
    assert found[0][1] == found[1][1]


def test_settings_that_come_back_count_again(data: Path, tmp_path: Path) -> None:
    reports = []
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        np.save(tmp_path / f"{seed}/phi.npy", np.random.RandomState(seed).randn(64, 64) / 8)
    for seed in (0, 1, 0):
        words = command(
            data, tmp_path / "out", "--operator", str(tmp_path / f"{seed}/phi.npy"), methods="backprojection"
        )
        assert main(words) == 0
        reports.append((tmp_path / "out/summary.csv").read_text())
    assert reports[0] == reports[2] != reports[1]


def test_the_picture_beside_a_reconstruction_is_its_own(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for folder, size in (("a", 40), ("b", 48)):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.full((size, size), 9, np.uint8)).save(tmp_path / folder / "photo.png")
        assert main(command(data, out, "--image", str(tmp_path / folder / "photo.png"), methods="backprojection")) == 0
    for row, size in zip(ResultsFile(out).rows(), (40, 48), strict=True):
        pictures = Pictures.of_row(out, row)
        assert Image.open(pictures.original).size == Image.open(pictures.reconstruction).size == (size, size)


def test_a_changed_matrix_file_counts_alone(data: Path, tmp_path: Path) -> None:
    for seed, limit in ((0, "3"), (1, "1")):
        np.save(tmp_path / "phi.npy", np.random.RandomState(seed).randn(64, 64) / 8)
        words = command(
            data, tmp_path / "out", "--operator", str(tmp_path / "phi.npy"), "--limit", limit, methods="backprojection"
        )
        assert main(words) == 0
    with (tmp_path / "out/summary.csv").open(newline="") as file:
        assert [line["images"] for line in csv.DictReader(file)] == ["1", "1"]


@pytest.mark.usefixtures("drawn")
def test_one_result_under_two_names_is_two_rows(data: Path, tmp_path: Path) -> None:
    """The same pixels in another set, the same weights in another file: each name has all its images."""
    out, first, second = tmp_path / "out", save_network(tmp_path / "first.safetensors"), tmp_path / "second.safetensors"
    shutil.copytree(data / "tiny", data / "again")
    shutil.copy(first, second)
    assert main(command(data, out, methods=f"backprojection,{first}")) == 0
    assert main(command(data, out, "--datasets", "again", methods=f"backprojection,{second}")) == 0
    counts = Counter((row.method, row.dataset, row.ratio) for row in read_rows(out / "per_image.csv"))
    assert len(counts) == 8
    assert set(counts.values()) == {3}


def test_what_changes_no_weight_but_the_result_changes_the_key() -> None:
    smooth, blocks = (COASTModule(COASTConfig(layers=2, features=4, deblock=deblock)) for deblock in (True, False))
    blocks.network.load_state_dict(smooth.network.state_dict())
    assert smooth.settings() != blocks.settings()


def test_a_compiled_network_is_compiled_before_it_is_timed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While operations are counted nothing is compiled, so the last call before the first timed one must not count.

    It has as many images: another number might be compiled anew.
    """
    calls: list[tuple[bool, int]] = []
    images = ISTANetPPModule.images

    def noted(module: ISTANetPPModule, y: torch.Tensor, *args: Any, **options: Any) -> Any:
        calls.append((bool(torch.utils._python_dispatch._get_current_dispatch_mode_stack()), len(y)))
        return images(module, y, *args, **options)

    monkeypatch.setattr(ISTANetPPModule, "images", noted)
    monkeypatch.setattr(ISTANetPPModule, "compile_layers", lambda module, mode: None)
    checkpoint = save_network(tmp_path / "net.safetensors")
    more = "--compile", "--limit", "2", "--batch_size", "2", "--ratios", "0.3"
    assert main(command(data, tmp_path / "out", *more, methods=str(checkpoint))) == 0
    assert calls == [(True, 2), (False, 2), (False, 2)]


@pytest.mark.parametrize("batch_size", ["1", "2"])
def test_scoring_behind_a_gpu_changes_no_row_and_no_order(
    batch_size: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = []
    for overlaps in (False, True):
        monkeypatch.setattr("cs_models.evaluation.loop._Worker._overlaps", overlaps)
        assert main(command(data, tmp_path / str(overlaps), "--batch_size", batch_size, "--save_images")) == 0
        tables.append(list(table(tmp_path / str(overlaps)).items()))
    assert tables[0] == tables[1]


def test_what_was_reconstructed_before_a_mistake_is_scored(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data / "tiny/1.png").write_bytes((data / "tiny/1.png").read_bytes()[:60])
    monkeypatch.setattr("cs_models.evaluation.loop._Worker._overlaps", True)
    assert main(command(data, tmp_path / "out", "--ratios", "0.1", methods="backprojection")) == 2
    assert [row.image for row in read_rows(tmp_path / "out/per_image.csv")] == ["0"]


def test_a_gpu_is_timed_without_standing_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits from the first kernel on; the time is that between two marks among the kernels."""
    done: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: str) -> None:
            done.append(f"mark on {stream}")

        def elapsed_time(self, end: Event) -> float:
            return 1500.0

    fakes: dict[str, Any] = {
        "Event": Event, "current_stream": lambda device: "stream", "synchronize": lambda: done.append("wait"),
        "reset_peak_memory_stats": lambda device: None, "max_memory_allocated": lambda device: 3 * 2**20,
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    x = torch.rand(2, 1, 8, 8)
    timed = Timed(lambda: done.append("solve") or Solution(x), torch.device("cuda"))  # type: ignore[func-returns-value]
    assert done == ["wait", "mark on stream", "solve", "mark on stream"]
    timed.wait()
    assert timed.solution.x is x
    assert timed.solution.residual is None
    assert (timed.seconds(), timed.peak_memory_mb) == (1.5, 3)


def test_other_weights_compute_anew(data: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "network.safetensors", tmp_path / "out"
    save_network(path)
    main(command(data, out, "--limit", "1", methods=str(path)))
    save_network(path, layers=3)
    main(command(data, out, "--limit", "1", methods=str(path)))
    assert len(list(read_rows(out / "per_image.csv"))) == 4
    with (out / "summary.csv").open(newline="") as file:
        summary = list(csv.DictReader(file))
    parameters = sum(p.numel() for p in ISTANetPPModule(ISTANetPPConfig(layers=3, features=4)).parameters())
    assert [line["parameters"] for line in summary] == [str(parameters)] * 2, "only the newest weights count"


@pytest.mark.usefixtures("drawn")
def test_colour_is_measured_channel_by_channel(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main(command(data, out, "--channels", "rgb", "--limit", "1", methods="pinv"))
    row = next(read_rows(out / "per_image.csv"))
    pixels = np.asarray(Image.open(data / "tiny/0.png"), dtype=np.float64)
    x = torch.from_numpy(pixels / 255).float().permute(2, 0, 1)[:, None]
    operator = make_operator("block:33", 0.1, (40, 50))
    estimate = 255 * operator.pinv(operator(x)).clamp(0, 1).double().numpy()[:, 0].transpose(1, 2, 0)
    assert row.psnr_db == pytest.approx(peak_signal_noise_ratio(pixels, estimate, data_range=255), abs=1e-3)
    expected = structural_similarity(pixels, estimate, data_range=255, channel_axis=2)
    assert row.ssim == pytest.approx(expected, abs=1e-4)


@pytest.mark.usefixtures("drawn")
def test_an_own_picture_is_reconstructed_in_colour(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(command(data, out, "--image", str(data / "tiny/2.png"), methods="tv")) == 0
    row = next(read_rows(out / "per_image.csv"))
    assert (row.dataset, row.image, row.channels) == ("image", "2", "rgb")
    (picture,) = out.glob("images/*/2/0.3/tv_*.png")
    assert np.asarray(Image.open(picture)).shape == (33, 66, 3)
    assert f"tv at 0.3, {row.psnr_db:.2f} dB: {picture}\n" in capsys.readouterr().out


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize(
    "kind",
    ["block:16", "column", "pixel", "fourier", "cartesian", "transform2d", "structured:16", "radon", "matrix"],
)
def test_every_operator_can_be_asked_for(data: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "matrix":
        kind = str(tmp_path / "phi.npy")
        np.save(kind, np.random.RandomState(0).randn(20, 64))
    assert main(command(data, out, "--operator", kind, methods="pinv")) == 0
    expected = "block:8 from phi.npy" if kind.endswith(".npy") else {"fourier": "radial"}.get(kind, kind)
    assert {row.operator for row in read_rows(out / "per_image.csv")} == {expected}


@pytest.mark.usefixtures("drawn")
def test_seeds_give_a_row_for_each_draw_and_their_spread(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main(command(data, out, "--seeds", "0,1,2", methods="tv:iterations=20"))
    rows = list(read_rows(out / "per_image.csv"))
    assert len(rows) == 18
    with (out / "summary.csv").open(newline="") as file:
        line = next(csv.DictReader(file))
    means = [np.mean([row.psnr_db for row in rows if row.seed == seed and row.ratio == 0.1]) for seed in range(3)]
    assert float(line["psnr_seed_std"]) == pytest.approx(np.std(means, ddof=1))
    assert (line["images"], line["seeds"]) == ("3", "3")


def test_noise_depends_on_the_image_and_the_seed_alone() -> None:
    operator = make_operator("block:8", 0.5, (16, 16), noise_sigma=0.1)
    a, b = torch.rand(1, 16, 16), torch.rand(1, 16, 16)
    assert torch.equal(measure(operator, a, seed=0), measure(operator, a, seed=0))
    noise = [measure(operator, image, seed) - operator(image[None]) for image, seed in ((a, 0), (a, 1), (b, 0))]
    assert not torch.allclose(noise[0], noise[1])
    assert not torch.allclose(noise[0], noise[2])


def test_quantisation_has_that_many_levels() -> None:
    y = torch.randn(2, 1, 5, 100)
    for bits in (1, 3, 8):
        rounded = quantise(y, bits)
        assert max(len(image.unique()) for image in rounded) <= 2**bits
        cell = (y.flatten(1).amax(1) - y.flatten(1).amin(1)) / 2**bits
        assert ((rounded - y).flatten(1).abs().amax(1) <= cell / 2 * (1 + 1e-3)).all()
    assert quantise(torch.view_as_complex(torch.randn(1, 4, 2)), 2).is_complex()


def test_constant_measurements_stay_when_quantised() -> None:
    y = torch.full((1, 1, 7), 0.3)
    assert torch.allclose(quantise(y, 4), y)


def test_pictures_are_written_for_the_first_image_or_for_all(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main(command(data, out, methods="backprojection"))
    assert len(list(out.glob("images/tiny-*/*/*/backprojection_*.png"))) == 2
    main(command(data, out, "--save_images", methods="backprojection"))
    assert len(list(out.glob("images/tiny-*/*/*/backprojection_*.png"))) == 6
    assert len(list(out.glob("images/tiny-*/*/original_luminance.png"))) == 3


@pytest.mark.parametrize("scale", [1.0, 1e-5, 255.0, -3.0])
def test_real_measurements_are_reconstructed_without_a_ground_truth(
    scale: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    phi, y, out = tmp_path / "phi.npy", tmp_path / "y.npy", tmp_path / "out"
    matrix = np.linalg.qr(np.random.RandomState(0).randn(64, 50))[0].T
    np.save(phi, matrix)
    images = torch.rand(2, 1, 16, 24)
    operator = make_operator(str(phi), 50 / 64, (16, 24))
    np.save(y, scale * operator(images)[:, 0].numpy())
    arguments = ["--methods", "pinv,tv", "--measurements", str(y), "--operator", str(phi), "--shape", "16,24"]
    assert main([*arguments, "--out", str(out), "--device", "cpu"]) == 0
    expected = scale * operator.pinv(operator(images[1:]))[0, 0].numpy()
    np.testing.assert_allclose(np.load(out / "reconstructions/001_pinv.npy"), expected, rtol=0, atol=1e-5 * abs(scale))
    low, high = expected.min(), expected.max()
    picture = np.asarray(Image.open(out / "reconstructions/001_pinv.png"))
    assert np.abs(picture / 255 - (expected - low) / (high - low)).max() < 1 / 255
    with (out / "reconstructions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["method"], line["image"]) for line in lines] == [
        ("pinv", "0"),
        ("pinv", "1"),
        ("tv", "0"),
        ("tv", "1"),
    ]
    assert float(lines[0]["residual"]) < 1e-5
    assert all((out / line["file"]).is_file() for line in lines)
    assert [float(lines[1][key]) for key in ("lowest", "highest")] == pytest.approx([low, high], rel=0.01)
    printed = capsys.readouterr().out.splitlines()
    assert {str(out / line["file"]) for line in lines} < set(printed)
    for name in ("reconstructions.md", "reconstructions.html", "figures/reconstructions.png"):
        assert str(out / name) in printed
        assert (out / name).is_file()
    assert "data:image/png;base64," in (out / "reconstructions.html").read_text()
    (said,) = [line for line in printed if "values from" in line]
    assert said.startswith("measured as block:8 from phi.npy; values from ")
    assert said.endswith("span each image's own range; methods are made for images in [0, 1]")


def test_pictures_within_the_unit_range_are_shown_as_they_are() -> None:
    for image in (torch.tensor([0.1, 0.4]), torch.tensor([0.0, 1.0]), torch.full((2,), 7.0)):
        assert to_unit_range(image) is image
    for image in (torch.tensor([0.0, 1e-40]), torch.tensor([-3e38, 3e38]), torch.tensor([0.0, 0.09])):
        assert to_unit_range(image).tolist() == [0, 1]
    assert range_line([(0.1, 0.4), (0, 1)]) == "values from 0 to 1, kept in .npy files beside the pictures"


def test_a_yaml_file_and_the_command_line_agree(data: Path, tmp_path: Path) -> None:
    config, out = tmp_path / "config.yaml", tmp_path / "out"
    config.write_text(
        f"methods: [pinv]\ndatasets: tiny\nratios: [0.1, 0.3]\ndata_dir: {data}\nout: {out}\nlimit: 3\ndevice: cpu\n"
    )
    assert main(["--config", str(config), "--limit", "1"]) == 0
    assert [(row.image, row.ratio) for row in read_rows(out / "per_image.csv")] == [("0", 0.1), ("0", 0.3)]


def test_the_columns_are_the_contract(tmp_path: Path) -> None:
    assert ",".join(COLUMNS).startswith(CONTRACT)


@pytest.mark.parametrize("config", sorted((REPOSITORY / "configs" / "eval").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_can_be_read(config: Path) -> None:
    from cs_models.cli.evaluate import parse

    assert parse(["--config", str(config)]) is not None


def test_help_and_list_fit_a_head(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) < 90
    assert text.index("What is compared") < text.index("How it is measured") < text.index("--help")
    assert text.rstrip().splitlines()[-3].strip().startswith("python eval.py")
    assert main(["--list"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("omp", "clomp", "block:pca", "Set11", "bundled"))
