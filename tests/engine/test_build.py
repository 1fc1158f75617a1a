"""Engines by TensorRT for RTX, built without a GPU and read back from the written files."""
import dataclasses
import json
import os
import shlex
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
import torch
from helpers import HANGS, ROOT, needs_modelopt, needs_rtx, tiny_checkpoint, tiny_graph
from onnx import TensorProto, helper, numpy_helper

from dyvit_deploy import engine
from dyvit_deploy.artifacts.facts import ArtifactFacts
from dyvit_deploy.artifacts.files import sha256
from dyvit_deploy.calibration.config import CalibrationConfig, PrecisionConfig
from dyvit_deploy.config import PruneConfig
from dyvit_deploy.deploy.config import DeployConfig
from dyvit_deploy.deploy.pipeline import export_artifact
from dyvit_deploy.engine import build as build_module
from dyvit_deploy.engine.build import build_engine, plan_build
from dyvit_deploy.engine.config import BatchProfile, BuildConfig
from dyvit_deploy.engine.layers import engine_precisions
from dyvit_deploy.engine.preflight import read_plan_header
from dyvit_deploy.engine.sidecar import BY_BUILDER, read_sidecar, sidecar_path
from dyvit_deploy.errors import ArtifactError, BackendError, ConfigError, ExportError, MissingDependency
from dyvit_deploy.export.config import ExportConfig
from dyvit_deploy.export.onnx import export_model, export_onnx
from dyvit_deploy.graph.read import computed_operands, load_graph, product_precisions
from dyvit_deploy.machine.hardware import gpu
from dyvit_deploy.model import zoo
from dyvit_deploy.model.dynamicvit import DynamicViT

DEMO = ROOT / "dyvit_deploy" / "demo" / "digits-s.safetensors"
TWO = (BatchProfile(1, 1, 1, "latency"), BatchProfile(8, 32, 64, "throughput"))
SETS = [(), ("8.9",), ("8.6", "8.9", "12.0")]
pytestmark = needs_rtx


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """Makes the tiny model, or the demo student, as a graph for TensorRT in a precision, once for each."""
    folder, made = tmp_path_factory.mktemp("graphs"), {}
    tiny = tiny_checkpoint(folder)

    def graph(precision, checkpoint=tiny):
        if (precision, checkpoint) not in made:
            path = made[precision, checkpoint] = folder / f"{checkpoint.stem}-{precision}.onnx"
            if precision == "float32":
                export_onnx(checkpoint, path, ExportConfig(with_tokens=True))
            else:
                pytest.importorskip("modelopt", reason="ModelOpt is missing: pip install 'dyvit-deploy[calib]'")
                config = DeployConfig("onnx", ExportConfig(with_tokens=True),
                                      PrecisionConfig(precision, "tensorrt", gate=False),
                                      CalibrationConfig("digits", images=8))
                export_artifact(checkpoint, path, config)
        return made[precision, checkpoint]
    return graph


def test_a_build_reads_its_graph_once_besides_the_builder(graphs, tmp_path, monkeypatch):
    read, load, graph = [], onnx.load, graphs("float32")
    monkeypatch.setattr(onnx, "load", lambda path, **options: read.append(path) or load(path, **options))
    build_engine(graph, tmp_path / "e.plan", "rtx", BuildConfig(allow_precision_fallback=True))
    plan_build(graph, tmp_path / "p.plan", "rtx")
    assert read == [str(graph)] * 2


@pytest.mark.parametrize("capabilities", SETS, ids=lambda s: "+".join(s) or "default")
@pytest.mark.parametrize("profiles", [BuildConfig().profiles, TWO], ids=["one", "two"])
@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "float8"])
def test_an_engine_has_the_precisions_of_its_graph(graphs, tmp_path, precision, profiles, capabilities):
    graph = graphs(precision)
    if precision == "float8" and "8.6" in capabilities:
        # Compute capability 8.6 has no float8.
        capabilities = ("8.9", "12.0")
    config = BuildConfig(profiles, compute_capabilities=capabilities)
    report = build_engine(graph, tmp_path / "e.plan", "rtx", config)
    facts = read_sidecar(tmp_path / "e.plan")
    assert facts == report.facts and facts.config == config and facts.profiles == profiles
    assert facts.plan == {"sha256": sha256(tmp_path / "e.plan"), "bytes": (tmp_path / "e.plan").stat().st_size}
    assert facts.target["compute_capabilities"] == list(capabilities)
    # Read from the plan itself.
    spec, version = read_plan_header(tmp_path / "e.plan")
    assert spec.format == "rtx" and ".".join(map(str, version)) == facts.builder["version"]
    assert facts.inputs == {"images": ["float32", [None, 3, 32, 32]]}
    kept = {f"kept_{s}": ["int64", [None, k]] for s, k in enumerate(facts.model.keep_counts)}
    assert facts.outputs == {"logits": ["float32", [None, 5]]} | kept
    # By the engine, not by the graph.
    precisions = engine_precisions(facts.layers, facts.products, computed_operands(load_graph(graph)))
    assert precisions == facts.products and not facts.untold and list(precisions.values()).count(precision) >= 16
    assert all(precisions[f"score_predictor.{stage}.score/MatMul"] == "float32" for stage in range(3))
    assert len(facts.fused_attention) + len(facts.unfused_attention) == facts.model.model.depth
    if gpu() is None:
        assert facts.verified == BY_BUILDER and "not yet verified on a device" in facts.verified


@needs_modelopt
def test_float16_attention_is_one_kernel(graphs, tmp_path):
    facts = build_engine(graphs("float16", DEMO), tmp_path / "e.plan", "rtx").facts
    assert facts.fused_attention == tuple(f"blocks.{i}.attn" for i in range(6)) and not facts.unfused_attention


def test_an_engine_in_another_precision_than_requested_is_not_written(graphs, tmp_path, monkeypatch):
    def asked(proto):
        return {node: "float16" if ".attn" in node else kind for node, kind in product_precisions(proto).items()}
    monkeypatch.setattr(build_module, "product_precisions", asked)
    with pytest.raises(ExportError, match=r"^16 of 41 matrix products are wider than asked: block 0 attention "
                                          r"\(blocks\.0\.attn\.qkv/MatMul\) asked float16, became float32; .*; and 11 "
                                          "more; build it with --allow-precision-fallback .*; nothing was written"):
        build_engine(graphs("float32"), tmp_path / "e.plan", "rtx")
    assert list(tmp_path.iterdir()) == []
    report = build_engine(graphs("float32"), tmp_path / "e.plan", "rtx", BuildConfig(allow_precision_fallback=True))
    assert len(report.facts.fallbacks) == 16 and set(report.facts.products.values()) == {"float32"}


def test_progress_counts_every_phase_up_to_its_end(graphs, tmp_path):
    steps = []
    build_engine(graphs("float32"), tmp_path / "e.plan", "rtx", watch=steps.append)
    assert len({step.phase for step in steps}) > 5 and {step.depth for step in steps} >= {0, 1, 2}
    whole = [step for step in steps if step.depth == 0]
    assert whole[-1].step == whole[-1].steps > 0


INTERRUPTED = """
import os, signal, sys
from dyvit_deploy.engine.build import build_engine
sent = []
def watch(step):
    if step.depth == 1 and not sent:
        sent.append(step)
        os.kill(os.getpid(), signal.SIGINT)
try:
    build_engine(sys.argv[1], sys.argv[2], "rtx", watch=watch)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_an_interrupt_cancels_the_build_and_leaves_nothing(graphs, tmp_path):
    command = [sys.executable, "-c", INTERRUPTED, graphs("float32"), tmp_path / "e.plan"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS)
    assert done.stdout.strip() == "interrupted", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_ignored_settings_are_noted(graphs, tmp_path):
    config = BuildConfig(timing_cache=str(tmp_path / "cache"), optimization_level=2)
    notes = " ".join(build_engine(graphs("float32"), tmp_path / "e.plan", "rtx", config).notes)
    assert "a timing cache has no effect" in notes and "little effect" in notes
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("settings, words", [
    ({"version_compatible": True}, "no --version-compatible: .*lean runtime"),
    ({"hardware_compatible": True}, "no --hardware-compatible"),
    ({"compute_capabilities": ("9.0",)}, "builds for compute capability 8.0, .*not 9.0"),
    ({"compute_capabilities": ("7.5",)}, "leave 7.5 out"),
    ({"workspace_mib": 0.5}, "No implementation fits into --workspace 0.5 MiB; raise it"),
    *([] if gpu() else [({"strip_weights": True}, "needs a GPU to build with --strip-weights"),
                        ({"refittable": True}, "needs a GPU to build with --refittable")]),
])
def test_impossible_settings_are_refused_in_one_sentence(graphs, tmp_path, settings, words):
    with pytest.raises(ConfigError, match=words) as caught:
        build_engine(graphs("float32"), tmp_path / "e.plan", "rtx", BuildConfig(**settings))
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


@needs_modelopt
def test_a_gpu_without_the_graphs_data_type_is_refused(graphs, tmp_path):
    with pytest.raises(ConfigError, match=r"lacks a data type of this graph .*fp8.*change --compute-capability"):
        build_engine(graphs("float8"), tmp_path / "e.plan", "rtx", BuildConfig(compute_capabilities=("8.6",)))


def foreign(path, nodes, constants=(), shape=("batch", 3, 8, 8)):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants]
    graph = helper.make_graph(nodes, "g", [value], [result], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))
    return path


@pytest.mark.parametrize("nodes, constants, words", [
    ([helper.make_node("StringNormalizer", ["x"], ["y"], name="blocks.3.attn/Odd")], (),
     r"does not take the operator StringNormalizer of block 3 attention \(blocks.3.attn/Odd\)"),
    ([helper.make_node("Frob", ["x"], ["y"], name="blocks.3.mlp/Odd", domain="mine")], (),
     "does not take the operator Frob of block 3 MLP"),
    ([helper.make_node("Flatten", ["x"], ["f"]),
      helper.make_node("TopK", ["f", "k"], ["y", "i"], name="selector.0/TopK")], [("k", [4000])],
     r"token selection 0 \(selector.0/TopK\) of .* keeps 4000 tokens, .*at most 3840"),
    ([helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
      helper.make_node("Add", ["h", "x"], ["y"], name="blocks.2/Add")], (),
     r"The types in block 2 \(blocks.2/Add\) of .*Half and Float.*dyvit export --fp16"),
    ([helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
      helper.make_node("MatMul", ["h", "x"], ["y"], name="product")], (), r"The types in node 'product' of .*Half"),
])
def test_graphs_that_cannot_be_built_are_refused_by_their_part(tmp_path, nodes, constants, words):
    graph = foreign(tmp_path / "odd.onnx", nodes, constants, shape=("batch", 3, 64, 64))
    with pytest.raises(ExportError, match=words) as caught:
        build_engine(graph, tmp_path / "e.plan", "rtx")
    assert "\n" not in str(caught.value) and not (tmp_path / "e.plan").exists()


RELU = [helper.make_node("Relu", ["x"], ["y"], name="relu")]


def test_any_graph_with_a_free_batch_can_be_built(tmp_path):
    report = build_engine(foreign(tmp_path / "g.onnx", RELU), tmp_path / "e.plan", "rtx")
    assert report.facts.model is None and report.facts.inputs == {"x": ["float32", [None, 3, 8, 8]]}


def test_a_graph_with_a_fixed_batch_has_that_profile_only(tmp_path):
    graph = foreign(tmp_path / "g.onnx", RELU, shape=(4, 3, 8, 8))
    assert build_engine(graph, tmp_path / "e.plan", "rtx").facts.profiles == (BatchProfile(4, 4, 4),)
    with pytest.raises(ConfigError, match="batch is fixed at 4; leave out --batch"):
        build_engine(graph, tmp_path / "e.plan", "rtx", BuildConfig((BatchProfile(1, 2, 3),)))


def test_other_free_dimensions_are_refused(tmp_path):
    graph = foreign(tmp_path / "g.onnx", RELU, shape=("batch", 3, "height", 8))
    with pytest.raises(ConfigError, match="free dimensions besides the batch"):
        build_engine(graph, tmp_path / "e.plan", "rtx")


def test_a_full_disk_is_one_sentence_and_leaves_the_old_engine(graphs, tmp_path, monkeypatch):
    build_engine(graphs("float32"), tmp_path / "e.plan", "rtx")
    before = (tmp_path / "e.plan").read_bytes(), sidecar_path(tmp_path / "e.plan").read_text()
    monkeypatch.setattr(engine.sidecar, "json_text", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(ArtifactError, match=r"could not be written .*No space left.*free space"):
        build_engine(graphs("float32"), tmp_path / "e.plan", "rtx", BuildConfig(TWO))
    assert before == ((tmp_path / "e.plan").read_bytes(), sidecar_path(tmp_path / "e.plan").read_text())
    assert len(list(tmp_path.iterdir())) == 2


def test_a_missing_library_names_its_pip_line_and_has_no_fallback(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(build_module, "gpu", lambda: None)
    with pytest.raises(MissingDependency, match=r"TensorRT is not installed.*install 'dyvit-deploy\[trt\]'.*NVIDIA's "
                                                "own package index.*--format rtx"):
        build_engine(tiny_graph(tmp_path), tmp_path / "e.plan", "trt")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingDependency, match=r"TensorRT for RTX is not installed.*'dyvit-deploy\[rtx\]'"):
        build_engine(tiny_graph(tmp_path), tmp_path / "e.plan", "rtx")


@pytest.mark.parametrize("version, words", [("10.11.0.33", r"10\.11\.0\.33 is too old; install 10\.12 or later"),
                                            (None, "does not start")])
def test_a_library_that_is_old_or_broken_is_refused(tmp_path, monkeypatch, version, words):
    library = type(sys)("tensorrt")
    if version:
        library.__version__ = version
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    with pytest.raises(BackendError, match=words):
        build_engine(tiny_graph(tmp_path), tmp_path / "e.plan", "trt")


def test_the_plan_of_a_build_needs_no_library_and_writes_nothing(graphs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    plan = plan_build(graphs("float32"), tmp_path / "e.plan", "trt", BuildConfig(TWO, 512.0))
    assert any("throughput: batch 8 to 64, tuned for 32, at most 0.8 MiB" in step for step in plan.steps)
    assert plan.commands[0].startswith("trtexec --onnx=") and "--memPoolSize=workspace:512M" in plan.commands[0]
    assert list(tmp_path.iterdir()) == []


def test_the_printed_polygraphy_line_builds_an_engine(graphs, tmp_path):
    pytest.importorskip("polygraphy", reason="Polygraphy is missing: pip install 'dyvit-deploy[calib]'")
    config = BuildConfig(TWO, 256.0, compute_capabilities=("8.9",))
    line = plan_build(graphs("float32"), tmp_path / "e.plan", "rtx", config).commands[1]
    setting, *words = shlex.split(line, comments=True)
    assert words[0] == "polygraphy"
    command = [sys.executable, "-c", "from polygraphy.tools import main; main()", *words[1:]]
    name, value = setting.split("=")
    subprocess.run(command, env=os.environ | {name: value}, check=True, capture_output=True)
    assert (tmp_path / "e.plan").read_bytes()[:4] == b"vtrt"


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.usefixtures("quick_export")
def test_a_checkpoint_becomes_an_engine_in_one_call(tmp_path, precision):
    if precision != "float32":
        pytest.importorskip("modelopt", reason="ModelOpt is missing: pip install 'dyvit-deploy[calib]'")
    config = DeployConfig("rtx", ExportConfig(with_tokens=True), PrecisionConfig(precision),
                          build=BuildConfig((BatchProfile(1, 2, 4),)))
    report = export_artifact(tiny_checkpoint(tmp_path), tmp_path / "e.plan", config)
    assert report and report.path == str(tmp_path / "e.plan")
    facts = read_sidecar(tmp_path / "e.plan")
    assert facts.model.precision == precision and facts.model.parent["file"] == "tiny.safetensors"
    assert facts.source["sha256"] and "--format rtx" in facts.rebuild and "--batch 1:2:4" in facts.rebuild
    assert json.dumps(report.to_json()) and report.table()


@needs_modelopt
@pytest.mark.usefixtures("quick_export")
def test_a_rejected_graph_is_kept_and_no_engine_is_built(tmp_path, monkeypatch):
    from dyvit_deploy.deploy import gate
    compare = gate.compare

    def failing(*arguments):
        report = compare(*arguments)
        batches = tuple(dataclasses.replace(batch, failures=("bad",)) for batch in report.batches)
        return dataclasses.replace(report, batches=batches)
    monkeypatch.setattr(gate, "compare", failing)
    config = DeployConfig("rtx", precision=PrecisionConfig("float16"))
    report = export_artifact(tiny_checkpoint(tmp_path), tmp_path / "e.plan", config)
    assert not report and report.engine is None and report.path == str(tmp_path / "e.rejected.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.rejected.onnx", "tiny.safetensors"]


BUILD = """
import json, sys, time
from dyvit_deploy.engine.build import build_engine
from dyvit_deploy.machine.hardware import peak_mib
started = time.process_time()
build_engine(sys.argv[1], sys.argv[2], "rtx")
print(json.dumps([time.process_time() - started, peak_mib()]))
"""


def processor_seconds(model, images):
    """What PyTorch takes for so many images on one core: how fast the machine is counts here as it does there."""
    batch, threads = torch.zeros(32, 3, 224, 224), torch.get_num_threads()
    torch.set_num_threads(1)
    started = time.process_time()
    with torch.inference_mode():
        model(batch)
    torch.set_num_threads(threads)
    return (time.process_time() - started) * images / len(batch)


@pytest.mark.slow
def test_deit_s_is_built_with_the_work_of_160_images_and_4_gib(tmp_path):
    """Ten seconds, where 16 images a second are classified."""
    model = DynamicViT(zoo.get("deit-s"), PruneConfig.from_ratio(0.7, (3, 6, 9))).eval()
    export_model(model, ArtifactFacts(model.config, PruneConfig.from_ratio(0.7, (3, 6, 9))), tmp_path / "m.onnx")
    command = [sys.executable, "-c", BUILD, tmp_path / "m.onnx", tmp_path / "e.plan"]
    seconds, mib = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert seconds <= processor_seconds(model, 160) and (mib or 0) <= 4096
    assert read_sidecar(tmp_path / "e.plan").outputs == {"logits": ["float32", [None, 1000]]}
