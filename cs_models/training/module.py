"""A network, how it is trained and what it is sampled with: the base class of every trained method.

Nothing here needs Lightning, so a trained network is loaded and run without it; `LightningTraining` trains it.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cs_models.errors import UserError
from cs_models.operators import BlockOperator, MeasurementOperator, SamplingBank, make_operator
from cs_models.operators.carried import CarriedSampling, same_matrix
from cs_models.operators.matrices import tensor_sha256
from cs_models.operators.whitening import as_trained, with_orthonormal_rows
from cs_models.precision import no_tf32
from cs_models.reconstruction import Reconstructor, Solution
from cs_models.training.options import CompileMode, Training
from cs_models.training.weights import load_weights


class ReconstructionModule(nn.Module, Reconstructor):
    """A network, how it is trained, and what it was sampled with.

    Subclasses give `name`, `config_class` and a network called as ``network(y, operator)``; they override
    `training_loss` where the paper's loss is not a mean squared error.

    Attributes:
        name: of the model, as checkpoints remember it.
        config_class: type of `config`.
        training_class: type of `training_options`.
        any_operator: whether it takes every operator, as training without ground truth and adaptation need it.
        learns_rows: whether ``sampling.matrices: learned`` is for this kind of network.
        most_graphs: how many graphs torch.compile makes of parts of one class before it runs further ones uncompiled.
        network: maps (y, A) of one-channel images to images.
        config: architecture, a dataclass of plain values.
        without_effect: fields of `config` that change neither weights nor results, such as where weights came from.
        training_options: how it is trained.
        carried: matrices that travel with the weights.
        provenance: where the weights come from, ready for JSON.
        ema: the moving average of the network's weights, while it is trained with one.
        repeats_kernels: whether `compile_layers` was asked to record kernels and repeat them.
    """

    name: str
    config_class: type
    training_class: type[Training] = Training
    any_operator: bool = False
    learns_rows: bool = False
    without_effect: frozenset[str] = frozenset()
    most_graphs: int = 8
    network: nn.Module

    # The first argument is not called `network`, as the configuration of every subclass is: the command line would give
    # them None for it, in place of their default.
    def __init__(self, net: nn.Module, config: Any, training: Training) -> None:
        super().__init__()
        _check_definition(type(self), config)
        if training.sampling.matrices == "learned" and not self.learns_rows:
            raise UserError(
                f"{self.name} cannot train sampling rows along; sampling.matrices 'learned' is for unfolding networks "
                "that take any matrix"
            )
        if training.supervision != "ground_truth" and not self.any_operator:
            raise UserError(
                f"{self.name} cannot be trained by training.supervision {training.supervision}, which is for networks "
                "that take any operator: SCNet, COAST, R-COAST and ISTA-Net++"
            )
        if training.cuda_graphs and not self.any_operator:
            raise UserError(
                f"{self.name} cannot be trained with training.cuda_graphs, for networks that take any operator: "
                "SCNet, COAST, R-COAST and ISTA-Net++"
            )
        self.network = net.to(memory_format=torch.channels_last)
        self.config = config
        self.training_options = training
        self.bank = SamplingBank(training.sampling)
        self.carried = CarriedSampling()
        self.provenance: dict[str, Any] = {}
        if training.start_from is not None:
            self.provenance["start_from"] = load_weights(net, training.start_from)
        self.ema: nn.Module | None = None
        self.repeats_kernels = False

    def compile_layers(self, mode: CompileMode = "default", **options: Any) -> None:
        """Run what `compiled_parts` names through torch.compile from now on, each part as one graph.

        Args:
            mode: "default"; or "reduce-overhead", which on GPUs records the kernels of a part once and repeats them
                together (CUDA graphs), for batches so small that starting kernels takes longer than running them.
            options: others of torch.compile, such as its backend.
        """
        keep_compiled_code_apart()
        self.repeats_kernels = mode == "reduce-overhead"
        if "recompile_limit" in inspect.signature(torch.compile).parameters:  # not in older releases of torch
            options.setdefault("recompile_limit", self.most_graphs)
        for part in self.compiled_parts():
            part.compile(mode=mode, **options)

    def compiled_parts(self) -> list[nn.Module]:
        """What is compiled, each part by itself; by default the network.

        A subclass names parts that read tensors alone: a graph of a part that reads an operator holds for one size of
        images, and one of the whole network of an unfolding one for one schedule.
        """
        return [self.network]

    # Reconstruction

    @property
    def evaluated_network(self) -> nn.Module:
        """The network whose results count: the moving average where there is one."""
        return self.network if self.ema is None else self.ema.get_submodule("module")

    def checked(self, y: Tensor, operator: MeasurementOperator) -> tuple[Tensor, MeasurementOperator]:
        y, operator = super().checked(y, operator)
        self.check_operator(operator)
        return y, operator

    def prepared(self, y: Tensor, operator: MeasurementOperator) -> tuple[Tensor, MeasurementOperator]:
        """As training samples, see `as_trained`; a network for one matrix overrides it and takes that as it is."""
        if self.training_options.sampling.matrices != "gaussian":  # whose first row sees all of the brightness
            return with_orthonormal_rows(y, operator)
        return as_trained(y, operator)

    def _solve(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        return Solution(self.images(y, operator)[0])

    @overload
    def reconstruct(self, y: Tensor, operator: MeasurementOperator, return_all: Literal[False] = False) -> Tensor: ...

    @overload
    def reconstruct(self, y: Tensor, operator: MeasurementOperator, return_all: Literal[True]) -> list[Tensor]: ...

    def reconstruct(self, y: Tensor, operator: MeasurementOperator, return_all: bool = False) -> Tensor | list[Tensor]:
        """The images ``(N, C, H, W)``, or those after each iteration of an unfolding network.

        Raises:
            UserError: as `solve`, or if the network has no iterations to return.
        """
        if not return_all:
            return self.solve(y, operator).x
        images = self.images(*self.checked(y, operator), return_all=True)
        self.check_result(images[-1])
        return images

    @torch.no_grad()
    def images(self, y: Tensor, operator: MeasurementOperator, return_all: bool = False) -> list[Tensor]:
        """The images ``(N, C, H, W)`` of any number of channels, each by itself: the last, or of every iteration.

        Args:
            y: measurements that were checked and prepared.
            operator: as `prepared` gives it.
            return_all: whether to return the images after each iteration.
        """
        planes = rearrange(y, "n c ... -> (n c) 1 ...")
        self.begin_step()
        with no_tf32():
            estimates = self.estimates(self.evaluated_network.eval(), planes, operator, return_all)
        images = [rearrange(x, "(n c) 1 h w -> n c h w", c=y.shape[1]).float() for x in estimates]
        # The next repetition of recorded kernels writes where this one has written.
        return [image.clone() for image in images] if self.repeats_kernels else images

    def begin_step(self) -> None:
        """Tell torch.compile that a training step or a reconstruction begins, and all results of the last are used."""
        if self.repeats_kernels:
            torch.compiler.cudagraph_mark_step_begin()

    def estimates(
        self, network: nn.Module, y: Tensor, operator: MeasurementOperator, keep_all: bool = False
    ) -> list[Tensor]:
        """What a network makes of one-channel images: the final estimate, or with `keep_all` each intermediate one.

        Raises:
            UserError: if the network has no intermediate estimates.
        """
        if keep_all:
            raise UserError(f"{self.name} has no intermediate reconstructions; unfolding networks have")
        return [network(y, operator)]

    def forward(self, y: Tensor, operator: MeasurementOperator) -> Tensor:
        """The same as `reconstruct`."""
        return self.reconstruct(y, operator)

    def check_operator(self, operator: MeasurementOperator) -> None:
        """Raise UserError if the network cannot reconstruct from this operator; the base class takes any."""

    @property
    def schedule(self) -> tuple[int, ...] | None:
        """How often each layer is applied; None for networks that repeat no layers."""
        return None

    def set_schedule(self, iterations_per_layer: Sequence[int]) -> None:
        """Apply the layers that often from now on.

        Raises:
            UserError: if the network has no layers to repeat, or the schedule does not fit.
        """
        raise UserError(f"{self.name} takes no iterations_per_layer; unfolding networks do")

    def default_operator(
        self, ratio: float, image_size: tuple[int, int], seed: int = 0, noise_sigma: float = 0.0
    ) -> MeasurementOperator:
        """What the network is evaluated with by default: the carried matrix, or one of the kind of its training.

        Random matrices are unseen ones of this seed.
        """
        carried = self.carried.operator(ratio, image_size, noise_sigma)
        if carried is not None:
            return carried
        return make_operator(self.training_options.sampling.operator, ratio, image_size, seed, noise_sigma)

    def settings(self) -> dict[str, Any]:
        weights = {key: tensor_sha256(value) for key, value in self.evaluated_network.state_dict().items()}
        digest = hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()
        # Some settings change what the network computes without changing a weight.
        architecture = {key: value for key, value in asdict(self.config).items() if key not in self.without_effect}
        return {
            "model": self.name,
            "network": architecture,
            "weights": digest,
            "iterations_per_layer": self.schedule and list(self.schedule),
        }

    def trained_on(self, operator: MeasurementOperator) -> bool:
        """Whether a network that was trained on one matrix for all ratios meets that one; others have seen many."""
        sampling = self.training_options.sampling
        if sampling.matrices == "gaussian":
            return True
        own = self.default_operator(min(operator.ratio, max(sampling.ratios)), operator.image_size)
        if not isinstance(operator, BlockOperator) or not isinstance(own, BlockOperator):
            return False
        rows = min(len(own.matrix), len(operator.matrix))
        return same_matrix(operator.matrix[:rows], own.matrix[:rows])

    # Training

    def training_operator(
        self, image_size: tuple[int, int], step: int = 0, device: torch.device | str = "cpu"
    ) -> MeasurementOperator:
        """What a training step measures with; drawn from the bank unless a subclass learns its sampling."""
        return self.bank.draw(step, image_size, device)

    def training_estimate(self, y: Tensor, operator: MeasurementOperator, step: int = 0) -> Tensor:
        """Images ``(N, 1, H, W)`` as a training step estimates them, for losses that see no ground truth."""
        estimate: Tensor = self.network(y, operator)
        return estimate

    def training_loss(
        self,
        x: Tensor,
        y: Tensor,
        operator: MeasurementOperator,
        step: int = 0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Loss of a batch of images ``(N, 1, H, W)``; mean squared error unless a subclass says otherwise.

        Args:
            x: the images.
            y: their measurements.
            operator: what measured them.
            step: number of the training step; what a step draws depends on it and on the seed alone.
            generator: random state of this batch, on the CPU; torch's own where it is not given.
        """
        return F.mse_loss(self.network(y, operator).float(), x)

    def monitored(self) -> dict[str, Tensor]:
        """Numbers to log after each loss, by name; none by default."""
        return {}

    def prepare(self, patches: Callable[[int, int], Tensor]) -> None:
        """Compute what the network takes from training data before the first step; nothing by default.

        Args:
            patches: gives the stated number of training patches ``(count, C, s, s)`` as uint8, drawn with a seed.
        """

    def constrain(self) -> None:
        """Project the weights to where they must lie, after each optimiser step; by default anywhere."""

    def header(self) -> dict[str, Any]:
        """Everything but the weights that `cs_models.zoo.checkpoints.load_checkpoint` needs, ready for JSON."""
        return {
            "model": self.name,
            "network": asdict(self.config),
            "training": asdict(self.training_options),
            "carried": self.carried.shapes(),
            "provenance": self.provenance,
        }


def _check_definition(cls: type[ReconstructionModule], config: Any) -> None:
    """Find out before a training, and not when its first checkpoint is written, what a class lacks.

    Raises:
        UserError: if it has no `name` or `config_class`, or its configuration is no dataclass.
    """
    missing = [wanted for wanted in ("name", "config_class") if not hasattr(cls, wanted)]
    if missing:
        raise UserError(
            f"class {cls.__name__} does not define {' and '.join(missing)}, by which its checkpoints are read again"
        )
    if not is_dataclass(config) or not isinstance(config, cls.config_class):
        raise UserError(
            f"class {cls.__name__} gives a {type(config).__name__} as its configuration; expected a "
            f"{cls.config_class.__name__}, a dataclass of plain values"
        )


def keep_compiled_code_apart() -> None:
    """Choose a folder for compiled code by ``ONEDNN_MAX_CPU_ISA``, where that is set and the user chose no folder.

    torch keeps what it compiles for later processes, with weights laid out for the instructions that oneDNN used, and
    takes it whichever oneDNN may use then: results are wrong, or the process crashes.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    if not limit:
        return
    from torch._inductor.runtime.runtime_utils import default_cache_dir

    usual = default_cache_dir()  # torch itself sets the variable to it
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", usual) == usual:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = "_".join([usual, re.sub(r"\W", "_", limit)])
