"""What a comparison consists of, checked before anything is computed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property, lru_cache
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cs_models.errors import UserError, memory_in_one_line
from cs_models.evaluation.adapting import wanted_adaptation
from cs_models.evaluation.options import Execution, Options
from cs_models.evaluation.perceptual import check_weights_files
from cs_models.evaluation.pictures import Pictures
from cs_models.evaluation.processes import choose_device, is_first
from cs_models.evaluation.protocol import fits_ratio, image_sha256, operator_label, short_hash
from cs_models.evaluation.tiles import TileMemory, Tiling, solve_in_tiles, wanted_tiling
from cs_models.operators import (
    ColumnOperator,
    MeasurementOperator,
    PixelOperator,
    make_operator,
    names_file,
    split_kind,
)
from cs_models.operators.bank import mix
from cs_models.precision import EMULATED_BF16, computes_bf16, usual_precision
from cs_models.progress import Progress
from cs_models.reconstruction import Reconstructor, Solution
from cs_models.training.adaptation import Adaptation
from cs_models.training.module import ReconstructionModule
from cs_models.zoo.methods import MethodSpec, build_method, parse_methods, usual_operator
from cs_models.zoo.own_methods import OwnMethod
from datamodules.catalog import BenchmarkImages, ImageFile, load_set
from datamodules.names import origin_of
from datamodules.signals import BenchmarkSignals, load_signal_set, names_signals

SMALLEST_SIDE = 7
PROBE_SIDE = 48

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A method made ready for one CS ratio.

    Attributes:
        spec: the method as typed.
        ratio: CS ratio.
        reconstructor: what reconstructs; a network stays on the CPU until its turn.
        precision: "fp32" or "bf16"; solvers always work in "fp32", networks that are not ours unless asked otherwise.
        schedule: iterations of each layer where the user chose them.
        tiling: how large images are cut; None where they are not.
        adaptation: how a network is fine-tuned on each image's measurements; None where it is not.
        _fitted: the tiles for each size of measurements and image so far.
    """

    spec: MethodSpec
    ratio: float
    reconstructor: Reconstructor
    precision: str = "fp32"
    schedule: str = ""
    tiling: Tiling | TileMemory | None = None
    adaptation: Adaptation | None = None
    _fitted: dict[tuple[torch.Size, tuple[int, int]], Tiling] = field(default_factory=dict)

    @property
    def network(self) -> ReconstructionModule | None:
        """The method if it is a trained one."""
        return self.reconstructor if isinstance(self.reconstructor, ReconstructionModule) else None

    @property
    def modules(self) -> list[nn.Module]:
        """What has weights and moves to a device: a trained network, or those of a method of the user's own."""
        if self.network is not None:
            return [self.network]
        return self.reconstructor.modules if isinstance(self.reconstructor, OwnMethod) else []

    @property
    def parameters(self) -> int:
        """Trainable parameters; of a network with a moving average, of that alone."""
        modules = self.modules if self.network is None else [self.network.evaluated_network]
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    @property
    def provenance(self) -> str:
        """Where the method comes from: "training-free", "own code", or that of its weights, see `weights_origin`."""
        if self.network is not None and (self.network.provenance or not self.spec.own):
            return weights_origin(self.network.provenance)
        return "own code" if self.spec.own else "training-free"

    def to(self, device: torch.device) -> None:
        """Move what has weights."""
        for module in self.modules:
            module.to(device)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Everything on the side of the method that determines its results."""
        facts: dict[str, Any] = {
            "method": self.spec.name if self.spec.training_free else "network",
            "settings": self.reconstructor.settings(),
            "precision": self.precision,
            "schedule": self.schedule,
        }
        if self.spec.own:
            # Not the path, which may be another on another machine.
            given = [self.spec.own_name, *(pair for pair in self.spec.settings if pair[0] != "checkpoint")]
            facts |= {"method": "own", "source": self.spec.code.sha256, "given": given}
        extras: dict[str, Any] = {"tiling": self.tiling, "adaptation": self.adaptation}
        return facts | {name: asdict(extra) for name, extra in extras.items() if extra is not None}

    def prepare(self, y: Tensor, operator: MeasurementOperator) -> None:
        """Compute what is computed of an operator once and kept with it."""
        self.reconstructor.prepared(y, operator)

    def solve(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        """The method's `Solution`, in the candidate's precision.

        Raises:
            UserError: if the method cannot work with the operator, or memory is too small.
        """
        size = f"{operator.image_size[0]}x{operator.image_size[1]}"
        autocast = torch.autocast(y.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        with self.memory_in_one_line(f"{len(y)} images of {size}"), self.spec.errors_in_one_line(), autocast:
            if self.adaptation is not None and self.network is not None:
                return self.adaptation.solve(self.network, y, operator)
            if self.tiling is None:
                return self.reconstructor.solve(y, operator)
            key = y.shape, operator.image_size
            if key not in self._fitted:
                self._fitted[key] = self.tiling.fit(self.reconstructor, y, operator)
            return solve_in_tiles(self.reconstructor, y, operator, self._fitted[key])

    def memory_in_one_line(self, subject: str) -> AbstractContextManager[None]:
        """Turn an error that tells of too little memory for a subject into one line."""
        remedy = "try --tile_memory, a smaller --batch_size or --device cpu"
        return memory_in_one_line(f"method '{self.spec.text}' on {subject}", remedy)


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
        operator: what it is measured with.
        image_sha256: of its values.
        run_key: short hash of everything that determines the result.
        pictures: where original and reconstruction go as pictures; None where none were asked for.
    """

    name: str
    image: Tensor
    operator: MeasurementOperator
    image_sha256: str
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
        exact = names_file(options.measuring.operator) and options.measuring.noise == 0
        if exact and len(set(options.measuring.draws)) > 1:
            raise UserError(
                "--seeds draws nothing with a matrix from a file and without noise: its results would be the same; "
                "give one seed, or --noise"
            )
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
        self._warn_once = cache(logger.warning)
        slow = options.execution.precision == "bf16" and self.device.type == "cpu" and not computes_bf16(self.device)
        if slow and any(candidate.network for candidate in candidates):
            logger.warning("this CPU has no bfloat16: networks are %s; --precision auto avoids that", EMULATED_BF16)
        first = [case for case in self.cases if case.seed == options.measuring.draws[0]]
        with Progress(
            len(first), "trying out", "methods and sets", hidden=not is_first(options.execution.devices)
        ) as bar:
            for case in first:
                self._try_out(case)
                bar.update()

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
        operator = self.operator(case, image)
        if self.options.measuring.draw_per_image:
            operator = operator.permuted(mix(case.seed, index) % 2**32)
        facts = case.candidate.facts | {
            "operator": operator.spec,
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
                case.images.origin,
                name,
                case.images.channels,
                case.candidate.ratio,
                case.candidate.spec.text,
                run_key,
            )
        return Task(name, image, operator, facts["image"], run_key, pictures)

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
            with case.candidate.spec.errors_in_one_line():
                operator = network.default_operator(ratio, (height, width), case.seed, sigma)
        else:
            if words is None:
                words = "column" if case.images.channels == "signal" else usual_operator(case.candidate.spec)
            if case.images.channels == "signal" and names_file(words) and split_kind(words)[0] is None:
                words = f"column:{words}"  # a signal is a column, and never a block
            operator = self._named_operator(words, ratio, (height, width), case.seed, sigma)
        return operator.resized(*size).to(device)

    def _check_ratio(self, operator: MeasurementOperator) -> None:
        """Say once where an operator measures more or less than was asked for."""
        measured, asked = operator.measured_ratio, operator.ratio
        if not fits_ratio(measured, asked):
            words = f"{operator_label(operator)} measures {measured:.3g} of the pixels where {asked:g} were asked for"
            self._warn_once("%s; the results say so", words)

    def _try_out(self, case: Case) -> None:
        """Find out early whether a method works with its operator."""
        _, image = case.images[0]
        if case.images.channels == "signal" and case.candidate.network:
            raise UserError(
                f"method '{case.candidate.spec.text}' is a network for images; {case.images.set_name} holds signals, "
                "which training-free methods take, such as clomp, omp, iht, fista and tv"
            )
        operator = self.operator(case, image)
        self._check_ratio(operator)
        if self.options.measuring.draw_per_image and operator.permuted(0) is operator:
            raise UserError(
                f"--draw_per_image draws the order of the pixels, and {operator_label(operator)} sampling of method "
                f"'{case.candidate.spec.text}' has none; measure with structured or pixel"
            )
        if case.images.channels == "signal" and not isinstance(operator, ColumnOperator | PixelOperator):
            raise UserError(
                f"--operator {self.options.measuring.operator} is for images; {case.images.set_name} holds signals of "
                f"{image.shape[-2]} samples, which column, pixel, or a file of a matrix with as many columns measure"
            )
        if case.candidate.tiling is not None:
            case.candidate.tiling.check(operator)
        if case.candidate.network:
            with case.candidate.spec.errors_in_one_line():
                case.candidate.network.check_operator(operator)
            if self.options.measuring.operator and not case.candidate.network.trained_on(operator):
                words = f"{case.candidate.spec.text} was trained on rows of its own, and {operator_label(operator)} has"
                self._warn_once("%s others; without --operator it has its own", words)
            return
        height, width = min(image.shape[-2], PROBE_SIDE), min(image.shape[-1], PROBE_SIDE)
        try:
            operator = operator.resized(height, width).to(self.device)
        except UserError:  # a user's own matrix or mask may fit one image size only
            height, width = operator.image_size
        y = operator(image[None, :, :height, :width].to(self.device))
        case.candidate.to(self.device)
        case.candidate.solve(y, operator)
        case.candidate.to(torch.device("cpu"))


def make_candidate(spec: MethodSpec, ratio: float, execution: Execution, device: torch.device) -> Candidate:
    """Build a method; precision, compilation and schedule are for networks.

    Raises:
        UserError: for an unknown setting, an unreadable checkpoint, a schedule that does not fit, or a method that
            cannot be adapted.
    """
    reconstructor = build_method(spec, ratio)
    tiling, adaptation = wanted_tiling(execution), wanted_adaptation(execution, reconstructor, spec.text)
    if not isinstance(reconstructor, ReconstructionModule):
        # What is not ours may compute where float32 is needed, so that bfloat16 is for the user to ask for.
        own = reconstructor.modules if isinstance(reconstructor, OwnMethod) else []
        for module in own if execution.compile else []:
            module.compile(mode=execution.compile_mode)
        precision = "bf16" if own and execution.precision == "bf16" else "fp32"
        return Candidate(spec, ratio, reconstructor, precision, tiling=tiling)
    schedule = execution.iterations_per_layer
    if schedule:
        reconstructor.set_schedule(schedule)
    if execution.compile:
        reconstructor.compile_layers(execution.compile_mode)
    precision = usual_precision(device) if execution.precision == "auto" else execution.precision
    return Candidate(spec, ratio, reconstructor, precision, " ".join(map(str, schedule)), tiling, adaptation)


def weights_origin(provenance: Mapping[str, Any]) -> str:
    """In a word where weights come from: "released" (imported), "trained" (by this project), or "fine-tuned".

    Args:
        provenance: of a checkpoint's header; its trainings name what they went on from as `start_from`.
    """
    if "imported" in provenance:
        return "released"
    earlier = provenance.get("start_from")
    # A file of unknown origin may say anything there.
    return "fine-tuned" if isinstance(earlier, dict) and weights_origin(earlier) != "trained" else "trained"


def load_sets(options: Options) -> list[BenchmarkImages | BenchmarkSignals]:
    """The sets of images and of signals that the options name.

    Raises:
        UserError: for an unknown set or a missing file.
    """
    comparison = options.comparison
    if comparison.image is not None:
        path = Path(comparison.image)
        return [BenchmarkImages("image", [ImageFile(path.stem, path)], options.channels, origin_of(path))]
    sets = [
        load_signal_set(name, comparison.data_dir, comparison.limit)
        if names_signals(name)
        else load_set(name, comparison.data_dir, options.channels, comparison.limit)
        for name in comparison.datasets
    ]
    for first, second in combinations(zip(comparison.datasets, sets, strict=True), 2):
        if (first[1].set_name, first[1].origin) == (second[1].set_name, second[1].origin):
            raise UserError(f"--datasets '{first[0]}' and '{second[0]}' are one set; name it once")
    return sets
