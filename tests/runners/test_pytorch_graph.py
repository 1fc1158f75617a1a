"""Checkpoints as CUDA graphs of PyTorch, on a fake GPU; the last tests need a real one."""
import dataclasses

import numpy as np
import pytest
import torch
from fake_gpu import HostCuda
from helpers import ROOT, dyvit, tiny_checkpoint, tiny_images, tiny_model

from dyvit_deploy.bench import run as bench
from dyvit_deploy.bench.baselines import TimedArtifact, with_baselines
from dyvit_deploy.bench.config import BenchConfig
from dyvit_deploy.config import EngineRunConfig, KeepRequest, LoadConfig
from dyvit_deploy.deploy.dense import benchmark
from dyvit_deploy.errors import BackendError, ConfigError
from dyvit_deploy.model.forms import inference_form
from dyvit_deploy.runners import pytorch
from dyvit_deploy.runners.open import open_runner
from dyvit_deploy.runners.pytorch import PyTorchRunner

DEMO = ROOT / "dyvit_deploy" / "demo" / "digits-s.safetensors"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here to capture a graph on")


def runner(cuda, graph=True, dtype=torch.float32):
    model, facts = tiny_model()
    return PyTorchRunner(model.to(dtype), facts, graph=graph, cuda=cuda)


def test_each_batch_size_is_captured_once_and_replayed():
    cuda = HostCuda()
    replayed, eager = runner(cuda), runner(HostCuda(), graph=False)
    for batch in (1, 3, 3, 1):
        feed = tiny_images(batch, seed=batch).numpy()
        assert np.array_equal(replayed.infer(feed).logits, eager.infer(feed).logits)
    assert (cuda.captures, cuda.replays) == (3, 4) and replayed.cuda_graph is True and eager.cuda_graph is None


def test_a_timed_call_leaves_the_copies_out_by_default():
    cuda = HostCuda()
    # Copies: of the logits within the GPU, and to and from the host.
    for transfers, copies in ((False, 1), (True, 3)):
        call = runner(cuda).timed_call(tiny_images(2).numpy(), transfers)
        cuda.work.clear()
        call()
        assert [name for name, _ in cuda.work] == ["copy_"] * copies


def test_weights_that_another_stream_writes_are_waited_for_before_the_first_run():
    cuda = HostCuda()
    runner(cuda).infer(tiny_images(2).numpy())
    assert cuda.work[0] == ("synchronize", None) and ("synchronize", None) not in cuda.work[1:]


def test_phases_are_timed_by_events():
    assert {name: len(ms) for name, ms in runner(HostCuda()).gpu_ms(tiny_images(2).numpy(), 3).items()} == {
        "upload": 3, "compute": 3, "download": 3}
    with open_runner(DEMO, device="cpu") as on_cpu:
        assert on_cpu.gpu_ms(np.zeros((1, 3, 64, 64), np.float32), 3) == {}


def fail(self, launch, stream):
    self.captures += 1
    try:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")
    finally:
        raise RuntimeError("operation failed due to a previous error during capture")


def test_a_failed_capture_is_reported_and_the_model_runs_without(monkeypatch):
    monkeypatch.setattr(HostCuda, "capture", fail)
    cuda, feed = HostCuda(), tiny_images(2).numpy()
    replayed = runner(cuda)
    assert np.array_equal(replayed.infer(feed).logits, runner(HostCuda(), graph=False).infer(feed).logits)
    assert cuda.captures == 1 and replayed.cuda_graph is False
    assert replayed.capture_error == "operation not permitted when stream is capturing"


def test_memory_that_runs_out_is_no_failed_capture(monkeypatch):
    def fills(self, launch, stream):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    monkeypatch.setattr(HostCuda, "capture", fills)
    with pytest.raises(BackendError, match=r"run model at batch 2 \(CUDA out of memory\); try a smaller batch"):
        runner(HostCuda()).infer(tiny_images(2).numpy())


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_a_lower_precision_is_that_of_the_products_and_of_the_facts(name):
    lower = runner(HostCuda(), dtype=getattr(torch, name))
    feed = tiny_images(2).numpy()
    out = lower.infer(feed)
    assert lower.precision == name and lower.input.dtype == "float32" and out.logits.dtype == np.float32
    exact = runner(HostCuda()).infer(feed).logits
    assert 0 < np.abs(out.logits - exact).max() < (0.02 if name == "float16" else 0.2)


def test_float32_is_the_reference_on_any_device(monkeypatch):
    """Products and convolutions are guarded while the model runs, eager and in a graph."""
    seen = []
    model, facts = tiny_model()
    monkeypatch.setattr(type(model.backbone.norm), "forward", lambda self, x: seen.append(
        (torch.get_float32_matmul_precision(), torch.backends.cudnn.conv.fp32_precision)) or x)
    for graph in (False, True):
        PyTorchRunner(model, facts, graph=graph, cuda=HostCuda()).infer(tiny_images().numpy())
    assert len(seen) > 2 and set(seen) == {("highest", "ieee")}


def test_a_reference_is_not_opened_where_the_environment_rounds_it(monkeypatch):
    monkeypatch.setenv("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1")
    monkeypatch.setattr(pytorch, "torch_device", lambda name: torch.device("cuda"))
    with pytest.raises(BackendError, match="unset TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"):
        open_runner(DEMO)


def test_a_graph_runs_the_exact_rewrites_with_fused_attention():
    model, _ = tiny_model()
    form, names = inference_form(model, fused_attention=True)
    assert set(names) == {"split-predictor", "one-gather", "read-block"}
    assert all(module.fused_attn for module in form.modules() if hasattr(module, "fused_attn"))
    images = tiny_images(3)
    with torch.inference_mode():
        assert torch.allclose(form(images), model(images), atol=1e-5)


def test_logits_alone_are_those_of_the_full_answer():
    model, _ = tiny_model()
    with torch.inference_mode():
        assert torch.equal(model(tiny_images()), model.forward_pruned(tiny_images()).logits)


@pytest.fixture
def gpu(monkeypatch):
    """Opens runners on a fake GPU, which computes on the host."""
    real = PyTorchRunner.__init__

    def make(self, model, facts, name="model", *, graph=False, cuda=None):
        real(self, model, facts, name, graph=graph, cuda=HostCuda())
        self.device = "cuda"
    monkeypatch.setattr(PyTorchRunner, "__init__", make)
    monkeypatch.setattr(pytorch, "torch_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device=None, dtype=None: self._apply(
        lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor))
    monkeypatch.setattr(bench, "gpu_facts", lambda precisions: {"matmul_peak_tflops": {}, "clocks": []})


QUICK = BenchConfig((1, 2), seconds=0.01, warmup=1, min_runs=3, memory=False, device="cuda")


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_bench_times_a_checkpoint_as_a_graph_against_the_plain_dense_model(gpu, tmp_path, precision):
    load = LoadConfig(engine=EngineRunConfig(cuda_graph=True), precision=precision)
    report = benchmark([tiny_checkpoint(tmp_path)], QUICK, load)
    dense, pruned, *rest = report.timings
    assert (dense.artifact, pruned.artifact, len(rest)) == ("dense tiny", "tiny.safetensors", 2)
    assert {t.precision for t in report.timings} == {precision} and {t.cuda_graph for t in report.timings} == {True}
    assert set(pruned.gpu_ms_p50) == {"upload", "compute", "download"} and pruned.tflops > 0
    eager = benchmark([tiny_checkpoint(tmp_path)], QUICK).timings
    # The dense model is the plain one; the pruned one has the rewrites, and its operations are counted with them.
    assert dense.gmacs == eager[0].gmacs and pruned.gmacs < eager[1].gmacs and eager[1].cuda_graph is None
    assert report.gpu["clocks"] == [None, None]


def test_a_failed_capture_is_in_the_report_and_in_the_table(gpu, tmp_path, monkeypatch):
    from rich.console import Console
    monkeypatch.setattr(HostCuda, "capture", fail)
    report = benchmark([tiny_checkpoint(tmp_path)], QUICK, LoadConfig(engine=EngineRunConfig(cuda_graph=True)))
    assert {t.cuda_graph for t in report.timings} == {False}
    assert sum("ran without a CUDA graph, which could not be captured (operation not permitted" in note
               for note in report.notes) == 4
    console = Console(record=True, width=160)
    console.print(report.table())
    assert "CUDA graph failed" in " ".join(console.export_text().split())


@pytest.mark.parametrize("keep", [KeepRequest(ratio=0.5), KeepRequest(ratio=0.5, stages=(1, 2, 3))])
def test_the_dense_baseline_ignores_the_requested_schedule(tmp_path, keep):
    cpu = dataclasses.replace(QUICK, device="cpu", batches=(1,))
    dense, pruned = benchmark([tiny_checkpoint(tmp_path)], cpu, LoadConfig(keep=keep)).timings
    assert dense.gmacs > pruned.gmacs and pruned.ceiling > 1
    attention = LoadConfig(keep=dataclasses.replace(keep, selector="attention"), precision="bfloat16")
    dense, dropping = benchmark([tiny_checkpoint(tmp_path, None)], cpu, attention).timings
    assert dense.gmacs > dropping.gmacs and dropping.precision == "bfloat16"


def test_the_start_of_the_dense_baseline_is_measured_under_any_schedule(tmp_path):
    cpu = dataclasses.replace(QUICK, device="cpu", batches=(1,), memory=True)
    timings = benchmark([tiny_checkpoint(tmp_path)], cpu, LoadConfig(keep=KeepRequest(ratio=0.7))).timings
    assert all(t.load_ms and t.first_ms for t in timings)


def test_transfers_without_a_gpu_give_a_note(tmp_path):
    cpu = dataclasses.replace(QUICK, device="cpu", batches=(1,), transfers=True)
    assert any("--transfers has no effect" in note for note in benchmark([tiny_checkpoint(tmp_path)], cpu).notes)


def test_a_dense_checkpoint_in_the_list_is_the_baseline_in_any_precision():
    dense, facts = tiny_model(None)
    pruned, more = tiny_model()
    lower = [PyTorchRunner(model.half(), found) for model, found in ((dense, facts), (pruned, more))]
    candidates = [TimedArtifact(runner, f"{i}.safetensors", 1.0) for i, runner in enumerate(lower)]
    found, _ = with_baselines(candidates, None, ROOT, lambda path, plain=False: pytest.fail("built one"), None)
    assert found[1].baseline is found[0]


@pytest.mark.parametrize("words, message", [
    (["--cuda-graph", "--device", "cpu"], "needs a GPU that works"),
    (["--fp16", "--bf16"], "Give one of --fp16, --bf16."),
    (["--streams", "2"], "--streams is for engine plans; leave it out")])
def test_what_a_checkpoint_cannot_do_is_one_sentence(tmp_path, words, message):
    result = dyvit("bench", tiny_checkpoint(tmp_path), *words, "--seconds", "0.1")
    assert result.exit_code in (1, 2) and message in " ".join(result.output.split())


@pytest.mark.parametrize("words, message", [(["--fp16"], "lower the artifact with dyvit export"),
                                         (["--cuda-graph"], "for checkpoints on a GPU")])
def test_what_a_graph_cannot_do_is_one_sentence(tmp_path, words, message):
    (tmp_path / "m.onnx").write_bytes(b"x")
    result = dyvit("bench", tmp_path / "m.onnx", *words)
    assert result.exit_code == 2 and message in " ".join(result.output.split())


def test_bench_runs_a_checkpoint_in_half_precision_on_a_cpu(tmp_path):
    result = dyvit("bench", tiny_checkpoint(tmp_path), "--bf16", "--device", "cpu", "--batch", "1", "--seconds", "0.1")
    assert result.exit_code == 0 and "bfloat16" in result.output


def test_an_unknown_precision_is_refused():
    with pytest.raises(ConfigError, match=r"Unknown precision .int8."):
        LoadConfig(precision="int8")


@needs_gpu
@pytest.mark.parametrize("batch", [1, 8, 64])
def test_a_replayed_graph_is_the_eager_model_on_a_gpu(batch):
    feed = np.random.default_rng(batch).standard_normal((batch, 3, 64, 64), dtype=np.float32)
    graph = LoadConfig(engine=EngineRunConfig(cuda_graph=True))
    plain = dataclasses.replace(graph, engine=dataclasses.replace(graph.engine, rewrites=False))
    with open_runner(DEMO, device="cuda") as eager, open_runner(DEMO, load=plain, device="cuda") as replayed, \
            open_runner(DEMO, load=graph, device="cuda") as rewritten, open_runner(DEMO, device="cpu") as on_cpu:
        expected = eager.infer(feed).logits
        assert np.abs(replayed.infer(feed).logits - expected).max() <= 1e-5 and replayed.cuda_graph
        assert np.abs(rewritten.infer(feed).logits - expected).max() <= 1e-4 and rewritten.cuda_graph
        assert np.abs(on_cpu.infer(feed).logits - expected).max() <= 1e-3
