"""Options that several commands share, gathered into the configs that the library takes."""
from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ..artifacts.files import check_target
from ..calibration.config import CalibrationConfig, PrecisionConfig
from ..calibration.targets import FLAGS, FORMATS
from ..config import MAX_K, METHODS, SELECTORS, EngineRunConfig, KeepRequest, LoadConfig
from ..engine.config import BatchProfile, BuildConfig
from ..errors import ConfigError
from ..export.config import FORM_NAMES, GATHERS, INPUTS, ExportConfig
from ..serving.config import ServingConfig
from ..sweep.target import parse_targets
from ..training.recipe import FIELDS, values_of

F = TypeVar("F", bound=Callable[..., Any])


class Numbers(click.ParamType):  # type: ignore[type-arg]  # generic in recent click only
    """Comma-separated numbers: `3,6,9`."""

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.kind = kind
        self.name = f"{kind.__name__},..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.kind(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers like 1,2,3.", param, ctx)


class Names(click.ParamType):  # type: ignore[type-arg]  # generic in recent click only
    """Comma-separated names."""

    name = "name,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if isinstance(value, tuple) else tuple(value.split(","))


class ImageSize(click.ParamType):  # type: ignore[type-arg]  # generic in recent click only
    """`384`, or `384x512` for height by width."""

    name = "pixels"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        parts = value.lower().split("x") if isinstance(value, str) else value
        if 1 <= len(parts) <= 2 and all(str(part).isdigit() and int(part) > 0 for part in parts):
            return int(parts[0]), int(parts[-1])
        self.fail(f"{value!r} is not a size like 384 or 384x512.", param, ctx)


SCHEDULE = (
    click.option("--stages", type=Numbers(int), help="Blocks before which patches are dropped: 3,6,9."),
    click.option("--selector", metavar=f"[{'|'.join(SELECTORS)}]",
                 help="What chooses the patches; attention, random and structural need no training."),
)
LOADING = (
    click.option("--fuse", is_flag=True, help="Merge dropped tokens into one; with --selector attention."),
    click.option("--align", type=int, metavar="N", help="Round kept tokens, class token included, to multiples."),
    click.option("--model", help="Architecture, when the checkpoint does not tell: a zoo name or timm:NAME."),
    click.option("--weights", default="auto", metavar="[auto|model|ema]", help="Weights of a published file."),
    click.option("--image-size", type=ImageSize(), help="Another input size, positions interpolated."),
)
device_option = click.option("--device", metavar="[cpu|cuda]", help="Default: CUDA where it works, else the CPU.")
SWEPT = ("keep_ratios", "precisions", "backends", "batches", "data", "images", "seconds", "threads", "device")


def keep_options(command: F) -> F:
    """The pruning schedule; the command receives one `keep`."""
    @functools.wraps(command)
    def gather(keep_ratio: float | None, keep_ratios: Any, keep_counts: Any, stages: Any, selector: str | None,
               fuse: bool = False, align: int | None = None, **values: Any) -> Any:
        return command(keep=KeepRequest(keep_ratio, keep_ratios, keep_counts, stages, selector, fuse, align), **values)

    decorated: F = with_options(
        gather,
        click.option("--keep-ratio", type=float, help="Stages keep RATIO, RATIO**2, ... of the patches; 1.0 is dense."),
        click.option("--keep-ratios", type=Numbers(float), help="Per stage, of the initial patches: 0.8,0.6,0.5."),
        click.option("--keep-counts", type=Numbers(int), help="Per stage, patches: 137,96,67."),
        *SCHEDULE,
    )
    return decorated


def load_options(command: F) -> F:
    """How a checkpoint is opened; the command receives one `load`."""
    @functools.wraps(command)
    def gather(model: str | None, weights: str, image_size: Any, keep: KeepRequest, **values: Any) -> Any:
        return command(load=LoadConfig(model, weights, image_size, keep), **values)

    decorated: F = with_options(
        keep_options(gather),
        *LOADING,
    )
    return decorated


def sweep_options(command: F) -> F:
    """What is swept; the command receives the settings that were `given`, and one `load`, which says all but the keep
    ratio."""
    @functools.wraps(command)
    def gather(stages: Any, selector: str | None, fuse: bool, align: int | None, model: str | None, weights: str,
               image_size: Any, target: tuple[str, ...], calibration: CalibrationConfig, **values: Any) -> Any:
        load = LoadConfig(model, weights, image_size, KeepRequest(None, None, None, stages, selector, fuse, align))
        given = {name: values.pop(name) for name in SWEPT}
        given["calibration"] = calibration if calibration != CalibrationConfig() else None
        return command(given={name: value for name, value in given.items() if value is not None}, load=load,
                       targets=parse_targets(target), **values)

    decorated: F = with_options(
        calibration_options("--calib", reusable=False)(gather),
        click.option("--keep-ratios", type=Numbers(float),
                     help="Each R keeps R, R**2, ...; default: 1.0,0.9,0.7,0.5."),
        click.option("--precisions", type=Names(), metavar="NAME,...",
                     help="Of fp32, fp16, bf16, int8 and fp8; default: fp32,int8."),
        click.option("--backends", type=Names(), metavar="NAME,...",
                     help=f"Of {', '.join(FORMATS)}; default: onnx,openvino."),
        click.option("--batch", "batches", type=Numbers(int), help="Batch sizes; default: 1,8."),
        click.option("--data", help="What judges, and calibrates without --calib: digits, a folder; labels give "
                     "top-1."),
        click.option("--images", type=int, help="At most this many."),
        click.option("--seconds", type=float, help="Time limit per artifact and batch size; default: 10."),
        click.option("--threads", type=int, help="Threads of ONNX Runtime and OpenVINO; default: all cores."),
        device_option,
        click.option("--target", multiple=True, metavar="METRIC<=NUMBER", help="Name the best artifact for a budget: "
                     "latency_ms_p99<=20, top1>=97%."),
        *SCHEDULE, *LOADING,
    )
    return decorated


def run_options(command: F) -> F:
    """How an engine plan is loaded; goes into the command's `load`. Commands with `--streams`, `--cuda-graph`,
    `--fp16` and `--bf16` name them themselves."""
    @functools.wraps(command)
    def gather(load: LoadConfig, trust: bool, runtime_cache: str | None, cuda_graph: bool = False, streams: int = 1,
               fp16: bool = False, bf16: bool = False, **values: Any) -> Any:
        if fp16 and bf16:
            raise ConfigError("Give one of --fp16 and --bf16.")
        precision = "float16" if fp16 else "bfloat16" if bf16 else "float32"
        run = EngineRunConfig(trust, runtime_cache, cuda_graph, streams)
        return command(load=dataclasses.replace(load, engine=run, precision=precision), **values)

    decorated: F = with_options(
        load_options(gather),
        click.option("--trust", is_flag=True, help="Load an engine whose hash differs from its sidecar. Engines "
                     "contain native code: only do this for files you trust."),
        click.option("--runtime-cache", help="File in which TensorRT for RTX keeps its compiled kernels."),
    )
    return decorated


def build_options(command: F) -> F:
    """How an engine is built; the command receives one `build`."""
    @functools.wraps(command)
    def gather(batch: str | None, profile: tuple[str, ...], workspace: float | None, timing_cache: str | None,
               opt_level: int | None, version_compatible: bool, hardware_compatible: bool, refittable: bool,
               strip_weights: bool, compute_capability: str | None, tf32: bool, allow_precision_fallback: bool,
               **values: Any) -> Any:
        profiles = ([BatchProfile.parse(batch)] if batch else []) + [BatchProfile.parse_named(text) for text in profile]
        config = BuildConfig(
            tuple(profiles) or BuildConfig().profiles, workspace, timing_cache, opt_level, version_compatible,
            hardware_compatible, refittable, strip_weights,
            tuple(compute_capability.split(",")) if compute_capability else (), tf32, allow_precision_fallback)
        return command(build=config, **values)

    decorated: F = with_options(
        gather,
        click.option("--batch", metavar="MIN:OPT:MAX", help="Batch sizes of an engine; default 1:8:32."),
        click.option("--profile", multiple=True, metavar="NAME=MIN:OPT:MAX", help="One of several batch ranges."),
        click.option("--workspace", type=float, metavar="MIB", help="Limit of scratch memory."),
        click.option("--timing-cache", help="File that builds share; made anew when damaged."),
        click.option("--opt-level", type=int, metavar="[0-5]", help="0 builds fastest, 5 runs fastest."),
        click.option("--version-compatible", is_flag=True,
                     help="Loads in later TensorRT versions too; for --format trt."),
        click.option("--hardware-compatible", is_flag=True,
                     help="Runs on every GPU from Ampere on; for --format trt."),
        click.option("--refittable", is_flag=True, help="dyvit refit can exchange the weights for others."),
        click.option("--strip-weights", is_flag=True, help="Leave weights out; dyvit refit puts the same ones back, "
                     "with --refittable also others."),
        click.option("--compute-capability", metavar="X.Y,...",
                     help="Of the GPUs that will run it: 8.9,12.0; for --format rtx."),
        click.option("--tf32", is_flag=True, help="float32 products may round their inputs to TF32."),
        click.option("--allow-precision-fallback", is_flag=True,
                     help="Accept matrix products in a wider type than asked for; they are listed."),
    )
    return decorated


def graph_options(command: F) -> F:
    """What the graph offers and how it is written; the command receives one `graph`."""
    @functools.wraps(command)
    def gather(with_tokens: bool, input_type: str, allow_large_k: bool, without: Any, gather: str,
               **values: Any) -> Any:
        graph = ExportConfig(with_tokens, input_type, allow_large_k, without=without, gather=gather)
        return command(graph=graph, **values)

    decorated: F = with_options(
        gather,
        click.option("--with-tokens", is_flag=True, help="Also output the kept patches of each stage."),
        click.option("--input", "input_type", default="float32", show_default=True, metavar=f"[{'|'.join(INPUTS)}]",
                     help="uint8 takes raw RGB [batch, height, width, 3] and normalises inside the graph."),
        click.option("--allow-large-k", is_flag=True, help=f"Permit TopK beyond TensorRT's limit of {MAX_K}."),
        click.option("--without", type=Names(), default=(), metavar="NAME,...",
                     help=f"Exact rewrites to leave out, or all: {', '.join(FORM_NAMES)}."),
        click.option("--gather", default="auto", show_default=True, metavar=f"[{'|'.join(GATHERS)}]",
                     help="Operator that copies kept rows; auto: the faster one."),
    )
    return decorated


def serving_options(command: F) -> F:
    """How a model stands in a Triton repository; the command receives one `serving`."""
    @functools.wraps(command)
    def gather(engine: str | None, onnx: bool, openvino: bool, name: str | None, max_batch: int | None, instances: int,
               model_version: int, **values: Any) -> Any:
        if bool(engine) + onnx + openvino > 1:
            raise ConfigError("Give one of --engine, --onnx and --openvino.")
        serving = ServingConfig(name, max_batch, instances, model_version, engine, "openvino" if openvino else "onnx")
        return command(serving=serving, **values)

    decorated: F = with_options(
        gather,
        click.option("--engine", metavar="PLAN", help="For --format triton: serve this engine of the checkpoint."),
        click.option("--onnx", is_flag=True, help="For --format triton: serve an ONNX graph, the default."),
        click.option("--openvino", is_flag=True, help="For --format triton: serve an OpenVINO model."),
        click.option("--name", help="For --format triton: the model's name; default: the architecture's."),
        click.option("--max-batch", type=int, help="For --format triton: largest batch; default: engine's, else 64."),
        click.option("--instances", type=int, default=1, show_default=True, help="For --format triton: run at once."),
        click.option("--model-version", type=int, default=1, show_default=True,
                     help="For --format triton: put a newer version beside the one that is there."),
    )
    return decorated


def precision_options(command: F) -> F:
    """What to lower to, and on which images; the command receives one `precision` and one `calibration`."""
    @functools.wraps(command)
    def gather(target: str | None, rest: str | None, io: str, no_gate: bool, max_drop: float | None, fp16: bool,
               bf16: bool, int8: bool, fp8: bool, calibration: CalibrationConfig, **values: Any) -> Any:
        given = [p for p, flag in (("float16", fp16), ("bfloat16", bf16), ("int8", int8), ("float8", fp8)) if flag]
        if len(given) > 1:
            raise ConfigError(f"Give one of {', '.join(FLAGS[p] for p in given)}; --rest is for what int8 leaves out.")
        precision = PrecisionConfig(given[0] if given else "float32", target, rest, io, not no_gate, max_drop)
        return command(precision=precision, calibration=calibration, **values)

    decorated: F = with_options(
        calibration_options("--calib")(gather),
        click.option("--fp16", is_flag=True, help="float16, scores excepted."),
        click.option("--bf16", is_flag=True, help="bfloat16, scores excepted."),
        click.option("--int8", is_flag=True, help="int8 convolutions and linear layers; needs --calib or --ranges."),
        click.option("--fp8", is_flag=True, help="float8 (e4m3) likewise, for TensorRT."),
        click.option("--target", metavar="[cpu|tensorrt]", help="What runs the ONNX file; default: a CPU if it can."),
        click.option("--rest", metavar="[fp32|fp16|bf16]", help="Precision of what --int8 and --fp8 leave out."),
        click.option("--io", default="fp32", show_default=True, metavar="[fp32|fp16]", help="Images and logits."),
        click.option("--max-drop", type=float, metavar="POINTS",
                     help="Keep the costliest layers higher until top-1 falls by at most this."),
        click.option("--no-gate", is_flag=True, help="Do not compare the result with float32."),
    )
    return decorated


def calibration_options(data: str, required: bool = False, reusable: bool = True) -> Callable[[F], F]:
    """On which images to calibrate, and how; the command receives one `calibration`."""
    def decorate(command: F) -> F:
        @functools.wraps(command)
        def gather(calib: str | None, calib_images: int, method: str, quantize_attention: bool,
                   allow_random_calib: bool, ranges: str | None = None, **values: Any) -> Any:
            config = CalibrationConfig(calib, ranges, calib_images, method, quantize_attention, allow_random_calib)
            return command(calibration=config, **values)

        reuse = click.option("--ranges", help="Ranges of dyvit calibrate, instead of calibrating.")
        images = "--images" if data == "--data" else "--calib-images"
        decorated: F = with_options(
            gather,
            click.option(data, "calib", required=required, help="Real images: a folder, or digits."),
            *([reuse] if reusable else []),
            click.option(images, "calib_images", type=int, default=64, show_default=True, help="At most this many."),
            click.option("--method", default="mse", show_default=True, metavar=f"[{'|'.join(METHODS)}]",
                         help="What sets the thresholds of int8."),
            click.option("--quantize-attention", is_flag=True, help="Also the products inside attention."),
            click.option("--allow-random-calib", is_flag=True, help="Permit noise, to try things out."),
        )
        return decorated
    return decorate


def train_options(command: F) -> F:
    """How a model is trained, and one option per value of the recipe, which the command gets as `overrides`."""
    @functools.wraps(command)
    def gather(**values: Any) -> Any:
        given = {name: values.pop(name) for name in FIELDS}
        return command(overrides=tuple((n, v) for n, v in given.items() if v is not None), **values)

    recipe = (click.option(_flag(name), name, metavar=entry.metadata["kind"].__name__.strip("_").upper(),
                           help=f"{entry.metadata['help']} {values_of(name)}") for name, entry in FIELDS.items())
    decorated: F = with_options(
        gather,
        click.option("--backbone", help="Dense checkpoint to start from, which is the teacher too, or timm-pretrained; "
                     "without it one is trained first."),
        click.option("--recipe", metavar="[small|paper]", help="Hyper-parameters; default: small."),
        click.option("--recipe-file", help="Values of the recipe, as .toml or .yaml."),
        click.option("--dense-epochs", type=int, help="Epochs of the dense teacher."),
        click.option("--image-size", type=ImageSize(), help="Another input size, positions interpolated."),
        click.option("--accumulate", type=int, default=1, show_default=True, help="Parts of a batch, to save memory."),
        click.option("--workers", type=int, help="Processes that load images; default: 2 per training process."),
        click.option("--compile", is_flag=True, help="Use torch.compile."),
        click.option("--tensorboard", is_flag=True, help="Also write curves for TensorBoard."),
        click.option("--resume", is_flag=True, help="Go on from last.safetensors."),
        click.option("--eval-only", is_flag=True, help="Measure the model that training would start from."),
        *recipe,
    )
    return decorated


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def with_options(command: Any, *options: Callable[[Any], Any]) -> Any:
    """`command` with click options, shown in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def writable(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuses, before the work, a JSON file that could not be written or that is named like a model."""
    if value is None:
        return None
    if Path(value).suffix.lower() != ".json" and (Path(value).is_file() or not Path(value).exists()):
        raise ConfigError(f"Reports and ranges are written as .json, not as {Path(value).name!r}.")
    return str(check_target(value))


def drawable(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuses a chart that could not be drawn, likewise."""
    if value is None:
        return None
    from ..artifacts.charts import check_chart
    return str(check_target(check_chart(value)))


json_option = click.option("--json", "json_file", callback=writable, help="Also write the report to this file.")
