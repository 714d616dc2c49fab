"""Misspelt words of a training are found from the sources, and nothing that the parser takes is refused."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from cs_models.cli import train
from cs_models.cli.configs import with_configs_found
from cs_models.cli.spelling import check_spelling
from cs_models.errors import UserError
from cs_models.signatures import fields_of, parameters
from cs_models.zoo.checkpoints import MODELS, model_class
from cs_models.zoo.methods import METHODS
from tests.conftest import REPOSITORY

TRAINING_FILES = [*(REPOSITORY / "configs/train").glob("*.yaml"), *(REPOSITORY / "checkpoints").glob("*.yaml")]
COAST = "cs_models.networks.unfolding.coast.COASTModule"


def check(words: str) -> None:
    check_spelling(with_configs_found(words.split(), "train"))


@pytest.mark.parametrize("file", TRAINING_FILES, ids=lambda path: path.name)
def test_shipped_configurations_are_accepted(file: Path) -> None:
    check(f"fit --config {file}")


@pytest.mark.parametrize(
    "file", sorted((REPOSITORY / "configs/train/override").glob("*.yaml")), ids=lambda path: path.name
)
def test_shipped_overrides_are_accepted(file: Path) -> None:
    check(f"fit --config {file}")


@pytest.mark.parametrize(
    "words",
    [
        "--data.data_dir d --trainer.devices 4 --trainer.num_nodes 2 --ckpt_path last --seed_everything 3",
        "--print_config", "--print_config=skip_null", "--print_shtab=bash", "--help", "--model.help",
        "--trainer.callbacks+=LearningRateMonitor --trainer.callbacks.logging_interval=step", "--data.train_sets+ T91",
        "--trainer.logger.class_path WandbLogger --trainer.logger.project p --trainer.logger.init_args.offline true",
        "--optimizer Adam --optimizer.lr 3 --lr_scheduler.gamma 2", "--checkpoint.monitor val/psnr",
        "--model.network.layers 3 --model.init_args.network.layers=3 --model.training.sampling.ratios=[0.1]",
        "--model.training.ema_decay null", "--trainer {max_steps:5} --data {x:1}", "-- --trainer.max_step 5",
        "--model.class_path my_net.MyModule --model.anything 3 --model.init_args.any.thing 3", "--weights_only true",
        "--model my_net.MyModule --model.anything 3", "--model MyModule --model.anything 3",
        "--model.training.class_path my_net.Mine --model.training.mine 3",
        f"--model.class_path=cs_models.networks.unfolding.ista_net_pp.ISTANetPPModule --model.network.layers 3 "
        f"--model.class_path {COAST} --model.network.deblock true",
    ],
)  # fmt: skip
def test_what_the_parser_takes_is_not_refused(words: str) -> None:
    check(f"fit --config r_coast {words}")


MISTAKES = {
    "fitt": "did you mean 'fit'?",
    "fit --trainer.max_step 5": "'--trainer.max_step'; did you mean 'max_steps'?",
    "fit --trainer.nothing_like_this=5": "fit --help shows them all",
    "fit --data.bach_size 4": "did you mean 'batch_size'?",
    "fit --checkpoint.monitr x": "did you mean 'monitor'?",
    "fit --model.init_args.training.learning_rat 1": "did you mean 'learning_rate'?",
    "fit --model.training.sampling.ratio=0.1": "did you mean 'ratios'?",
    "fit --model.network.layer 5": "did you mean 'layers'?",
    "fit --model.netwrk.layers 5": "did you mean 'network'?",
    "fit --trainr.max_steps 5": "did you mean 'trainer'?",
    "fit --chkpt_path last": "did you mean 'ckpt_path'?",
    "validate --ckpt_pth last": "did you mean 'ckpt_path'?",
    "--config r_cost": "did you mean 'r_coast'?",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line_with_the_nearest_name(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*words.split(), "--config", "r_coast"]) == 2
    assert MISTAKES[words] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "key", "hint"),
    [
        ({"trainer": {"max_step": 5}}, "'trainer.max_step'", "max_steps"),
        ({"data": {"bach_size": 5}}, "'data.bach_size'", "batch_size"),
        ({"trainr": {"max_steps": 5}}, "'trainr'", "trainer"),
        ({"model": {"init_args": {"training": {"learning_rat": 1}}}}, "learning_rat'", "learning_rate"),
        ({"model": {"init_args": {"training": {"sampling": {"knd": 1}}}}}, "sampling.knd'", "kind"),
        ({"model": {"init_args": {"network": {"layrs": 1}}, "class_path": COAST}}, "layrs'", "layers"),
        ({"model": {"init_args": {"network": {"layrs": 1}}, "class_path": "cs_models.unfolding.coast.COASTModule"}},
         "layrs'", "layers"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_is_one_line(content: object, key: str, hint: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"mine\.yaml: unknown key .*did you mean") as error:
        check(f"fit --config r_coast --config={file}")
    assert key in str(error.value)
    assert hint in str(error.value)


@pytest.mark.parametrize(
    "content", ["model: [", "- 1", "3: {4: 5}", "model: null", "trainer: {callbacks+: []}", "\x00"]
)
def test_files_that_are_the_parsers_business(content: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    check(f"fit --config {file} --config {tmp_path / 'mine.yaml'}")


@pytest.mark.parametrize("name", METHODS)
def test_settings_of_a_method_are_those_of_its_class(name: str) -> None:
    module, _, attribute = METHODS[name].target.partition(":")
    found = parameters(METHODS[name].target)
    assert found is not None
    assert list(found) == list(inspect.signature(getattr(importlib.import_module(module), attribute)).parameters)


@pytest.mark.parametrize("name", MODELS)
def test_arguments_of_a_network_are_those_of_its_classes(name: str) -> None:
    cls, found = model_class(name), parameters(MODELS[name])
    assert found is not None
    for argument, declared in (("network", cls.config_class), ("training", cls.training_class)):
        own = fields_of(found[argument])
        assert own is not None
        assert set(own) == {field.name for field in fields(declared)}


OWN = """
import abc, dataclasses
from dataclasses import dataclass
from cs_models.networks.unfolding.coast import COASTModule as Base
from cs_models.training.options import Training
from nowhere import Unknown, decorated

class Plain:
    def __init__(self, a: int, *, b: "Training | None" = None): ...
class Child(Plain): ...
class More(Plain):
    def __init__(self, c, **kwargs): super().__init__(1, **kwargs)
class Elsewhere(Plain):
    def __init__(self, c, **kwargs): print(kwargs)
class Twice(Plain):
    def __init__(self, c, **kwargs):
        self.kwargs = kwargs
        super().__init__(1, **kwargs)
class Positional(Plain):
    def __init__(self, *args): ...
class OfUnknown(Unknown): ...
@decorated
class Decorated(Plain): ...
class Made(Plain, metaclass=Unknown): ...
class New(Plain):
    def __new__(cls, x): ...
class Ours(Base): ...
@dataclasses.dataclass(frozen=True)
class Data:
    a: int = 0
    b: int = dataclasses.field(init=False)
@dataclass
class MoreData(Data, abc.ABC):
    c: str = ""
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Plain", {"a", "b"}), ("Child", {"a", "b"}), ("More", {"a", "b", "c"}), ("Elsewhere", None), ("Twice", None),
        ("Positional", None), ("OfUnknown", None), ("Decorated", None), ("Made", None), ("New", None), ("Nobody", None),
        ("Ours", {"network", "training"}), ("Data", {"a"}), ("MoreData", {"a", "c"}),
    ],
)  # fmt: skip
def test_the_source_says_it_or_nothing_is_said(
    name: str, expected: set[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_classes.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = parameters(f"own_classes.{name}")
    assert (None if found is None else set(found)) == expected


@pytest.mark.parametrize("target", ["", "x", ":", "no.such.Thing", "..", "math.Thing", "cs_models.nothing.X", "sys.X"])
def test_what_has_no_source(target: str) -> None:
    assert parameters(target) is None


@pytest.mark.slow
def test_every_option_of_the_real_parser_is_accepted_and_null_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from jsonargparse import ArgumentError

    from cs_models.cli import training_cli

    class Parsed(Exception):
        pass

    def stop(cli: training_cli.TrainCLI, parser: object, args: object) -> None:
        raise Parsed(cli)

    words = ["fit", "--config", str(REPOSITORY / "configs/train/r_coast.yaml")]
    other = ["validate", *words[1:]]
    for abbreviated in ("--trainer.max_step=5", "--model.init_args.training.learning_rat=1"):
        with pytest.raises(ArgumentError):
            training_cli.run([*words, abbreviated])
    monkeypatch.setattr(training_cli.TrainCLI, "parse_arguments", stop)
    count = 0
    for asked in (words, other):  # the parser of the other subcommand is not made
        with pytest.raises(Parsed) as parsed:
            training_cli.run(asked)
        ((subcommand, parser),) = parsed.value.args[0]._subcommand_parsers.items()
        assert subcommand == asked[0]
        config = parser.parse_args([*asked[1:], "--model.init_args.training.start_from=null"])
        assert config.model.init_args.training.start_from is None
        for option in _long_options(parser):
            if option != "--config":
                check(f"{subcommand} --config r_coast {option} 1")
            count += 1
    assert count > 100


def _long_options(parser: object) -> Iterator[str]:
    return (option for option in parser._option_string_actions if option.startswith("--"))  # type: ignore[attr-defined]
