"""The one loop: every method on every image at every ratio and draw, a row for each as it finishes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor

from cs_models.errors import UserError
from cs_models.evaluation.operations import CountOperations
from cs_models.evaluation.plan import Candidate, Case, Plan, Task
from cs_models.evaluation.processes import Processes, is_first, processes
from cs_models.evaluation.protocol import measure, operator_label, score, score_signal, short_hash, sparse_rates
from cs_models.evaluation.results import Identity, ResultsFile, Row, identity, only_writer
from cs_models.evaluation.timing import Timed
from cs_models.operators import MeasurementOperator
from cs_models.precision import forbid_tf32
from cs_models.progress import Progress
from cs_models.reconstruction import check_finite

SizeKey = tuple[Candidate, torch.Size]
"""A method, and channels, height and width of images."""

# Samples of an image whose first reconstruction is timed without a warm-up on a CPU.
LARGE_IMAGE = 1_000_000


def run(plan: Plan) -> list[Row]:
    """Compute every row of a plan that is not yet in its results folder.

    With several devices, Fabric starts one process for each; every process takes every n-th image and appends to the
    same table.

    Returns:
        all rows of the folder, those that were asked for last, for these are the ones that count. Processes other
        than the first return an empty list.

    Raises:
        UserError: if something goes wrong on the way; the rows so far are in the table.
    """
    execution, folder = plan.options.execution, plan.options.output.out
    group = processes(plan.device, execution.devices)
    if not is_first(execution.devices):
        worker = _Worker(plan, group)
        with only_writer(folder, first=False):
            group.barrier()
            worker.run()
        return []
    with only_writer(folder):
        table = ResultsFile(folder)
        table.repair()
        worker = _Worker(plan, group)
        group.barrier()  # until all hold the folder
        asked = worker.run()
        return sorted(table.rows(), key=lambda row: identity(row) in asked)


@dataclass(frozen=True)
class _Begun:
    """Images of one size that are being reconstructed, or were."""

    case: Case
    batch: list[Task]
    operator: MeasurementOperator
    timed: Timed


class _Worker:
    """One process of a run."""

    def __init__(self, plan: Plan, group: Processes) -> None:
        group.launch()
        plan.device = group.device
        forbid_tf32()
        self.plan = plan
        self.rank, self.world_size = group.global_rank, group.world_size
        self.table = ResultsFile(plan.options.output.out)
        self.done = {identity(row) for row in self.table.rows()}
        self.asked: set[Identity] = set()
        # Nobody adds a row before everybody has read the table.
        group.barrier()
        self._seen: set[tuple[Candidate, torch.Size, int]] = set()
        self._macs: dict[SizeKey, int] = {}
        self._rates: dict[tuple[str, torch.Size], dict[str, float]] = {}

    def run(self) -> set[Identity]:
        """Compute this process's share of the rows.

        Returns:
            what rows were asked for, of all processes.

        Raises:
            UserError: in the first process, if any process met one.
        """
        failure = ""
        try:
            self._run_cases()
        except UserError as error:
            failure = str(error)
        ends: list[tuple[str, set[Identity]]] = [(failure, self.asked)] * self.world_size
        if self.world_size > 1:
            torch.distributed.all_gather_object(ends, (failure, self.asked))
        failures = [message for message, _ in ends if message]
        if self.rank == 0 and failures:
            raise UserError(failures[0])
        return set().union(*(asked for _, asked in ends))

    def _run_cases(self) -> None:
        total = sum(len(self._share(case)) for case in self.plan.cases)
        unit = "images" if self.world_size == 1 else "images of the first process"
        with Progress(total, unit=unit, hidden=self.rank > 0) as bar:
            for case in self.plan.cases:
                bar.about(f"{case.candidate.spec.text} {case.images.set_name} {case.candidate.ratio:g}")
                with case.candidate.memory_in_one_line(case.images.set_name):
                    self._run_case(case, bar)

    def _run_case(self, case: Case, bar: Progress) -> None:
        psnr_db: list[float] = []
        case.candidate.to(self.plan.device)
        for begun in self._reconstructed(case, bar):
            for row in self._rows(begun):
                self.table.append(row)
                if math.isfinite(row.psnr_db):
                    psnr_db.append(row.psnr_db)
                    bar.note(f"PSNR {sum(psnr_db) / len(psnr_db):.2f} dB")
                bar.update()
        case.candidate.to(torch.device("cpu"))

    def _share(self, case: Case) -> range:
        return range(self.rank, len(case.images), self.world_size)

    def _batches(self, case: Case, bar: Progress) -> Iterator[list[Task]]:
        """Images that are still to do, in order, up to `batch_size` neighbours of one size together."""
        batch: list[Task] = []
        for index in self._share(case):
            task = self.plan.task(case, index)
            row = case.candidate.spec.text, case.images.origin or case.images.set_name, task.name, task.run_key
            self.asked.add(row)
            if row in self.done and (task.pictures is None or task.pictures.exist()):
                bar.update()
                continue
            if batch and batch[0].image.shape != task.image.shape:
                yield batch
                batch = []
            batch.append(task)
            if len(batch) == self.plan.options.execution.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _reconstructed(self, case: Case, bar: Progress) -> Iterator[_Begun]:
        """The batches in order, each begun.

        A GPU works by itself: meanwhile the next images are read and the last ones scored. It never has two to work on,
        so that times are those of one.
        """
        last: _Begun | None = None
        try:
            for batch in self._batches(case, bar):
                if last is not None:
                    last.timed.wait()
                begun = self._begin(case, batch)
                if last is not None:
                    yield last
                last = begun
                if not self._overlaps:
                    yield last
                    last = None
        except Exception:  # the next images cannot be read or reconstructed; the last ones can be scored
            if last is not None:
                yield last
            raise
        if last is not None:
            yield last

    @property
    def _overlaps(self) -> bool:
        """Whether computing and scoring are the work of different processors."""
        return self.plan.device.type == "cuda"

    def _begin(self, case: Case, batch: list[Task]) -> _Begun:
        """Measure images of one size, and begin to reconstruct them."""
        candidate, options = case.candidate, self.plan.options
        images = torch.stack([task.image for task in batch]).to(self.plan.device)
        operator = batch[0].operator
        y = torch.cat([measure(operator, image, case.seed, options.measuring.bits) for image in images])
        candidate.prepare(y[:1], operator)  # before operations are counted, and time
        key = (candidate, images.shape[1:])
        # GPUs and compilers choose their ways for a whole batch; CPUs need one image of it.
        first = y if options.execution.compile or self.plan.device.type != "cpu" else y[:1]
        if (*key, len(first)) not in self._seen and not self._warms_itself(candidate, images):
            with self._counting(key, len(first)):
                candidate.solve(first, operator)
            if options.execution.compile:  # nothing is compiled while operations are counted
                candidate.solve(first, operator)
        self._seen.add((*key, len(first)))
        with self._counting(key, len(batch)):
            timed = Timed(lambda: candidate.solve(y, operator), self.plan.device)
        return _Begun(case, batch, operator, timed)

    def _rows(self, begun: _Begun) -> Iterator[Row]:
        """Score what was reconstructed."""
        case, batch, operator, timed = begun.case, begun.batch, begun.operator, begun.timed
        candidate, options = case.candidate, self.plan.options
        timed.wait()
        solution, size = timed.solution, batch[0].image.shape
        estimates = solution.x.float()
        check_finite(estimates, f"method '{candidate.spec.text}'")
        estimates = estimates.clamp(0, 1)
        # A file that changes makes another operator of the same name.
        matrix = {key: value for key, value in operator.spec.items() if key == "sha256"}
        for index, (task, estimate) in enumerate(zip(batch, estimates, strict=True)):
            if task.pictures is not None:
                task.pictures.write(task.image, estimate)
            if case.images.channels == "signal":
                scores = score_signal(estimate, task.image)
            else:
                scores = dict(zip(("psnr_db", "ssim"), score(estimate, task.image), strict=True))
            yield Row(
                method=candidate.spec.text,
                dataset=case.images.set_name,
                image=task.name,
                ratio=candidate.ratio,
                seed=case.seed,
                seconds=timed.seconds() / len(batch),
                device=_device_name(self.plan.device),
                operator=operator_label(operator) + (", drawn per image" if options.measuring.draw_per_image else ""),
                run_key=task.run_key,
                iterations=None if solution.iterations is None else int(solution.iterations[index]),
                residual=None if solution.residual is None else float(solution.residual[index]),
                converged=None if solution.converged is None else bool(solution.converged[index]),
                precision=candidate.precision,
                noise=options.measuring.noise,
                bits=options.measuring.bits,
                channels=case.images.channels,
                schedule=candidate.schedule,
                height=size[-2],
                width=size[-1],
                parameters=candidate.parameters,
                macs=self._macs.get((candidate, size)),
                peak_memory_mb=timed.peak_memory_mb,
                settings_key=short_hash(candidate.facts | matrix),
                measured_ratio=operator.measured_ratio,
                provenance=candidate.provenance,
                origin=case.images.origin,
                **scores,
                **self._sparse_rates(task),
            )

    def _sparse_rates(self, task: Task) -> dict[str, float]:
        """Those of the image, which take longer than its scores: once for all methods and ratios."""
        key = task.image_sha256, task.image.shape
        if key not in self._rates:
            self._rates[key] = sparse_rates(task.image)
        return self._rates[key]

    def _warms_itself(self, candidate: Candidate, images: Tensor) -> bool:
        """Whether the first image of a size needs no untimed reconstruction before it.

        Solvers on the CPU have nothing to warm up but what trying them out before the run has done, and what a network
        has, where it is not compiled, is little beside the time of a large image.
        """
        if candidate.adaptation is not None:  # whose first steps are little beside the rest, and all would be repeated
            return True
        large = images[0].numel() > LARGE_IMAGE and not self.plan.options.execution.compile
        return self.plan.device.type == "cpu" and (not candidate.modules or large)

    @contextmanager
    def _counting(self, key: SizeKey, images: int = 1) -> Iterator[None]:
        """Count a network's multiply-adds for one image of a size, unless they are known or it is adapted to each."""
        if not key[0].modules or key[0].adaptation is not None or key in self._macs:
            yield
            return
        # Else the compiler would try to trace what counts the operations.
        eagerly = torch.compiler.set_stance("force_eager") if self.plan.options.execution.compile else nullcontext()
        with eagerly, CountOperations() as counter:
            yield
        self._macs[key] = counter.total // 2 // images


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
