import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import fake_runner, needs_openvino, tiny_checkpoint, tiny_model

from dyvit_deploy.bench import run as bench_module, timing as timing_module
from dyvit_deploy.bench.baselines import TimedArtifact, with_baselines
from dyvit_deploy.bench.config import BenchConfig
from dyvit_deploy.bench.process import make_feed, measure_start
from dyvit_deploy.bench.report import Timing
from dyvit_deploy.bench.run import faster_here, time_artifacts
from dyvit_deploy.bench.timing import TURN, alternate, is_stable
from dyvit_deploy.config import KeepRequest, LoadConfig
from dyvit_deploy.deploy.config import DeployConfig
from dyvit_deploy.deploy.dense import benchmark
from dyvit_deploy.deploy.pipeline import export_artifact
from dyvit_deploy.errors import ConfigError
from dyvit_deploy.export.config import ExportConfig
from dyvit_deploy.export.onnx import export_onnx
from dyvit_deploy.runners.open import open_runner

QUICK = dict(seconds=0.05, warmup=1, min_runs=3, memory=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    checkpoint = tiny_checkpoint(folder)
    export_onnx(checkpoint, folder / "tiny.onnx")
    export_onnx(checkpoint, folder / "raw.onnx", ExportConfig(input="uint8"))
    return checkpoint, folder / "tiny.onnx", folder / "raw.onnx"


@pytest.mark.parametrize("which", [0, 1, 2])
def test_the_dense_backbone_is_timed_beside_the_artifact(files, which):
    report = benchmark([files[which]], BenchConfig(batches=(1, 2), **QUICK))
    # PyTorch runs a checkpoint without rewrites.
    baselines = ["dense tiny", *(["dense tiny, rewritten"] if which else [])]
    assert [(t.artifact, t.batch) for t in report.timings] == [
        (name, batch) for batch in (1, 2) for name in (*baselines, files[which].name)]
    dense, pruned = report.timings[0], report.timings[len(baselines)]
    expected = report.timings[1].latency_ms_p50 / pruned.latency_ms_p50 if which else None
    assert pruned.speedup_rewritten == (pytest.approx(expected) if which else None)
    assert dense.backend == pruned.backend and dense.speedup is None and dense.ceiling is None
    assert pruned.speedup == pytest.approx(dense.latency_ms_p50 / pruned.latency_ms_p50)
    assert pruned.ceiling == pytest.approx(dense.gmacs / pruned.gmacs) and pruned.ceiling > 1
    assert pruned.latency_ms_p50 <= pruned.latency_ms_p90 <= pruned.latency_ms_p99
    assert pruned.images_per_sec == pytest.approx(1e3 / pruned.latency_ms_p50)
    assert pruned.runs == dense.runs >= 3 and pruned.peak_rss_mib is None
    json.dumps(report.to_json(), allow_nan=False)


def test_a_given_baseline_replaces_the_dense_backbone(files):
    report = benchmark([files[1]], BenchConfig(batches=(1,), baseline=files[2], **QUICK))
    assert [t.artifact for t in report.timings] == ["raw.onnx", "tiny.onnx"]
    assert report.timings[1].ceiling == pytest.approx(1.0)


def test_foreign_models_are_timed_with_a_note_about_the_missing_baseline(tmp_path):
    import onnx
    from onnx import helper
    x, y = (helper.make_tensor_value_info(n, 1, s) for n, s in (("x", ["b", 3, 4, 4]), ("y", ["b", 3])))
    axes = helper.make_tensor("axes", 7, [2], [2, 3])
    graph = helper.make_graph([helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)], "g", [x], [y], [axes])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "f.onnx")
    report = benchmark([tmp_path / "f.onnx"], BenchConfig(batches=(1,), **QUICK))
    assert len(report.timings) == 1 and report.timings[0].gmacs is None
    assert any("--baseline FILE" in note for note in report.notes)


def test_candidates_take_turns_in_alternating_order():
    order = []
    samples = alternate([lambda: order.append("a"), lambda: order.append("b")],
                        BenchConfig(warmup=0, min_runs=2 * TURN, seconds=1e-9))
    # The first run of a turn does not count.
    a, b = ["a"] * (1 + TURN), ["b"] * (1 + TURN)
    assert order == a + b + b + a and [len(s) for s in samples] == [2 * TURN] * 2


@pytest.fixture
def clock(monkeypatch):
    """Time that passes by itself only when a call lets it."""
    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now
    monkeypatch.setattr(timing_module, "time", found := Clock())
    return found


def test_timing_goes_on_until_it_is_stable(clock):
    def call():
        clock.now += 1e-3
    samples = alternate([call], BenchConfig(seconds=5, min_runs=10, stable=0.01))
    # The first turn that ends with 10 or more runs.
    assert len(samples[0]) == 12


def test_timing_of_what_never_settles_ends_with_its_time(clock):
    def call():
        clock.now += 0.01 + clock.now / 2                                  # slower and slower
    samples = alternate([call], BenchConfig(warmup=0, seconds=5, min_runs=3, stable=0.01))
    assert clock.now >= 5 and len(samples[0]) == 12                        # four rounds, the last of which passes 5 s


def test_looking_whether_the_times_are_stable_takes_no_time_of_its_own(clock, monkeypatch):
    """Each look sorts all times so far, which after every round of short calls would be most of the work."""
    sorted_times = []
    monkeypatch.setattr(timing_module, "is_stable", lambda times, width: sorted_times.append(len(times)))

    def call():
        clock.now += 1e-4
    [times] = alternate([call], BenchConfig(warmup=0, seconds=1, min_runs=10))
    assert len(times) > 5000 and sum(sorted_times) < 20 * len(times)
    assert sorted_times[0] < 10 + TURN and all(b <= 1.1 * a + TURN + 1 for a, b in zip(sorted_times, sorted_times[1:]))


def test_stability_is_about_the_median_not_the_tail():
    steady = [1.0] * 50 + [9.0] * 5
    assert is_stable(steady, 0.02)
    assert not is_stable(list(np.linspace(1, 2, 20)), 0.02)


def test_the_start_is_that_of_a_process_of_its_own(files):
    before = measure_start(str(files[1]), 1, LoadConfig(), "cpu", 1)
    # 760 MiB in this process, which must not be counted.
    ballast = np.ones(100_000_000)
    after = measure_start(str(files[1]), 1, LoadConfig(), "cpu", 1)
    assert 20 < before.peak_rss_mib < 2000
    assert abs(after.peak_rss_mib - before.peak_rss_mib) < 100 < ballast.nbytes / 2**20
    # The import of a library takes longer than a tiny model.
    assert before.load_ms > before.first_ms > 0


def test_a_start_that_fails_is_none_not_a_hang(tmp_path):
    assert measure_start(str(tmp_path / "missing.onnx"), 1, LoadConfig(), "cpu", 1) is None


def test_each_artifact_has_a_baseline_of_its_own_kind(files):
    report = benchmark([files[0], files[1]], BenchConfig(batches=(1,), **QUICK))
    assert [(t.artifact, t.backend) for t in report.timings] == [
        ("dense tiny", "PyTorch cpu"), ("dense tiny", "ONNX Runtime cpu"),
        ("dense tiny, rewritten", "ONNX Runtime cpu"), ("tiny.safetensors", "PyTorch cpu"),
        ("tiny.onnx", "ONNX Runtime cpu")]
    for pruned, dense in ((3, 0), (4, 1)):
        ratio = report.timings[dense].latency_ms_p50 / report.timings[pruned].latency_ms_p50
        assert report.timings[pruned].speedup == pytest.approx(ratio)


def test_dense_artifacts_in_the_list_serve_as_baselines(files, tmp_path):
    dense = LoadConfig(keep=KeepRequest(ratio=1.0))
    export_onnx(files[0], tmp_path / "plain.onnx", ExportConfig(without=("all",)), dense)
    export_onnx(files[0], tmp_path / "dense.onnx", load=dense)
    names = ["tiny.onnx", "plain.onnx", "dense.onnx"]
    report = benchmark([files[1], *(tmp_path / name for name in names[1:])], BenchConfig(batches=(1,), **QUICK))
    assert [t.artifact for t in report.timings] == names
    tiny, plain, rewritten = report.timings
    assert tiny.ceiling > 1 and tiny.speedup == pytest.approx(plain.latency_ms_p50 / tiny.latency_ms_p50)
    assert tiny.speedup_rewritten == pytest.approx(rewritten.latency_ms_p50 / tiny.latency_ms_p50)
    assert plain.speedup is None and rewritten.speedup and rewritten.speedup_rewritten is None


def test_a_graph_is_compared_with_a_dense_one_of_its_own_rewrites(tmp_path):
    _, facts = tiny_model()
    forms = {"all": ("split-predictor", "fold-scale", "read-block"), "some": ("split-predictor", "fold-scale"),
             "of dropping alone": ("split-predictor", "one-gather"), "none": ()}

    def artifact(name, forms, prune):
        runner = SimpleNamespace(name=name, facts=dataclasses.replace(facts, forms=forms, prune=prune), label="ort",
                                 backend="ONNX Runtime", precision="float32", input=SimpleNamespace(dtype="float32"))
        return TimedArtifact(runner, f"{name}.onnx", 1.0)

    def make(candidate, path, rewritten):
        made[path] = artifact(path.name, candidate.runner.facts.forms if rewritten else (), None)
        return path
    made: dict = {}
    candidates = [artifact(name, found, facts.prune) for name, found in forms.items()]
    with_baselines(candidates, None, tmp_path, lambda path, plain: made[path], make)
    everything, some, dropping, none = candidates
    assert len(made) == 3 and len({id(c.baseline) for c in candidates}) == 1
    assert everything.rewritten.runner.facts.forms == forms["all"]
    assert some.rewritten.runner.facts.forms == forms["some"]
    assert dropping.rewritten is none.rewritten is None and everything.rewritten.baseline is everything.baseline


def timing(name, precision, ms, backend="ONNX Runtime cpu", batch=8, gmacs=3.0, speedup=None, stand_in=False):
    return Timing(name, backend, precision, batch, ms, ms, ms, batch / ms, 10, True, None, gmacs, speedup, None,
                  stand_in)


def test_the_fastest_precision_is_named_and_a_slow_one_exposed():
    notes = faster_here([timing("dense x", "float32", 1, stand_in=True), timing("a.onnx", "float32", 10),
                         timing("b.onnx", "int8", 5), timing("h.onnx", "float16", 12),
                         timing("c.xml", "bfloat16", 20, "OpenVINO cpu")])
    assert notes == [
        "Batch 8: b.onnx (int8, ONNX Runtime cpu) is the fastest here, 2.00x a.onnx (float32, ONNX Runtime cpu).",
        "Batch 8: h.onnx (float16, ONNX Runtime cpu) is NOT faster than a.onnx (float32, ONNX Runtime cpu) here: "
        "0.83x."]
    assert faster_here([timing("a.onnx", "float32", 10), timing("b.onnx", "float32", 5)]) == []
    assert faster_here([timing("a.onnx", "float32", 10), timing("b.onnx", "int8", 12, gmacs=4.6)]) == []
    [alone] = faster_here([timing("b.onnx", "int8", 12, speedup=0.8)])
    assert "NOT faster than its baseline: 0.80x" in alone


@needs_openvino
def test_openvino_is_timed_against_its_own_dense_backbone(files, tmp_path):
    export_artifact(files[0], tmp_path / "m.xml", DeployConfig("openvino"))
    report = benchmark([tmp_path / "m.xml", files[1]], BenchConfig(batches=(1,), **QUICK))
    assert [(t.artifact, t.backend, t.precision) for t in report.timings] == [
        ("dense tiny", "OpenVINO cpu", "float32"), ("dense tiny, rewritten", "OpenVINO cpu", "float32"),
        ("dense tiny", "ONNX Runtime cpu", "float32"), ("dense tiny, rewritten", "ONNX Runtime cpu", "float32"),
        ("m.xml", "OpenVINO cpu", "float32"), ("tiny.onnx", "ONNX Runtime cpu", "float32")]


def test_feeds_fit_the_artifact(files):
    for path, dtype, shape in ((files[1], "float32", (3, 3, 32, 32)), (files[2], "uint8", (3, 32, 32, 3))):
        with open_runner(path) as runner:
            feed = make_feed(runner, 3)
            assert feed.dtype == dtype and feed.shape == shape


def test_a_fixed_batch_size_is_respected():
    with pytest.raises(ConfigError, match="pass --batch 4"):
        make_feed(fake_runner(np.zeros((4, 2)), batch=4), 8)


@pytest.mark.parametrize("values, words", [(dict(batches=(0,)), "at least 1"), (dict(batches=()), "at least 1"),
                                           (dict(seconds=0), "positive"), (dict(seconds=float("inf")), "positive"),
                                           (dict(stable=0), "positive"), (dict(stable=float("nan")), "positive"),
                                           (dict(threads=-1), "0 .all cores.")])
def test_impossible_settings_are_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        BenchConfig(**values)


def test_rows_that_did_not_settle_are_marked(files, monkeypatch):
    monkeypatch.setattr(bench_module, "is_stable", lambda *_: False)
    report = benchmark([files[1]], BenchConfig(batches=(1,), **QUICK))
    assert all(not t.stable for t in report.timings) and any("did not settle" in note for note in report.notes)


def test_without_a_maker_of_dense_models_a_pruned_artifact_has_no_baseline(files):
    report = time_artifacts([files[1]], BenchConfig(batches=(1,), **QUICK))
    assert [t.speedup for t in report.timings] == [None]
    assert any("has no dense baseline" in note for note in report.notes)
