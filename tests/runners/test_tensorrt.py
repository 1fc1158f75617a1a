"""Engines from build to bench, with a fake library and a fake GPU."""
import contextlib
import json
import signal
from types import SimpleNamespace as Thing

import numpy as np
import pytest
from fake_gpu import (
    CARD,
    CONV,
    KEPT,
    NEW,
    OLD,
    QKV,
    RTX,
    HostCuda,
    agrees,
    answer,
    engine,
    graph,
    images,
    install,
    opened,
)
from fake_tensorrt import CLASSES, ENUMERATIONS, Api, make
from onnx import TensorProto as T

from dyvit_deploy.bench import run as bench
from dyvit_deploy.config import EngineRunConfig, LoadConfig
from dyvit_deploy.deploy.dense import benchmark
from dyvit_deploy.engine import build, preflight
from dyvit_deploy.engine.config import BatchProfile, BuildConfig
from dyvit_deploy.engine.sidecar import BY_GRAPH, ON_DEVICE, read_sidecar, sidecar_path
from dyvit_deploy.errors import ArtifactError, BackendError, ConfigError, ExportError
from dyvit_deploy.runners import tensorrt as runners
from dyvit_deploy.runners.base import run_in_batches

BUSY = {"sm_mhz_median": 1755, "held_back": {}}


@pytest.fixture(params=[OLD, NEW])
def trt(request, monkeypatch):
    library = install(monkeypatch, request.param)
    yield library
    assert library.unknown == library.removed_touched == []


def test_the_fake_has_no_name_that_the_real_library_lacks():
    real, fake = pytest.importorskip("tensorrt_rtx"), make(RTX)
    assert len({int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED) for library in (real, fake)}) == 1
    for name in (*ENUMERATIONS, *(cls.__name__ for cls in CLASSES)):
        classes = [cls for cls in getattr(fake, name).__mro__ if cls not in (Api, object)]
        ours = {n for cls in classes for n in vars(cls) if not n.startswith("_")}
        ours -= {"library", "owner", "writable"}
        assert ours | set(getattr(fake, name).writable) <= set(dir(getattr(real, name))), name


@pytest.mark.parametrize("version", [OLD, NEW])
def test_the_fake_refuses_names_that_were_removed(version):
    library = make(version)
    assert hasattr(library.BuilderFlag, "FP16") is hasattr(library, "IInt8Calibrator") is (version == OLD)
    assert not hasattr(library.Builder(None), "build_engine")
    with pytest.raises(AttributeError):
        library.IBuilderConfig().max_workspace_size = 1
    assert library.removed_touched == ["BuilderFlag.FP16", "tensorrt.IInt8Calibrator"]
    assert library.unknown == ["Builder.build_engine", "IBuilderConfig.max_workspace_size"]


@pytest.mark.parametrize("config, expected", [
    (BuildConfig(), {"flags": [], "level": 3}),
    (BuildConfig(tf32=True), {"flags": ["TF32"]}),
    (BuildConfig(refittable=True), {"flags": ["REFIT"]}), (BuildConfig(strip_weights=True), {"flags": ["STRIP_PLAN"]}),
    (BuildConfig(hardware_compatible=True), {"hardware": "AMPERE_PLUS"}),
    (BuildConfig(optimization_level=5, workspace_mib=64), {"level": 5, "pools": {"WORKSPACE": 64 << 20}}),
    (BuildConfig((BatchProfile(1, 1, 1, "a"), BatchProfile(2, 8, 16, "b"))), {"profiles": [
        {"images": [[batch, 3, 32, 32] for batch in sizes]} for sizes in ((1, 1, 1), (2, 8, 16))]}),
])
def test_every_setting_reaches_the_library_and_the_engine_is_read_back(trt, tmp_path, config, expected):
    facts = read_sidecar(engine(tmp_path, config))
    assert {key: trt.built[0][key] for key in expected} == expected
    assert facts.verified == ON_DEVICE and facts.products[QKV] == "float32"
    assert trt.network_flags == [1 << (1 if trt.major == 10 else 0)]
    assert facts.builder["version"] == trt.__version__ and facts.target["gpu"] == "Fake GPU"


def test_compute_capabilities_reach_tensorrt_for_rtx(monkeypatch, tmp_path):
    rtx = install(monkeypatch, RTX)
    path = engine(tmp_path, BuildConfig(compute_capabilities=("8.9", "12.0")), "rtx")
    assert rtx.built[0]["capabilities"] == ["SM89", "SM120"] and rtx.unknown == []
    assert read_sidecar(path).target["compute_capabilities"] == ["8.9", "12.0"]
    with pytest.raises(ConfigError, match=r"capability 8\.0, 8\.6, 8\.9, 12\.0, 12\.1, not 9\.0"):
        engine(tmp_path, BuildConfig(compute_capabilities=("9.0",)), "rtx")


def test_an_engine_without_listed_types_does_not_count_as_verified(trt, tmp_path):
    trt.tells_types = False
    report = build.build_engine(graph(tmp_path), tmp_path / "tiny.plan", "trt")
    assert report.facts.verified == BY_GRAPH and report.facts.untold == tuple(report.facts.products)
    assert any("does not tell the precision of 2 of 2 matrix products" in note for note in report.notes)


def test_a_version_compatible_engine_runs(trt, tmp_path):
    path, feed = engine(tmp_path, BuildConfig(version_compatible=True)), images(2)
    assert trt.built[0]["flags"] == ["VERSION_COMPATIBLE"] and agrees(opened(path).infer(feed), feed)


def test_a_version_compatible_engine_is_read_back(trt, tmp_path):
    assert read_sidecar(engine(tmp_path, BuildConfig(version_compatible=True))).verified == ON_DEVICE


def test_builds_share_a_timing_cache(trt, tmp_path):
    cache = tmp_path / "cache"
    cache.write_text('["of another"]')
    engine(tmp_path, BuildConfig(timing_cache=str(cache)))
    assert json.loads(cache.read_text()) == [QKV, "of another", CONV]


def test_ctrl_c_stops_the_build_and_nothing_is_written(trt, tmp_path):
    def watch(step):
        if step.phase == "Timing kernels" and step.step == 1:
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build.build_engine(graph(tmp_path), tmp_path / "tiny.plan", "trt", watch=watch)
    assert trt.built == [] and [p.name for p in tmp_path.iterdir()] == ["tiny.onnx"]


@pytest.mark.parametrize("node, part", [(QKV, "block 1 attention"), (CONV, "patch embedding")])
def test_products_wider_than_requested_are_an_error(trt, tmp_path, node, part):
    trt.widened = {node}
    with pytest.raises(ExportError, match=rf"^1 of 2 .*: {part} \({node}\) asked float16, became float32; build it "
                                          "with --allow-precision-fallback .*; nothing was written"):
        engine(tmp_path, inside=T.FLOAT16)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.onnx"]


@pytest.mark.parametrize("kind", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_an_engine_gives_logits_and_kept_tokens_in_order(trt, tmp_path, kind, cuda_graph):
    cuda = HostCuda()
    with opened(engine(tmp_path, input=kind), cuda, cuda_graph=cuda_graph) as runner:
        assert (runner.input.dtype, runner.facts.keep_counts, runner.label) == (kind, KEPT, "TensorRT cuda")
        for feed in (images(batch, kind) for batch in (1, 3, 3, 32)):
            assert agrees(runner.infer(feed), feed)
    assert (cuda.captures, cuda.replays) == ((3, 4) if cuda_graph else (0, 0))
    # Closing twice is allowed.
    runner.close()


def test_a_runner_does_all_work_on_its_own_cuda_stream(trt, tmp_path):
    cuda = HostCuda()
    opened(engine(tmp_path), cuda).infer(images(1))
    assert set(cuda.work[1:]) == {("empty", 100), ("zero_", 100), ("copy_", 100)} and set(trt.launches) == {100}


def test_batches_that_no_profile_takes_are_filled_up_to_the_next_that_one_does_and_cut(trt, tmp_path):
    profiles = BatchProfile(32, 32, 32, "c"), BatchProfile(4, 4, 8, "a"), BatchProfile(16, 16, 16, "b")
    runner = opened(engine(tmp_path, BuildConfig(profiles)))
    for batch, size in ((3, 4), (9, 16), (15, 16), (17, 32), (4, 4), (8, 8)):
        assert agrees(runner.infer(images(batch)), images(batch)) and runner._streams[0].shape[0] == size
    # One entry per prepared size: 4, 16, 32, 4, 8.
    assert trt.profiles_chosen == [1, 2, 0, 1, 1]


def test_batches_above_every_profile_are_an_error_and_timing_fills_nothing_up(trt, tmp_path):
    runner = opened(engine(tmp_path, BuildConfig((BatchProfile(4, 8, 8, "a"), BatchProfile(16, 16, 16, "b")))))
    known = r"Batch {0} .*\(4 to 8, 16 to 16\).* --batch {1}:{0}:{2}\."
    with pytest.raises(BackendError, match=known.format(17, 4, 17)):
        runner.infer(images(17))
    for batch, least in ((9, 4), (3, 3)):
        for call, given in ((runner.timed_call, (images(batch), False)), (runner.check_batch, (batch,))):
            with pytest.raises(BackendError, match=known.format(batch, least, 16)):
                call(*given)


def test_the_profile_tuned_nearest_is_chosen(trt, tmp_path):
    profiles = BatchProfile(1, 1, 8, "a"), BatchProfile(1, 8, 8, "b"), BatchProfile(1, 32, 32, "c")
    runner = opened(engine(tmp_path, BuildConfig(profiles)))
    for batch in (2, 6, 9):
        assert agrees(runner.infer(images(batch)), images(batch))
    assert trt.profiles_chosen == [0, 1, 2]


def test_a_fixed_batch_is_run_at_that_size(trt, tmp_path):
    runner, photos = opened(engine(tmp_path, batch=4, input="uint8")), images(6, "uint8")
    assert runner.profiles == (BatchProfile(4, 4, 4, "0"),)
    assert np.array_equal(run_in_batches(runner, photos, 1).logits, answer(photos)["logits"])


def test_a_plan_without_a_sidecar_is_deserialized_only_when_trusted(trt, tmp_path, monkeypatch):
    path = engine(tmp_path)
    sidecar_path(path).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(runners, "load_engine", lambda *_: pytest.fail("the plan was loaded"))
        with pytest.raises(ArtifactError, match=r"has no tiny\.plan\.json, .* native code, .*--trust only"):
            opened(path)
    with opened(path, trust=True) as runner:
        assert runner.facts is None and runner.infer(images(2)).kept == ()


def test_changed_plans_are_opened_only_when_trusted(trt, tmp_path):
    path = engine(tmp_path, BuildConfig(version_compatible=True))
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ArtifactError, match="--trust"):
        opened(path)
    runner = opened(path, trust=True)
    assert runner.facts is None and np.array_equal(runner.infer(images(1)).logits, answer(images(1))["logits"])


def test_an_incomplete_plan_is_refused_trusted_or_not(trt, tmp_path):
    path = engine(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:-7])
    for trust in (False, True):
        with pytest.raises(ArtifactError, match=rf"has {len(content) - 7} of the {len(content)} bytes"):
            opened(path, trust=trust)


@pytest.mark.parametrize("place, value", [
    (("target",), {}), (("inputs",), [1]), (("products",), [1]), (("builder", "version"), 1)])
def test_a_sidecar_with_fields_of_another_type_is_one_sentence(trt, tmp_path, place, value):
    path = engine(tmp_path)
    facts = json.loads(sidecar_path(path).read_text())
    owner = facts[place[0]] if place[1:] else facts
    owner[place[-1]] = value
    sidecar_path(path).write_text(json.dumps(facts))
    for call in (opened, read_sidecar, preflight.preflight):
        with pytest.raises(ArtifactError, match=r"^[^\n]*tiny\.plan\.json does not describe [^\n]*; build the engine"):
            call(path)


def test_a_plan_that_does_not_load_is_one_sentence_with_what_to_do(trt, tmp_path):
    path = engine(tmp_path)
    trt.refusal = "Error Code 1: Serialization (Magic tag does not match)"
    with pytest.raises(BackendError, match=r"cannot load .*Magic tag .*: dyvit build .*tiny\.onnx --format trt -o"):
        opened(path)
    trt.refusal, trt.gives_contexts = None, False
    with pytest.raises(BackendError, match=r"^TensorRT cannot prepare tiny\.plan [^\n]*$"):
        opened(path)


def test_too_little_memory_names_a_batch_that_would_fit(trt, tmp_path):
    path, trt.context_mib = engine(tmp_path), 300.0
    assert len(opened(path, HostCuda(600), streams=2)._streams) == 2
    with pytest.raises(BackendError, match=r"needs 600 MiB .* 599 are free; .*--batch 1:15:31"):
        opened(path, HostCuda(599), streams=2)


def test_memory_that_runs_out_is_one_sentence_and_smaller_batches_still_run(trt, tmp_path):
    runner = opened(engine(tmp_path), HostCuda(fits=8))
    with pytest.raises(BackendError, match=r"^The GPU's memory does not suffice for tiny\.plan at batch 9; [^\n]*$"):
        runner.infer(images(9))
    assert agrees(runner.infer(images(8)), images(8))


def test_a_failed_run_reports_its_own_reason(trt, tmp_path):
    runner = opened(engine(tmp_path))
    runner.infer(images(1))
    trt.breaks = True
    for call in (lambda: runner.infer(images(1)), lambda: runner.gpu_ms(images(1), 1)):
        with pytest.raises(BackendError, match=r"not run tiny\.plan at batch 1 .*illegal memory access"):
            call()
    trt.breaks, trt.compute = False, lambda feed: (_ for _ in ()).throw(RuntimeError("CUDA error: misaligned\nmore"))
    with pytest.raises(BackendError, match=r"\(CUDA error: misaligned\)"):
        runner.infer(images(1))


@pytest.mark.parametrize("transfers, copies", [(False, 0), (True, 1 + 4)])
def test_a_timed_call_runs_every_stream_and_copies_only_on_request(trt, tmp_path, transfers, copies):
    cuda, feed = HostCuda(), images(2)
    runner = opened(engine(tmp_path), cuda, streams=2)
    call = runner.timed_call(feed, transfers)
    cuda.work.clear(), trt.launches.clear()
    call()
    assert len({id(stream.program._context) for stream in runner._streams}) == 2 and trt.launches == [100, 101]
    assert sorted(cuda.work) == [("copy_", 100)] * copies + [("copy_", 101)] * copies
    assert all(np.array_equal(stream.download(["logits"])[0], answer(feed)["logits"]) for stream in runner._streams)


def test_graphs_and_the_runtime_cache_of_rtx_are_its_own(monkeypatch, tmp_path):
    rtx, cuda, cache = install(monkeypatch, RTX), HostCuda(), tmp_path / "kernels"
    path = engine(tmp_path, format="rtx")
    for content in (b"kernel ", b"kernel kernel "):
        with opened(path, cuda, cuda_graph=True, runtime_cache=str(cache)) as runner:
            assert agrees(runner.infer(images(2)), images(2))
        assert cache.read_bytes() == content
    assert {settings.dynamic_shapes_kernel_specialization_strategy.name for settings in rtx.contexts} == {"EAGER"}
    assert cuda.captures == 0 and rtx.contexts[-1].cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
    with pytest.raises(ArtifactError, match="is a folder"):
        opened(path, cuda, runtime_cache=str(tmp_path))


def test_a_runtime_cache_is_written_while_engine_and_runtime_are_there(monkeypatch, tmp_path):
    rtx, alive = install(monkeypatch, RTX), []
    runner = opened(engine(tmp_path, format="rtx"), runtime_cache=str(tmp_path / "kernels"))
    monkeypatch.setattr(rtx.IRuntimeCache, "serialize", lambda self: alive.append(
        (runner._engine is not None, runner._runtime is not None, len(runner._streams))) or memoryview(b"k"))
    runner.close()
    assert alive == [(True, True, 1)]


def test_an_engine_whose_graph_cannot_be_captured_runs_without_and_reports_it(trt, tmp_path, monkeypatch):
    def fail(self, launch, stream):
        raise RuntimeError("operation failed due to a previous error during capture\nmore")
    monkeypatch.setattr(HostCuda, "capture", fail)
    with opened(engine(tmp_path), cuda_graph=True) as runner:
        assert agrees(runner.infer(images(2)), images(2)) and runner.cuda_graph is False
        assert runner.capture_error == "operation failed due to a previous error during capture"
    with opened(engine(tmp_path)) as runner:
        runner.infer(images(2))
        assert runner.cuda_graph is None and runner.capture_error == ""


def test_a_captured_engine_reports_its_cuda_graph(trt, tmp_path):
    with opened(engine(tmp_path), cuda_graph=True, streams=2) as runner:
        runner.timed_call(images(2), transfers=False)()
        assert runner.cuda_graph is True


def test_a_runtime_cache_is_not_for_tensorrt(trt, tmp_path):
    with pytest.raises(ConfigError, match="no runtime cache"):
        opened(engine(tmp_path), runtime_cache=str(tmp_path / "c"))


def test_bench_counts_streams_and_compares_engines(trt, tmp_path, monkeypatch):
    monkeypatch.setattr(runners, "Cuda", HostCuda)
    monkeypatch.setattr(bench, "gpu_facts", lambda precisions: {"matmul_peak_tflops": {"float32": 1.0}, "clocks": []})
    monkeypatch.setattr(bench, "ClockSampler", lambda: contextlib.nullcontext(Thing(summary=lambda: BUSY)))
    ours, other = engine(tmp_path), engine(tmp_path, facts=False, name="other")
    sidecar_path(other).unlink()
    report = benchmark(
        [ours], bench.BenchConfig(batches=(2, 3), seconds=0.01, warmup=1, min_runs=3, memory=False, baseline=other),
        LoadConfig(engine=EngineRunConfig(streams=2, trust=True)))
    theirs, timing, *rest = report.timings
    assert (theirs.artifact, timing.artifact, timing.streams) == ("other.plan", "tiny.plan", 2)
    assert timing.images_per_sec == pytest.approx(2 * 2e3 / timing.latency_ms_p50)
    assert timing.speedup == pytest.approx(theirs.latency_ms_p50 / timing.latency_ms_p50)
    assert set(timing.gpu_ms_p50) == {"upload", "compute", "download"} and min(timing.gpu_ms_p50.values()) > 0
    assert timing.tflops == pytest.approx(2 * timing.gmacs * 2 / timing.gpu_ms_p50["compute"])
    assert theirs.gpu_ms_p50 and theirs.tflops is theirs.gmacs is None and len(rest) == 2
    assert report.gpu["clocks"] == [BUSY] * 2
    assert report.table() and json.dumps(report.to_json())


@pytest.mark.parametrize("version, card, system, settings, words", [
    ("11.4.0.106", "9.0", "linux", {}, None),
    ("11.4.0.106", "8.9", "linux", {}, r"built for Fake GPU \(compute capability 9\.0\), and Fake GPU has 8\.9"),
    ("11.4.0.106", "8.9", "linux", {"hardware_compatible": True}, None),
    ("11.4.0.106", "7.5", "linux", {"hardware_compatible": True}, r"has 7\.5"),
    ("11.5.0.1", "9.0", "linux", {}, r"built by TensorRT 11\.4\.0\.106, and 11\.5\.0\.1 is installed"),
    ("11.5.0.1", "9.0", "linux", {"version_compatible": True}, None),
    ("11.3.0.1", "9.0", "linux", {"version_compatible": True}, r"11\.3\.0\.1 is installed"),
    ("11.4.0.106", "9.0", "windows", {}, "built for linux, and this is windows"),
    ("11.4.0.106", "9.0", "linux", {"strip_weights": True}, "weights were left out"),
])
def test_reasons_against_loading_are_found_first(monkeypatch, tmp_path, version, card, system, settings, words):
    monkeypatch.setattr(build, "system", lambda: "linux")
    install(monkeypatch, NEW)
    path = engine(tmp_path, BuildConfig(**settings))
    install(monkeypatch, version, CARD._replace(compute_capability=card))
    monkeypatch.setattr(preflight, "system", lambda: system)
    if words is None:
        assert preflight.preflight(path) and agrees(opened(path).infer(images(1)), images(1))
    else:
        with pytest.raises(BackendError, match=rf"cannot load here: .*{words}.*; "):
            opened(path)
    assert preflight.preflight(path).notes == ()


def test_version_compatible_engines_of_10_load_in_11(monkeypatch, tmp_path):
    install(monkeypatch, OLD)
    path = engine(tmp_path, BuildConfig(version_compatible=True))
    install(monkeypatch, NEW)
    assert preflight.preflight(path)
