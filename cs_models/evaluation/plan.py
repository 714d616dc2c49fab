"""What a comparison consists of, checked before anything is computed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cs_models.errors import UserError
from cs_models.evaluation.options import Execution, Options
from cs_models.evaluation.perceptual import check_weights_files
from cs_models.evaluation.pictures import Pictures
from cs_models.evaluation.protocol import image_sha256, short_hash
from cs_models.evaluation.tiles import TileMemory, Tiling, solve_in_tiles
from cs_models.operators import ColumnOperator, MeasurementOperator, PixelOperator, make_operator
from cs_models.precision import usual_precision
from cs_models.reconstruction import Reconstructor, Solution
from cs_models.training.module import ReconstructionModule
from cs_models.zoo.methods import METHODS, MethodSpec, build_method, parse_methods
from datamodules.catalog import BenchmarkImages, ImageFile, load_set
from datamodules.signals import BenchmarkSignals, load_signal_set, names_signals

SMALLEST_SIDE = 7
PROBE_SIDE = 48


@dataclass(frozen=True, eq=False)
class Candidate:
    """A method made ready for one CS ratio.

    Attributes:
        spec: the method as typed.
        ratio: CS ratio.
        reconstructor: what reconstructs; a network stays on the CPU until its turn.
        precision: "fp32" or "bf16"; solvers always work in "fp32".
        schedule: iterations of each layer where the user chose them.
        tiling: how large images are cut; None where they are not.
        _fitted: the tiles of each size of measurements and image that came up.
    """

    spec: MethodSpec
    ratio: float
    reconstructor: Reconstructor
    precision: str = "fp32"
    schedule: str = ""
    tiling: Tiling | TileMemory | None = None
    _fitted: dict[tuple[torch.Size, tuple[int, int]], Tiling] = field(default_factory=dict)

    @property
    def network(self) -> ReconstructionModule | None:
        """The method if it is a trained one."""
        return self.reconstructor if isinstance(self.reconstructor, ReconstructionModule) else None

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Everything on the side of the method that determines its results."""
        facts = {
            "method": self.spec.name if self.spec.training_free else "network",
            "settings": self.reconstructor.settings(),
            "precision": self.precision,
            "schedule": self.schedule,
        }
        return facts if self.tiling is None else facts | {"tiling": asdict(self.tiling)}

    def prepare(self, y: Tensor, operator: MeasurementOperator) -> None:
        """Compute what is computed of an operator once and kept with it."""
        self.reconstructor.prepared(y, operator)

    def solve(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        """The method's `Solution`, in the candidate's precision.

        Raises:
            UserError: if the method cannot work with the operator, or the GPU's memory is too small.
        """
        try:
            with torch.autocast(y.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                if self.tiling is not None:
                    size = y.shape, operator.image_size
                    if size not in self._fitted:
                        self._fitted[size] = self.tiling.fit(self.reconstructor, y, operator)
                    return solve_in_tiles(self.reconstructor, y, operator, self._fitted[size])
                return self.reconstructor.solve(y, operator)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"method '{self.spec.text}' needs more memory than the GPU has for {len(y)} images of "
                f"{operator.image_size[0]}x{operator.image_size[1]}; "
                "try --tile_memory, a smaller --batch_size or --device cpu"
            ) from error


@dataclass(frozen=True, eq=False)
class Case:
    """A method at one ratio on one set with one draw of the operator."""

    candidate: Candidate
    images: BenchmarkImages | BenchmarkSignals
    seed: int


@dataclass(frozen=True)
class Task:
    """One image to reconstruct.

    Attributes:
        name: of the image.
        image: ``(C, H, W)`` in [0, 1].
        run_key: short hash of everything that determines the result.
        pictures: where original and reconstruction go as pictures; None where none were asked for.
    """

    name: str
    image: Tensor
    run_key: str
    pictures: Pictures | None


class Plan:
    """Every case of a comparison.

    Attributes:
        options: what was asked for.
        device: what it runs on; a process of several sets its own.
        cases: in the order in which they run.
    """

    def __init__(self, options: Options) -> None:
        """
        Args:
            options: what was asked for.

        Raises:
            UserError: for whatever can be known to fail before the first result: an unknown method, setting or set,
                a missing file, an unreadable first image, an operator that a method cannot work with.
        """
        self.options = options
        self.device = choose_device(options.execution.device, options.execution.devices)
        if options.output.wandb is not None and find_spec("wandb") is None:
            raise UserError("--wandb needs the package wandb: pip install wandb")
        check_weights_files(options.output.lpips, options.output.fid)
        pairs = parse_methods(options.comparison.methods, options.comparison.ratios)
        sets = load_sets(options)
        candidates = [make_candidate(spec, ratio, options.execution, self.device) for spec, ratio in pairs]
        if options.execution.iterations_per_layer and not any(one.network for one in candidates):
            raise UserError("--iterations_per_layer is for unfolding networks; there is none among the methods")
        self.cases = [
            Case(candidate, images, seed)
            for candidate in candidates
            for images in sets
            for seed in options.measuring.draws
        ]
        self._named_operator = lru_cache(maxsize=16)(make_operator)
        self._sized_operator = lru_cache(maxsize=16)(self._make_sized_operator)
        for case in self.cases:
            if case.seed == options.measuring.draws[0]:
                self._try_out(case)

    def operator(self, case: Case, image: Tensor) -> MeasurementOperator:
        """What an image ``(C, H, W)`` is measured with, on the plan's device."""
        return self._sized_operator(case, (image.shape[-2], image.shape[-1]), self.device)

    def task(self, case: Case, index: int) -> Task:
        """The image number `index` of a case.

        Raises:
            UserError: if the image cannot be read, is too small to score, or the operator does not fit its size.
        """
        name, image = case.images[index]
        if case.images.channels != "signal" and min(image.shape[-2:]) < SMALLEST_SIDE:
            size = f"{image.shape[-2]}x{image.shape[-1]}"
            raise UserError(f"image '{name}' of {case.images.set_name} is {size}; SSIM needs at least 7x7 pixels")
        facts = case.candidate.facts | {
            "operator": self.operator(case, image).spec,
            "noise": self.options.measuring.noise,
            "bits": self.options.measuring.bits,
            # Part of the noise even where the operator has no seed, such as a matrix from a file.
            "seed": case.seed,
            "image": image_sha256(image),
        }
        run_key = short_hash(facts)
        pictures = None
        if self._all_pictures or (index == 0 and case.seed == self.options.measuring.draws[0]):
            pictures = Pictures.locate(
                self.options.output.out,
                case.images.set_name,
                name,
                case.images.channels,
                case.candidate.ratio,
                case.candidate.spec.text,
                run_key,
            )
        return Task(name, image, run_key, pictures)

    @property
    def _all_pictures(self) -> bool:
        output = self.options.output
        wanted = output.wandb or output.lpips or output.fid or self.options.comparison.image
        return output.save_images or wanted is not None

    def _make_sized_operator(self, case: Case, size: tuple[int, int], device: torch.device) -> MeasurementOperator:
        # The draw for the first image's size serves all sizes, so that the matrix is made once.
        height, width = case.images[0][1].shape[-2:]
        ratio, sigma = case.candidate.ratio, self.options.measuring.noise / 255
        words, network = self.options.measuring.operator, case.candidate.network
        if words is None and network is not None:
            operator = network.default_operator(ratio, (height, width), case.seed, sigma)
        else:
            if words is None:
                words = "column" if case.images.channels == "signal" else METHODS[case.candidate.spec.name].operator
            operator = self._named_operator(words, ratio, (height, width), case.seed, sigma)
        return operator.resized(*size).to(device)

    def _try_out(self, case: Case) -> None:
        """Find out early whether a method works with its operator."""
        _, image = case.images[0]
        if case.images.channels == "signal" and case.candidate.network:
            raise UserError(
                f"method '{case.candidate.spec.text}' is a network for images; {case.images.set_name} holds signals, "
                "which training-free methods take, such as clomp, omp, iht, fista and tv"
            )
        operator = self.operator(case, image)
        if case.images.channels == "signal" and not isinstance(operator, ColumnOperator | PixelOperator):
            raise UserError(
                f"--operator {self.options.measuring.operator} is for images; {case.images.set_name} holds signals of "
                f"{image.shape[-2]} samples, which column, pixel, or a file of a matrix with as many columns measure"
            )
        if case.candidate.tiling is not None:
            case.candidate.tiling.check(operator)
        if case.candidate.network:
            case.candidate.network.check_operator(operator)
            return
        height, width = min(image.shape[-2], PROBE_SIDE), min(image.shape[-1], PROBE_SIDE)
        try:
            operator = operator.resized(height, width).to(self.device)
        except UserError:  # a user's own matrix or mask may fit one image size only
            height, width = operator.image_size
        y = operator(image[None, :, :height, :width].to(self.device))
        case.candidate.solve(y, operator)


def make_candidate(spec: MethodSpec, ratio: float, execution: Execution, device: torch.device) -> Candidate:
    """Build a method; precision, compilation and schedule are for networks.

    Raises:
        UserError: for an unknown setting, an unreadable checkpoint, or a schedule that does not fit.
    """
    reconstructor = build_method(spec, ratio)
    tiling: Tiling | TileMemory | None = None
    if execution.tile is not None:
        tiling = Tiling(execution.tile, execution.overlap)
    elif execution.tile_memory is not None:
        tiling = TileMemory(execution.tile_memory, execution.overlap)
    if not isinstance(reconstructor, ReconstructionModule):
        return Candidate(spec, ratio, reconstructor, tiling=tiling)
    schedule = execution.iterations_per_layer
    if schedule:
        reconstructor.set_schedule(schedule)
    if execution.compile:
        reconstructor.compile_layers()
    precision = usual_precision(device) if execution.precision == "auto" else execution.precision
    return Candidate(spec, ratio, reconstructor, precision, " ".join(map(str, schedule)), tiling)


def load_sets(options: Options) -> list[BenchmarkImages | BenchmarkSignals]:
    """The sets of images and of signals that the options name.

    Raises:
        UserError: for an unknown set or a missing file.
    """
    comparison = options.comparison
    if comparison.image is not None:
        path = Path(comparison.image)
        return [BenchmarkImages("image", [ImageFile(path.stem, path)], options.channels)]
    sets = [
        load_signal_set(name, comparison.data_dir, comparison.limit)
        if names_signals(name)
        else load_set(name, comparison.data_dir, options.channels, comparison.limit)
        for name in comparison.datasets
    ]
    for first, second in combinations(zip(comparison.datasets, sets, strict=True), 2):
        if first[1].set_name == second[1].set_name:
            raise UserError(
                f"--datasets '{first[0]}' and '{second[0]}' would both be called '{first[1].set_name}' in the results; "
                "evaluate one at a time, each with its own --out, or rename a folder"
            )
    return sets


def choose_device(name: str | None, devices: int = 1) -> torch.device:
    """The device of a name; without one, CUDA where there is a GPU.

    Raises:
        UserError: if there are not that many GPUs.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    kind = name or ("cuda" if available else "cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("this machine has no Apple GPU that torch can use; use --device cpu")
    if kind == "cuda" and available < devices:
        raise UserError(f"{devices} CUDA device(s) asked for, {available} found; use --device cpu or fewer --devices")
    return torch.device(kind, 0) if kind == "cuda" else torch.device(kind)
