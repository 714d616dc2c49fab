"""What a user can ask the benchmark for. Nothing heavy is imported here, so that ``eval.py --help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jsonargparse.typing import register_type

from cs_models.errors import UserError

# Of --noise, for pixels in 0..255; far beyond what leaves anything of an image.
MOST_NOISE = 10_000
# Of --adapt, beyond what anybody waits for.
MOST_STEPS = 1_000_000
# The longest path of Linux; other systems take shorter ones.
LONGEST_NAME = 4096


class Words(tuple[str, ...]):
    """Names separated by commas."""


class Fractions(tuple[float, ...]):
    """Numbers separated by commas."""


class Integers(tuple[int, ...]):
    """Whole numbers separated by commas."""


def _split(value: object) -> list[str]:
    """The parts of ``a,b`` from the command line, or of a YAML list or scalar."""
    parts = list(value) if isinstance(value, list | tuple) else str(value).split(",")
    return [str(part).strip() for part in parts if str(part).strip()]


register_type(Words, ",".join, lambda value: Words(_split(value)))
register_type(Fractions, lambda v: ",".join(map(str, v)), lambda value: Fractions(map(float, _split(value))))
register_type(Integers, lambda v: ",".join(map(str, v)), lambda value: Integers(map(int, _split(value))))


def _help(text: str, metavar: str | None = None) -> dict[str, str | None]:
    """What ``--help`` says of an option."""
    return {"help": text, "metavar": metavar}


def check_text(text: str) -> None:
    """Refuse text that is no part of any name.

    Raises:
        UserError: for a null character, and for bytes that are not UTF-8.
    """
    if "\0" in text:
        raise UserError(f"'{text}' holds a null character, which no name has")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"'{text}' is not UTF-8, which tables and reports are written in; rename it") from None


def _check_name(option: str, value: object) -> None:
    """Refuse a name that no file can have or no table can hold; the value of an option that is no text passes."""
    if isinstance(value, str | Path):
        check_text(str(value))
        if len(str(value)) > LONGEST_NAME:
            raise UserError(f"--{option} holds a name of {len(str(value)):,} characters; names have {LONGEST_NAME:,}")


@dataclass(frozen=True)
class Comparison:
    """What is compared."""

    methods: Words = field(
        default=Words(),
        metadata=_help(
            "names, as omp or tv:weight=0.003; zoo (all networks); checkpoints' paths; wandb:TEAM/PROJECT/NAME:TAG; "
            "or your own, as module:my_file.py:NAME, which runs that file (docs/own_networks.md)",
            "M1,M2",
        ),
    )
    datasets: Words = field(
        default=Words(),
        metadata=_help(
            "names of sets of images or 1-D signals, folders of images, or files of signals: a .csv file has one in "
            "each column, a .npy file one in each row (log.csv:columns=a+b:decimal=comma says how to read one)",
            "D1,D2",
        ),
    )
    ratios: Fractions = field(default=Fractions(), metadata=_help("CS ratios in (0, 1]", "R1,R2"))
    data_dir: str | None = field(
        default=None, metadata=_help("folder with the image sets (else $CS_DATA, else data/)", "DIR")
    )
    limit: int | None = field(default=None, metadata=_help("only the first N images of each set, in name order", "N"))
    channels: Literal["luminance", "rgb"] | None = field(
        default=None, metadata=_help("luminance, or rgb: each colour measured by itself", "C")
    )
    image: str | None = field(
        default=None,
        metadata=_help(
            "measure and reconstruct this picture instead of a set (in rgb, unless --channels luminance)", "FILE"
        ),
    )


@dataclass(frozen=True)
class Measuring:
    """How it is measured."""

    operator: str | None = field(
        default=None,
        metadata=_help(
            "a name that --list shows, as pixel or block:32, or a .npy or .mat matrix (else what each method is made "
            "for: the matrix in a checkpoint, or 33x33 blocks)",
            "A",
        ),
    )
    seed: int = field(default=0, metadata=_help("of the operator's random draw (0)", "S"))
    seeds: Integers = field(default=Integers(), metadata=_help("several draws; their spread is reported", "S1,S2"))
    draw_per_image: bool = field(
        default=False,
        metadata=_help("a new order of the pixels for every image"),
    )
    noise: float = field(default=0.0, metadata=_help("standard deviation of the noise, for pixels in 0..255", "SIGMA"))
    bits: int | None = field(default=None, metadata=_help("quantise each image's measurements to so many bits", "B"))
    measurements: str | None = field(
        default=None,
        metadata=_help(
            "reconstruct real measurements from this .npy file instead of images, without a ground truth", "FILE"
        ),
    )
    shape: Integers = field(default=Integers(), metadata=_help("size of the images behind --measurements", "H,W"))

    @property
    def draws(self) -> tuple[int, ...]:
        """The seeds to evaluate."""
        return self.seeds or (self.seed,)


@dataclass(frozen=True)
class Execution:
    """How it runs."""

    device: Literal["cpu", "cuda", "mps"] | None = field(
        default=None,
        metadata=_help("cpu, cuda, or Apple's mps for networks alone (else cuda where there is one)", "DEVICE"),
    )
    devices: int = field(default=1, metadata=_help("how many of them share the images (1)", "N"))
    precision: Literal["auto", "fp32", "bf16"] = field(
        default="auto",
        metadata=_help(
            "of networks; data consistency and solvers stay in fp32 (auto: bf16 on devices that compute in it)",
            "auto|fp32|bf16",
        ),
    )
    compile: bool = field(default=False, metadata=_help("run networks through torch.compile, for many images"))
    compile_mode: Literal["default", "reduce-overhead"] = field(
        default="default",
        metadata=_help("of --compile; reduce-overhead repeats recorded kernels of a GPU", "default|reduce-overhead"),
    )
    batch_size: int = field(default=1, metadata=_help("images of one size that are reconstructed together (1)", "N"))
    tile: int | None = field(
        default=None,
        metadata=_help("reconstruct large images in tiles of at most this side; needs blocks or columns", "PIXELS"),
    )
    tile_memory: float | None = field(
        default=None,
        metadata=_help("in tiles as large as this much memory for each allows, in place of --tile", "GB"),
    )
    overlap: int = field(
        default=66, metadata=_help("margin of each tile that is thrown away, in whole blocks (66)", "PIXELS")
    )
    iterations_per_layer: Integers = field(
        default=Integers(),
        metadata=_help("how often each layer of unfolding networks is applied, such as 4,4,4,4,4", "R1,R2"),
    )
    adapt: int = field(
        default=0,
        metadata=_help(
            "fine-tune a copy of each network on the measurements of each image for so many steps (0)", "STEPS"
        ),
    )
    adapt_rate: float = field(default=3e-5, metadata=_help("learning rate of --adapt (0.00003)", "RATE"))
    adapt_loss: Literal["splitting", "measurements", "equivariant", "sure"] = field(
        default="splitting",
        metadata=_help("what --adapt minimises (splitting; docs/unsupervised.md has the others)", "LOSS"),
    )


@dataclass(frozen=True)
class Output:
    """What is written."""

    out: Path = field(
        default=Path("results"),
        metadata=_help("folder for tables, report and figures; a rerun continues where it stopped (results)", "DIR"),
    )
    save_images: bool = field(default=False, metadata=_help("write all reconstructions, not one of each set"))
    lpips: str | None = field(
        default=None, metadata=_help("score the pictures by LPIPS too, with AlexNet's weights from this file", "FILE")
    )
    fid: str | None = field(
        default=None, metadata=_help("score each set by FID too, with Inception's weights from this file", "FILE")
    )
    wandb: str | None = field(
        default=None, metadata=_help("log to this Weights & Biases project (or TEAM/PROJECT)", "PROJECT")
    )
    wandb_name: str | None = field(
        default=None, metadata=_help("name of the run, beginning of several (the method)", "NAME")
    )
    wandb_group: str | None = field(default=None, metadata=_help("group of its runs (the folder of --out)", "GROUP"))
    wandb_tags: Words = field(default=Words(), metadata=_help("tags of its runs", "T1,T2"))
    wandb_resume: Literal["allow", "must", "never"] = field(
        default="allow", metadata=_help("allow, must or never continue its runs (allow)", "HOW")
    )


@dataclass(frozen=True)
class Options:
    """Everything that one call of the benchmark is asked for; see the four parts."""

    comparison: Comparison = field(default_factory=Comparison)
    measuring: Measuring = field(default_factory=Measuring)
    execution: Execution = field(default_factory=Execution)
    output: Output = field(default_factory=Output)

    def __post_init__(self) -> None:
        """Refuse what can be refused without looking at any file.

        Raises:
            UserError: for options that are missing, out of range or exclude one another.
        """
        comparison, measuring, execution = self.comparison, self.measuring, self.execution
        for part in (comparison, measuring, execution, self.output):
            for name, value in vars(part).items():
                for word in value if isinstance(value, tuple) else (value,):
                    _check_name(name, word)
        if not comparison.methods:
            raise UserError("name the methods, as in --methods linear,omp; eval.py --list shows them all")
        subjects = {
            "--datasets": comparison.datasets,
            "--image": comparison.image,
            "--measurements": measuring.measurements,
        }
        given = [name for name, value in subjects.items() if value]
        if len(given) != 1:
            found = f"; got {' and '.join(given)}" if given else ""
            raise UserError(f"give one of --datasets, --image and --measurements{found}")
        if not comparison.ratios and not measuring.measurements:
            raise UserError("name the CS ratios, as in --ratios 0.1,0.3")
        for ratio in comparison.ratios:
            if not 0 < ratio <= 1:
                raise UserError(f"ratio {ratio:g} is outside (0, 1]; 0.1 means 10 measurements for 100 pixels")
        for name, values in (
            ("methods", comparison.methods),
            ("datasets", comparison.datasets),
            ("ratios", comparison.ratios),
            ("seeds", measuring.seeds),
        ):
            if len(set(values)) < len(values):
                raise UserError(f"--{name} names one twice: {','.join(map(str, values))}")
        if comparison.limit is not None and comparison.limit < 1:
            raise UserError(f"--limit {comparison.limit}: at least 1 image is needed")
        if min(measuring.draws) < 0 or max(measuring.draws) >= 2**32:
            raise UserError("a seed is a number from 0 to 2^32 - 1")
        if not 0 <= measuring.noise <= MOST_NOISE:
            raise UserError(f"--noise {measuring.noise:g}: the standard deviation is 0 or more, up to {MOST_NOISE:,}")
        if measuring.bits is not None and not 1 <= measuring.bits <= 16:
            raise UserError(f"--bits {measuring.bits}: expected 1 to 16")
        if execution.devices < 1 or execution.batch_size < 1:
            raise UserError("--devices and --batch_size are at least 1")
        if execution.overlap < 0 or (execution.tile is not None and execution.tile < 1):
            raise UserError("--tile is at least 1, and --overlap at least 0")
        if measuring.draw_per_image and execution.batch_size > 1:
            raise UserError("--draw_per_image measures every image differently, and --batch_size several alike")
        if execution.compile_mode != "default" and not execution.compile:
            raise UserError(f"--compile_mode {execution.compile_mode} changes nothing without --compile")
        if execution.tile_memory is not None:
            if not 0 < execution.tile_memory < float("inf"):
                raise UserError(f"--tile_memory {execution.tile_memory:g}: expected gigabytes above 0")
            if execution.tile is not None or execution.batch_size > 1:
                raise UserError("--tile_memory chooses the tiles of one image: without --tile and --batch_size")
        self._check_adaptation()
        self._check_wandb()
        self._check_measurements()

    def _check_adaptation(self) -> None:
        execution = self.execution
        if not 0 <= execution.adapt <= MOST_STEPS:
            raise UserError(f"--adapt {execution.adapt}: expected 0 to {MOST_STEPS:,} steps")
        if not 0 < execution.adapt_rate <= 1:
            raise UserError(f"--adapt_rate {execution.adapt_rate:g}: a learning rate lies above 0 and up to 1")
        if not execution.adapt:
            return
        if execution.tile is not None or execution.tile_memory is not None:
            raise UserError("--adapt takes whole images; leave out --tile and --tile_memory")
        if execution.adapt_loss == "sure" and self.measuring.noise == 0:
            raise UserError("--adapt_loss sure needs the level of the noise; give --noise")

    def _check_wandb(self) -> None:
        output = self.output
        for name in ("wandb_name", "wandb_group", "wandb_tags"):
            if getattr(output, name) and output.wandb is None:
                raise UserError(f"--{name} is about runs of Weights & Biases; give --wandb PROJECT too")
        if output.wandb is not None and not all(output.wandb.split("/", 1)):
            raise UserError(f"--wandb '{output.wandb}': expected PROJECT or ENTITY/PROJECT")

    def _check_measurements(self) -> None:
        measuring = self.measuring
        if measuring.measurements is None:
            if measuring.shape:
                raise UserError("--shape belongs to --measurements")
            return
        if self.output.lpips or self.output.fid:
            raise UserError("--lpips and --fid compare with originals, which --measurements has none of")
        without_effect = {
            "--wandb": self.output.wandb,
            "--save_images": self.output.save_images,
            "--seeds": measuring.seeds,
            "--bits": measuring.bits,
            "--draw_per_image": measuring.draw_per_image,
            "--devices": self.execution.devices > 1,
            "--batch_size": self.execution.batch_size > 1,
            "--limit": self.comparison.limit,
            "--channels": self.comparison.channels,
        }
        given = [name for name, value in without_effect.items() if value]
        if given:
            raise UserError(f"{' and '.join(given)} would have no effect with --measurements; leave it out")
        if len(measuring.shape) != 2 or min(measuring.shape) < 1:
            raise UserError("--measurements needs the size of the images, as in --shape 256,256")
        if measuring.operator is None:
            raise UserError("--measurements needs what was measured with, as in --operator phi.npy")
        if len(self.comparison.ratios) > 1:
            raise UserError("--measurements were taken at one ratio; give a single one to --ratios")

    @property
    def channels(self) -> Literal["luminance", "rgb"]:
        """Colour of the images that are measured."""
        return self.comparison.channels or ("rgb" if self.comparison.image else "luminance")
