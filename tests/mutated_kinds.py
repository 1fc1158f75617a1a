"""The kinds of files that `mutations` mutates: a sample of each, and everything that dyvit does with such a file."""
from __future__ import annotations

import functools
import io
import json
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, unescape

from mutations import Kind, long_numbers, writes


def describe(path: Path, facts: Any) -> None:
    """Everything that is read of facts: their rows, and the cost of the model."""
    from dyvit_deploy.inspect.artifact import _report

    if facts:
        report = _report(path, "ONNX", facts, {}, None)
        report.table()
        assert facts.dense in (True, False) and (facts.elastic is None or len(facts.elastic) == 2)


def onnx_kind(folder: Path, key: str = "dyvit") -> Kind:
    import onnx
    from helpers import tiny_graph

    from dyvit_deploy.graph.read import graph_facts, load_graph

    proto = onnx.load(tiny_graph(folder))
    [entry] = [entry for entry in proto.metadata_props if entry.key == "dyvit"]
    path = folder / "mutated.onnx"

    def write(text: str) -> Path:
        entry.value = text
        path.write_bytes(proto.SerializeToString())
        return path
    return Kind(_rich(json.loads(entry.value)), write,
                lambda path: describe(path, graph_facts(load_graph(path, weights=False), str(path))))


def _rich(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts with all that training and lower precisions record."""
    return facts | {
        "class_names": list("abcde"), "precision": "int8", "forms": ["split-predictor"], "assumed": ["mean 0.5"],
        "training": {"data": "digits", "epoch": 3, "recipe": {"epochs": 8, "elastic": [0.5, 0.9]},
                     "sums": {"loss": 1.0}},
        "lowered": {"target": "cpu", "rest": None, "kept": ["head"], "gate": "passed",
                    "ranges": {"method": "mse", "images": 64, "sha256": "0" * 64}}}


def safetensors_kind(folder: Path) -> Kind:
    """The facts in the header, and the header itself."""
    from helpers import tiny_checkpoint

    from dyvit_deploy.inspect.artifact import inspect_artifact

    content = tiny_checkpoint(folder).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8:8 + length])
    header["__metadata__"]["dyvit"] = _rich(json.loads(header["__metadata__"]["dyvit"]))
    path = folder / "mutated.safetensors"

    def write(text: str) -> Path:
        try:
            values = json.loads(text)
            metadata = values["__metadata__"]
            if not isinstance(metadata["dyvit"], str):
                with long_numbers():
                    values["__metadata__"] = metadata | {"dyvit": json.dumps(metadata["dyvit"])}
                    text = json.dumps(values)
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        encoded = text.encode("utf-8", "replace")
        path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + content[8 + length:])
        return path
    return Kind(header, write, lambda path: inspect_artifact(path).table())


def openvino_kind(folder: Path) -> Kind:
    import openvino
    from helpers import tiny_model

    from dyvit_deploy.artifacts.files import sha256
    from dyvit_deploy.runners.openvino import METADATA_KEY, WEIGHTS_KEY, read_openvino

    # One operation, because parsing a whole model each time would take longer than all that is tested.
    path, image = folder / "mutated.xml", openvino.opset13.parameter([1, 3, 4, 4])
    model = openvino.Model([openvino.opset13.relu(image)], [image])
    openvino.save_model(model, str(path))
    model.set_rt_info(sha256(path.with_suffix(".bin")), WEIGHTS_KEY)
    model.set_rt_info(tiny_model()[1].to_json(), METADATA_KEY)
    openvino.save_model(model, str(path))
    whole = path.read_text("utf-8")
    start = whole.index('value="', whole.index("<dyvit ")) + len('value="')
    end = whole.index('"', start)

    def write(text: str) -> Path:
        plain = "".join(letter for letter in text if letter.isprintable() or letter == " ")
        path.write_text(whole[:start] + escape(plain, {'"': "&quot;"}) + whole[end:], "utf-8", "replace")
        return path
    return Kind(_rich(json.loads(unescape(whole[start:end], {"&quot;": '"'}))), write,
                lambda path: describe(path, read_openvino(path)[1]))


def sidecar_kind(folder: Path) -> Kind:
    from helpers import plan_file

    from dyvit_deploy.engine.layers import EngineLayer
    from dyvit_deploy.engine.preflight import preflight
    from dyvit_deploy.engine.sidecar import sidecar_path
    from dyvit_deploy.inspect.artifact import inspect_artifact
    from dyvit_deploy.report.layers import layer_map
    from dyvit_deploy.serving.interface import read_servable

    plan = plan_file(folder, products={"head/Gemm": "float16", "blocks.0.attn/MatMul": "float32"},
                     fallbacks={"head/Gemm": "float16"},
                     layers=(EngineLayer("g", "gemm", ("float16",), ("head/Gemm",)),), untold=("head/Gemm",),
                     versions={"python": "3.11"}, fused_attention=("a",),
                     target={"gpu": "H100", "compute_capability": "9.0", "compute_capabilities": ["9.0"],
                             "system": "x"})

    def read(_: Path) -> None:
        preflight(plan).table()
        report = inspect_artifact(plan)
        report.table()
        if report.engine:
            layer_map(report.engine.products, report.facts)
            read_servable(plan)
    return Kind(json.loads(sidecar_path(plan).read_text()), writes(sidecar_path(plan)), read)


def ranges_kind(folder: Path) -> Kind:
    from dyvit_deploy.calibration.ranges import Ranges, TensorRange
    from dyvit_deploy.settings.preprocessing import Preprocess

    path = folder / "ranges.json"
    Ranges("mse", "0" * 64, "tiny", (32, 32), Preprocess(), "digits", ("0" * 16, "1" * 16),
           {"head:0": TensorRange(-1.0, 2.0, 1.5)}, {"python": "3.11"}, ("a.png: damaged",)).save(path)

    def read(path: Path) -> None:
        ranges = Ranges.load(path)
        ranges.table()
        assert len(ranges.sha256()) == 64 and ranges.notes is not None
    return Kind(json.loads(path.read_text()), writes(path), read)


LATENCIES = {"latency_ms_p50": 1.0, "latency_ms_p90": 1.5, "latency_ms_p99": 2.0}
HERE = {"machine": {"processor": "CPU", "logical_cores": 8, "flags": ["avx"]}, "versions": {"python": "3.11"}}


def sweep_kind(folder: Path) -> Kind:
    from dyvit_deploy.config import LoadConfig
    from dyvit_deploy.report.records import read_sweep
    from dyvit_deploy.sweep.grid import SweepConfig
    from dyvit_deploy.sweep.store import Artifact, Latency, Store, recall

    artifacts = (Artifact(0.5, "float32", "onnx", "keep0.5-fp32-onnx.onnx", "0" * 64, 1.0, (8, 4), (),
                          {"data": "digits", "images": 10}, 0.5, 0.9, 0.9, None,
                          {"data": "digits:test", "compared": 10, "evaluated": 10}),)
    latencies = (Latency(artifacts[0].file, 1, 0, {"seconds": 1.0}, *LATENCIES.values(), 100.0, 200, True, 1.5),)
    Store({"file": "tiny.safetensors", "sha256": "0" * 64}, SweepConfig(), LoadConfig(), "1" * 64, artifacts, latencies,
          ({"at": "now", **HERE},)).save(folder)

    def read(path: Path) -> None:
        read_sweep(path.parent, path.name)
        recall(path.parent, {"batches": (1,)})
    return Kind(json.loads((folder / "sweep.json").read_text()), writes(folder / "sweep.json"), read)


CHECK = {"reference": "a.safetensors", "candidate": "a.onnx", "data": "digits", "independent": False,
         "pixel_failures": [], "batches": [{
             "batch": 1, "images": 10, "failures": ["x"], "top1_agreement": 0.9, "relative_error": 0.1,
             "overlap": [0.9], "overlap_forgiven": []}]}
EVAL = {"artifact": "a.onnx", "data": "digits", "images": 10, "top1": 0.9, "top5": 1.0, "calibration_error": 0.1,
        "failures": []}
TIMING = {"artifact": "a.onnx", "backend": "ONNX Runtime", "precision": "float32", "batch": 1, **LATENCIES, "runs": 10,
          "images_per_sec": 10.0, "stable": True, "speedup": None}
BENCH = {"config": {"baseline": None, "batches": [1]}, "notes": ["x"], **HERE, "timings": [
    TIMING | {"ceiling": 2.0, "stand_in": False, "ci95_ms": {"p50": [0.9, 1.1]}, "cuda_graph": None, "streams": 1}]}
REPORTS = {
    "check": CHECK, "eval": EVAL, "bench": BENCH, "export": {"gate": CHECK, "on_device": None},
    "quickstart": {"commands": ["dyvit"], "checks": [CHECK], "evals": [EVAL], "bench": BENCH},
    "sweep": {"runs": [{"run": 0, **HERE}], "rows": [TIMING | {"run": 0, "command": "dyvit"}]},
}


def report_kind(folder: Path, name: str) -> Kind:
    from dyvit_deploy.bench.compare import compare_runs
    from dyvit_deploy.report.records import read_report

    stamp = {"report": name, "format": 1, "version": "1", "command": "dyvit", "files": {"a.onnx": "0" * 64}}
    path, sample = folder / f"{name}.json", {"dyvit": stamp, **REPORTS[name]}
    first = folder / "first.json"
    first.write_text(json.dumps(sample))

    def read(path: Path) -> None:
        records = read_report(path, path.name)
        # The page is written in UTF-8.
        repr(records).encode()
        if name == "bench":
            compare_runs(first, path).table()
    return Kind(sample, writes(path), read)


RECIPES = {".toml": 'recipe = "small"\nepochs = 3\nlr = 1e-3\nelastic = [0.5, 0.9]\nrand_augment = "none"\n',
           ".yaml": "recipe: paper\nepochs: 30\nlr: 0.001\nelastic: 0.5:0.9\nema: off\nmixup: 0.8\nseed: 3\n"}


def recipe_kind(folder: Path, suffix: str) -> Kind:
    from dyvit_deploy.training.recipe import make_recipe, read_recipe

    def read(path: Path) -> None:
        overrides = read_recipe(path)
        make_recipe(overrides.pop("recipe", "small"), "deit-s", "student", overrides)
    return Kind(RECIPES[suffix], writes(folder / f"recipe{suffix}"), read)


def labels_kind(folder: Path, suffix: str) -> Kind:
    from dyvit_deploy.data.label_files import read_class_map, read_labels

    samples = {".txt": "tench 0\ngoldfish 1\nshark 2\n", ".json": {"tench": 0, "goldfish": 1, "shark": 2},
               ".names.json": {"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}}

    def read(path: Path) -> None:
        if suffix == ".json":
            read_class_map(path, ["tench", "shark"])
        elif suffix == ".txt":
            read_class_map(path, ["goldfish"])
            read_labels(path, 3)
        else:
            read_labels(path, 2)
    return Kind(samples[suffix], writes(folder / f"labels{suffix}"), read)


def _shard(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def cls_kind(folder: Path) -> Kind:
    from helpers import tiny_config
    from PIL import Image

    from dyvit_deploy.data.open import open_images

    pixels = io.BytesIO()
    Image.new("RGB", (8, 8)).save(pixels, "png")

    def write(text: str) -> Path:
        place = Path(tempfile.mkdtemp(dir=folder))
        encoded = text.encode("utf-8", "replace")
        _shard(place / "test-0000.tar", {"0.png": pixels.getvalue(), "0.cls": encoded, "1.png": pixels.getvalue(),
                                         "1.cls": b"1"})
        return place

    def read(place: Path) -> None:
        for _ in open_images(f"wds/{place}", tiny_config(), "test").batches(2):
            pass
    return Kind("12", write, read)


def info_kind(folder: Path) -> Kind:
    from helpers import tiny_config

    from dyvit_deploy.data.open import open_images

    _shard(folder / "test-0000.tar", {"0.cls": b"0"})
    sample = {"splits": {"test": {"filenames": ["test-0000.tar"], "num_samples": 1}}}
    write = writes(folder / "_info.json")
    return Kind(sample, write, lambda path: open_images(f"wds/{path.parent}", tiny_config(), "test"))


def config_kind(folder: Path, transformers: bool) -> Kind:
    """The configuration of timm or transformers beside weights."""
    import timm
    import torch

    from dyvit_deploy.model.checkpoint import load_facts

    torch.save(timm.create_model("test_vit", num_classes=10).state_dict(), folder / "pytorch_model.bin")
    sample = {"architecture": "test_vit", "num_classes": 10, "model_args": {"num_heads": 2},
              "label_names": list("abcdefghij"),
              "pretrained_cfg": {"input_size": [3, 160, 160], "mean": [.4] * 3, "std": [.2] * 3, "crop_pct": .5,
                                 "interpolation": "bicubic", "crop_mode": "center"}}
    if transformers:
        sample = {"model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 64,
                  "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 192, "image_size": 160,
                  "patch_size": 16, "hidden_act": "gelu", "id2label": {str(n): str(n) for n in range(10)}}
    return Kind(sample, writes(folder / "config.json"), lambda path: load_facts(path.parent))


def partial_kind(folder: Path) -> Kind:
    from dyvit_deploy.predict.partial import PartialFile
    from dyvit_deploy.predict.report import RowCounter

    lines = '{"artifact":"x","top":1}\n[["a.png","s",["cat"],[0.5],""],["b.png","s",[],[],"damaged"]]\n'

    def read(path: Path) -> None:
        with PartialFile(path, {"artifact": "x", "top": 1}) as partial:
            list(partial.resume(iter([[]]), RowCounter(), []))
            list(partial.batches())
    return Kind(lines, writes(folder / "rows.partial"), read)


def kinds() -> dict[str, Callable[[Path], Kind]]:
    """How each kind is made, in an empty folder of its own."""
    made: dict[str, Callable[[Path], Kind]] = {
        "ONNX metadata": onnx_kind, "safetensors header": safetensors_kind, "OpenVINO rt_info": openvino_kind,
        "plan sidecar": sidecar_kind, "ranges": ranges_kind, "sweep.json": sweep_kind, ".cls": cls_kind,
        "shard info": info_kind, "unfinished rows": partial_kind}
    made |= {f"{name} report": functools.partial(report_kind, name=name) for name in REPORTS}
    made |= {f"recipe {suffix}": functools.partial(recipe_kind, suffix=suffix) for suffix in RECIPES}
    made |= {f"classes {suffix}": functools.partial(labels_kind, suffix=suffix)
             for suffix in (".txt", ".json", ".names.json")}
    made["config.json of timm"] = functools.partial(config_kind, transformers=False)
    made["config.json of transformers"] = functools.partial(config_kind, transformers=True)
    return made
