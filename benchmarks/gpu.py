"""Everything to find out on the day a GPU is at hand, in one command of at most ten minutes.

``python benchmarks/gpu.py --out gpu.json`` writes a JSON file and beside it a Markdown table. With ``--golden
golden.json --data_dir DIR`` the released weights are held against their golden figures too. ``--toy`` is the same at
toy size, to try it without a GPU.

Each part runs in a process of its own, which ends with its share of the time; what it has found until then is kept:

* device: every case of `tests.rehearsal` on the device against the CPU, and how often it made the host wait;
* figures: PSNR of the shipped networks in float32 and bfloat16 against float32 on the CPU, or of the golden figures;
* inference, training: throughput, and its share of what plain convolutions reach;
* idm: peak memory and time of a training step over the number of sampling steps, for each wiring;
* solvers: CLOMP, OMP and IHT on a 3840x2160 image (the CLOMP paper, on an RTX 4090: CLOMP .7 to .9 s, OMP 107 to 505);
* processes: images a second of one GPU against all of them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from timing import synchronize

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # for the cases of the tests

Facts = dict[str, Any]
# Of each part its share of the time, in seconds.
SECONDS = {
    "device": 100, "figures": 90, "inference": 100, "training": 130, "idm": 90, "solvers": 40, "processes": 40
}  # fmt: skip
WORST_DB = {"fp32": 0.005, "bf16": 0.05}
# After a few iterations a change of 1e-7 in the measurements has moved the result by a sixth: it chose other orthants.
SENSITIVE = "method owlqn"


def device_cases(options: argparse.Namespace) -> Iterator[Facts]:
    """Every case of the rehearsal that fails on the device or makes the host wait, and how many there are."""
    from cs_models.errors import UserError

    rehearsal = importlib.import_module("tests.rehearsal")
    device, count = torch.device(options.device), 0
    for name, case in rehearsal.cases("", "operator" if options.toy else ""):
        if name.startswith(("lightning", "method ddnm", "fault")):
            continue
        try:
            torch.manual_seed(0)
            compared = rehearsal.is_compared(name) and not name.startswith(SENSITIVE)
            expected = case(torch.device("cpu")) if compared else None
            torch.manual_seed(0)
            result = case(device)
            error = None if expected is None else rehearsal.difference(result, expected, device.type)
            waits = waits_of(case, device)
        except UserError:
            continue
        except Exception as problem:
            error, waits = f"{type(problem).__name__}: {problem}".splitlines()[0], Counter()
        count += 1
        if error or waits:
            places = ", ".join(f"{place} ({times})" for place, times in waits.items())
            yield {"case": name, "error": error, "waits": waits.total(), "places": places}
    yield {"cases": count}


def waits_of(case: Callable[[torch.device], object], device: torch.device) -> Counter[str]:
    """Where a case makes the host wait for a GPU and how often, as CUDA itself reports it."""
    if device.type != "cuda":
        case(device)
        return Counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            case(device)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    synchronizing = [warning for warning in caught if "synchronizing" in str(warning.message)]
    return Counter(f"{Path(warning.filename).name}:{warning.lineno}" for warning in synchronizing)


def figures(options: argparse.Namespace) -> Iterator[Facts]:
    """PSNR against the golden figures where they are given, else that of shipped networks against the CPU's."""
    if options.golden is not None:
        yield from golden_figures(options)
        return
    from cs_models import load
    from datamodules.catalog import load_set

    device = torch.device(options.device)
    _, image = load_set("bundled", None, "luminance", 1)[0]
    x = (image[None, :, :66, :66] if options.toy else image[None]).clone()
    for name in ("r_coast",) if options.toy else shipped():
        module = load(name, 0.1)
        operator = module.default_operator(0.1, (x.shape[-2], x.shape[-1]))
        expected = _psnr(module, x, operator, "fp32")
        module, operator = module.to(device), operator.to(device)
        for precision, worst in WORST_DB.items():
            found = _psnr(module, x.to(device), operator, precision)
            yield {
                "network": name, "precision": precision, "psnr_db": found, "expected_db": expected,
                "holds": abs(found - expected) <= worst,
            }  # fmt: skip


def shipped() -> list[str]:
    """The networks of the zoo that have weights for a ratio of 10 %; last IDM, which takes long to compile."""
    from cs_models.zoo.methods import zoo_pairs

    return sorted((spec.text for spec, _ in zoo_pairs([0.1])), key=lambda name: name.startswith("idm"))


def golden_figures(options: argparse.Namespace) -> Iterator[Facts]:
    """Mean PSNR of released weights against the golden figures, in both precisions."""
    from official_figures import import_entry

    from cs_models.zoo.checkpoints import load_checkpoint
    from datamodules.catalog import load_set

    device, golden = torch.device(options.device), json.loads(options.golden.read_text(encoding="utf-8"))
    for entry, facts in golden.items():
        if entry == "protocol" or facts["ratio_percent"] != 10 or "Set11" not in entry:
            continue
        module = load_checkpoint(import_entry(entry, facts, options.data_dir, options.out.parent / "golden"))
        module.to(device)
        for precision, worst in WORST_DB.items():
            found = []
            for _, image in load_set("Set11", str(options.data_dir), "luminance"):
                operator = module.default_operator(0.1, (image.shape[-2], image.shape[-1])).to(device)
                found.append(_psnr(module, image[None].to(device), operator, precision))
            mean = sum(found) / len(found)
            yield {
                "network": entry, "precision": precision, "psnr_db": mean, "expected_db": facts["mean_psnr_db"],
                "holds": abs(mean - facts["mean_psnr_db"]) <= worst,
            }  # fmt: skip


def _psnr(module: Any, x: torch.Tensor, operator: Any, precision: str) -> float:
    from cs_models.metrics import psnr

    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
        estimate = module.reconstruct(operator(x), operator)
    return psnr(estimate.clamp(0, 1), x).item()


def inference_speed(options: argparse.Namespace) -> Iterator[Facts]:
    """Each way to run each network; see `benchmarks/inference.py`."""
    from inference import COLUMNS, lines_of

    compiled = options.device == "cuda"
    size, repeats = (33, 1) if options.toy else (256, 7)
    settings = argparse.Namespace(ratio=0.1, size=size, repeats=repeats, compile=compiled)
    for name in ("r_coast",) if options.toy else shipped():
        for line in lines_of(name, settings, torch.device(options.device)):
            yield dict(zip(COLUMNS, line, strict=True))


def training_speed(options: argparse.Namespace) -> Iterator[Facts]:
    """Each way to train each network; see `benchmarks/training.py`."""
    from training import COLUMNS, NETWORKS, lines_of

    batch_size, repeats = (1, 1) if options.toy else (64, 7)
    settings = argparse.Namespace(batch_size=batch_size, repeats=repeats, compile=options.device == "cuda")
    for name in list(NETWORKS)[: 1 if options.toy else None]:
        for line in lines_of(name, settings, torch.device(options.device)):
            yield dict(zip(COLUMNS, line, strict=True))


def idm_memory(options: argparse.Namespace) -> Iterator[Facts]:
    """Peak memory and seconds of a training step of IDM for each wiring; see `benchmarks/idm_memory.py`."""
    from idm_memory import MEBIBYTE, NAMES, Task, parsed

    words = "--tiny --size 64 --batch 1" if options.toy else "--size 256 --batch 8 --precision bf16"
    settings = parsed([*words.split(), "--device", options.device])
    for steps in (1,) if options.toy else (1, 3, 6, 12):
        for mode, name in NAMES.items():
            task = Task(steps, settings, mode != "not_wired")
            task.choose(mode)
            task.step()
            if options.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            task.step()
            yield {
                "wiring": name, "T": steps, "seconds": time.perf_counter() - start,
                "peak MiB": task.memory() / MEBIBYTE,
            }  # fmt: skip


def solvers(options: argparse.Namespace) -> Iterator[Facts]:
    """Time and memory on a large image, column by column; see `benchmarks/scaling_n.py`."""
    from scaling_n import run

    height, width = (32, 32) if options.toy else (2160, 3840)
    for method in ("clomp", "clomp_warm", "iht", "omp"):
        seconds, peak, _ = run(method, height, width, 0.3, options.device)
        yield {"method": method, "size": f"{width}x{height}", "seconds": seconds, "peak GB": peak}


def processes(options: argparse.Namespace) -> Iterator[Facts]:
    """Seconds of a whole evaluation with one GPU and with all of them."""
    available = torch.cuda.device_count() if options.device == "cuda" else 1
    for devices in sorted({1, available}):
        out = options.out.with_name(f"{options.out.stem}_{devices}_devices")
        words = [
            "--methods",
            "backprojection" if options.toy else "r_coast",
            "--datasets",
            "bundled",
            "--ratios",
            "0.1",
        ]
        words += ["--device", options.device, "--devices", str(devices), "--out", str(out)]
        words += ["--limit", "1"] if options.toy else []
        start = time.perf_counter()
        subprocess.run([sys.executable, "eval.py", *words], cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=True)
        yield {"devices": devices, "seconds": time.perf_counter() - start}


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Facts]]] = {
    "device": device_cases, "figures": figures, "inference": inference_speed, "training": training_speed,
    "idm": idm_memory, "solvers": solvers, "processes": processes,
}  # fmt: skip


def run_part(options: argparse.Namespace) -> None:
    """Write what one part finds, a line of JSON for each fact, as it is found."""
    with open(options.out, "w", encoding="utf-8") as file:
        for fact in PARTS[options.part](options):
            synchronize(torch.device(options.device))
            print(json.dumps(fact), file=file, flush=True)


def run_in_process(part: str, options: argparse.Namespace) -> Facts:
    """What a part found in its time, and how it ended."""
    found = options.out.with_name(f"{options.out.stem}_{part}.jsonl")
    words = [sys.executable, __file__, "--part", part, "--out", str(found), "--device", options.device]
    words += ["--toy"] if options.toy else []
    if options.golden is not None:
        words += ["--golden", str(options.golden), "--data_dir", str(options.data_dir)]
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    start, environment = time.perf_counter(), os.environ | {"PYTHONPATH": path}
    try:
        ended = subprocess.run(words, env=environment, timeout=options.patience * SECONDS[part])
        status = f"exit status {ended.returncode}" if ended.returncode else "whole"
    except subprocess.TimeoutExpired:
        status = "ran out of time"
    lines = found.read_text(encoding="utf-8").splitlines() if found.is_file() else []
    found.unlink(missing_ok=True)
    seconds = round(time.perf_counter() - start, 1)
    return {"status": status, "seconds": seconds, "facts": [json.loads(line) for line in lines]}


def markdown(report: Facts) -> str:
    """The report as tables."""
    lines = [f"# {report['device']}, torch {report['torch']}", ""]
    for part, found in report["parts"].items():
        lines += [f"## {part}: {found['status']}, {found['seconds']} s", ""]
        columns = list(dict.fromkeys(column for fact in found["facts"] for column in fact))
        if columns:
            lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
            lines += [f"| {' | '.join(_cell(fact.get(column)) for column in columns)} |" for fact in found["facts"]]
            lines.append("")
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write; tables go beside it, as .md")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas")
    parser.add_argument("--golden", type=Path, help="golden figures of released weights")
    parser.add_argument("--data_dir", type=Path, help="folder of the image sets and the released weights")
    parser.add_argument("--toy", action="store_true", help="toy sizes, to try this program")
    parser.add_argument("--patience", type=float, default=1.0, help="factor on the time that each part may take")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part is not None:
        run_part(options)
        return 0
    name = torch.cuda.get_device_name() if options.device == "cuda" else options.device
    report: Facts = {"device": name, "torch": torch.__version__, "toy": options.toy, "parts": {}}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for part in options.only.split(","):
        report["parts"][part] = run_in_process(part, options)
        options.out.write_text(json.dumps(report, indent=1), encoding="utf-8")
        options.out.with_suffix(".md").write_text(markdown(report), encoding="utf-8")
        print(f"{part}: {report['parts'][part]['status']}", flush=True)
    return int(any(found["status"] != "whole" for found in report["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
