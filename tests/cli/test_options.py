"""Options are made from the fields of configs: what a config prints, the command line reads back."""
import dataclasses
import json
import random

import click
import pytest
from click.testing import CliRunner

from dyvit_deploy.bench.config import BenchConfig
from dyvit_deploy.calibration.config import CalibrationConfig, PrecisionConfig
from dyvit_deploy.cli.main import main
from dyvit_deploy.cli.options import ConfigOptions
from dyvit_deploy.config import EngineRunConfig, KeepRequest, LoadConfig
from dyvit_deploy.deploy.config import DeployConfig
from dyvit_deploy.engine.config import BatchProfile, BuildConfig
from dyvit_deploy.errors import ConfigError
from dyvit_deploy.evaluation.config import EvalConfig
from dyvit_deploy.export.config import ExportConfig
from dyvit_deploy.parity.config import CheckConfig
from dyvit_deploy.predict.config import PredictConfig
from dyvit_deploy.report.config import ReportConfig
from dyvit_deploy.serving.config import ServeConfig, ServingConfig
from dyvit_deploy.settings.fields import OPTIONS, JsonConfig, command_flags
from dyvit_deploy.sweep.grid import SweepConfig
from dyvit_deploy.training.plan import TrainConfig
from dyvit_deploy.visualization.config import VisualizeConfig

CONFIGS = [BenchConfig, BuildConfig, CalibrationConfig, CheckConfig, DeployConfig, EngineRunConfig, EvalConfig,
           ExportConfig, KeepRequest, LoadConfig, PrecisionConfig, PredictConfig, ReportConfig, ServeConfig,
           ServingConfig, SweepConfig, TrainConfig, VisualizeConfig]
TEXTS = ("a", "photos/of cats", "it's", "$HOME", "x=1", "--out", "é")
# Values for fields whose type alone does not say what they may be.
SPECIAL = {
    "profiles": lambda r: tuple(BatchProfile(1, r.randint(1, 8), r.randint(8, 99), name) for name in
                                r.choice((["default"], ["a"], ["default", "b c"], ["a", "default", "b"]))),
    "compute_capabilities": lambda r: tuple(r.sample(["8.0", "8.9", "12.0"], r.randint(1, 3))),
    "optimization_level": lambda r: r.randint(0, 5),
    "without": lambda r: tuple(r.sample(["one-gather", "fold-scale", "all"], r.randint(1, 3))),
    "name": lambda r: r.choice(["cats", "vit-s_0.7"]),
    "csv": lambda r: r.choice(["a.csv", "b c.csv"]), "parquet": lambda r: "rows.parquet",
}


def random_value(field, found, r):
    """A value that the field may have, none of them checked against the others."""
    kind = str(field.type).removesuffix(" | None")
    if field.name in SPECIAL:
        return SPECIAL[field.name](r)
    if found.choices:
        given = [option.value for option in found.options if option.value]
        return tuple(r.sample(found.choices, 2)) if kind.startswith("tuple") else r.choice(given or found.choices)
    number, whole = (lambda: r.choice([1.0, r.random(), 1e-7 * r.random()])), (lambda: r.randint(1, 99))
    return {"bool": lambda: not field.default, "int": whole, "float": number,
            "tuple[int, ...]": lambda: tuple(whole() for _ in range(3)),
            "tuple[float, ...]": lambda: tuple(number() for _ in range(3)),
            "Arguments": lambda: (("global_pool", "avg"), ("num_heads", whole()), ("patch_size", (whole(), whole()))),
            "tuple[int, int]": lambda: (whole(), whole())}.get(kind, lambda: r.choice(TEXTS))()


def random_config(kind, r):
    """A config with random values in one field of three, such that they pass its checks."""
    for _ in range(1000):
        values = {}
        for field in dataclasses.fields(kind):
            found = field.metadata.get(OPTIONS)
            if found and (r.random() < 0.3 or field.default is dataclasses.MISSING):
                values[field.name] = random_value(field, found, r)
            elif isinstance(field.default, JsonConfig):
                values[field.name] = random_config(type(field.default), r)
        try:
            return kind(**values)
        except ConfigError:
            continue
    raise AssertionError(f"no values of {kind.__name__} fit each other")


def parse(kind, words):
    """The config that a command with the options of `kind` gets."""
    found = []
    command = click.command()(ConfigOptions(kind, "config")(lambda config: found.append(config)))
    result = CliRunner().invoke(command, words)
    if isinstance(result.exception, ConfigError):
        raise result.exception
    assert result.exit_code == 0, (words, result.output, result.exception)
    return found[0]


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)
def test_the_printed_options_of_a_config_are_read_back_as_the_same(kind):
    r, printed = random.Random(0), set()
    for _ in range(150):
        config = random_config(kind, r)
        if isinstance(config, ServingConfig) and config.engine and config.graph != "onnx":
            continue
        words = command_flags(config)
        assert parse(kind, words) == config, words
        printed.update(word for word in words if word.startswith("--"))
    options = {o for p in click.command()(ConfigOptions(kind, "config")(lambda config: None)).params for o in p.opts}
    never = {"--onnx"} if kind is ServingConfig else set()
    assert {option for option in options if option.startswith("--")} - never <= printed


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if issubclass(kind, JsonConfig)], ids=lambda k: k.__name__)
def test_every_config_survives_json(kind):
    r = random.Random(1)
    for _ in range(20):
        config = random_config(kind, r)
        assert kind.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_default_needs_no_option_and_nested_fields_can_be_left_out():
    assert not any(command_flags(kind()) for kind in CONFIGS if kind is not TrainConfig)
    load = LoadConfig(weights="ema", keep=KeepRequest(ratio=0.7), engine=EngineRunConfig(streams=2))
    assert command_flags(load, without=("engine", "precision")) == ["--weights", "ema", "--keep-ratio", "0.7"]
    lowered = PrecisionConfig("int8", rest="float16", gate=False)
    assert command_flags(lowered) == ["--int8", "--rest", "fp16", "--no-gate"]


@pytest.mark.parametrize("kind, words, message", [
    (PrecisionConfig, ["--int8", "--fp16"], "Give one of --fp16, --int8; --rest is for what int8 leaves out."),
    (LoadConfig, ["--fp16", "--bf16"], "Give one of --fp16, --bf16."),
    (ServingConfig, ["--onnx", "--openvino"], "Give one of --onnx, --openvino."),
    (ServingConfig, ["--engine", "e.plan", "--onnx"], "Give one of --engine, --onnx."),
    (BuildConfig, ["--profile", "1:2:3"], "A profile is written NAME=MIN:OPT:MAX, like latency=1:1:1, not '1:2:3'."),
    (ExportConfig, ["--input", "uint"], "Unknown input 'uint'. Did you mean 'uint8'?"),
    (SweepConfig, ["--backends", "onnx,openvin"], "Unknown backend 'openvin'. Did you mean 'openvino'?"),
])
def test_options_that_do_not_fit_are_refused_with_the_reason(kind, words, message):
    with pytest.raises(ConfigError) as refused:
        parse(kind, words)
    assert str(refused.value) == message


@pytest.mark.parametrize("words", [["--image-size", "0"], ["--image-size", "1x2x3"], ["--stages", "1,a"]])
def test_a_text_that_is_no_value_names_its_option(words):
    result = CliRunner().invoke(main, ["export", "x.pth", "-o", "y.onnx", *words])
    assert result.exit_code == 2 and f"Invalid value for '{words[0]}': {words[1]!r} is not a" in result.output


@pytest.mark.parametrize("words, missing", [
    (["train"], "--model"), (["train", "--model", "deit-s"], "--data"), (["sensitivity", "x.onnx"], "--data"),
    (["calibrate", "x.onnx", "-o", "r.json"], "--data")])
def test_a_required_option_that_is_missing_is_wrong_usage(words, missing):
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2 and f"Missing option '{missing}'" in result.output


def test_each_option_of_a_command_has_a_name_of_its_own():
    for command in main.commands.values():
        names = [name for parameter in command.params for name in parameter.opts]
        assert len(names) == len(set(names)), command.name
