"""ONNX Runtime on CUDA, with sessions that are observed without a GPU: it never falls back to the CPU silently."""
import ctypes

import numpy as np
import onnxruntime
import pytest
from helpers import tiny_graph, tiny_images
from onnx import TensorProto as T, helper

from dyvit_deploy.errors import ArtifactError, BackendError
from dyvit_deploy.runners import ort

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
REAL = onnxruntime.InferenceSession


class Options(onnxruntime.SessionOptions):
    """Session options that record what was set; the real ones have no way to read a fixed batch."""

    batch, no_cpu = None, False

    def add_session_config_entry(self, name, value):
        # A session on the CPU refuses this option.
        if name == "session.disable_cpu_ep_fallback":
            self.no_cpu = value == "1"
        else:
            super().add_session_config_entry(name, value)

    def add_free_dimension_override_by_name(self, name, size):
        assert name == "batch"
        self.batch = size
        super().add_free_dimension_override_by_name(name, size)


class Binding:
    def __init__(self): self.runs, self.bound = [], []
    def bind_ortvalue_input(self, name, value): self.bound.append(name)
    def bind_output(self, name, device, number): self.bound.append((name, device))
    def synchronize_outputs(self): self.runs.append("synchronized")


class Session:
    """A session that claims to be on CUDA and computes on the CPU; `refuses` is CUDA's reason to refuse it."""

    made, bindings, provider = None, None, CUDA

    @staticmethod
    def refuses(options): return None

    def __init__(self, model, options, providers, provider_options=None, enable_fallback=1):
        self.made.append({"provider": providers[0], "enable_fallback": enable_fallback,
                          "no_cpu": getattr(options, "no_cpu", False), "batch": getattr(options, "batch", None)})
        if providers == [CUDA] and (why := self.refuses(options)):
            raise RuntimeError(why)
        self._claimed = self.provider if providers == [CUDA] else CPU
        self._real = REAL(model, options, providers=[CPU])

    def get_providers(self): return [self._claimed, CPU]
    def run_with_iobinding(self, binding): binding.runs.append("ran")

    def io_binding(self):
        self.bindings.append(Binding())
        return self.bindings[-1]

    def __getattr__(self, name): return getattr(self._real, name)


@pytest.fixture
def cuda(monkeypatch):
    """A machine where ONNX Runtime works on CUDA."""
    Session.made, Session.bindings = [], []
    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    monkeypatch.setattr(ort, "cuda_works", lambda: True)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", staticmethod(lambda feed, device, number: feed))
    for name in ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"):
        monkeypatch.delenv(name, raising=False)
    return Session


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return tiny_graph(tmp_path_factory.mktemp("graph"))


def test_a_session_on_cuda_is_never_retried_on_the_cpu(cuda, graph):
    assert ort.OrtRunner(graph).device == "cuda"
    assert cuda.made == [{"provider": CUDA, "enable_fallback": 0, "no_cpu": False, "batch": None}]


def test_a_session_that_came_out_on_the_cpu_is_an_error(cuda, graph, monkeypatch):
    monkeypatch.setattr(cuda, "provider", CPU)
    with pytest.raises(BackendError, match=r"opened .*tiny\.onnx on CPUExecutionProvider where CUDA.* was asked for; "):
        ort.OrtRunner(graph)


def test_no_node_runs_on_the_cpu_while_it_is_timed_and_the_batch_stays_on_the_gpu(cuda, graph):
    runner = ort.OrtRunner(graph, "cuda")
    call = runner.timed_call(tiny_images(2).numpy(), transfers=False)
    call(), call()
    assert [made["no_cpu"] for made in cuda.made] == [False, True]
    binding = cuda.bindings[-1]
    assert binding.bound == ["images", *((name, "cuda") for name in ("logits", "kept_0", "kept_1", "kept_2"))]
    assert binding.runs[1::2] == ["synchronized"] * 2


def test_a_session_for_timing_has_no_shapes_left_that_the_cpu_would_compute(graph, tmp_path):
    """With a free batch ONNX Runtime computes shapes on the CPU; with a fixed one they are constants."""
    import onnx
    kinds = []
    for batch in (None, 3):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{batch}.onnx")
        options.log_severity_level = 3
        if batch:
            options.add_free_dimension_override_by_name("batch", batch)
        REAL(str(graph), options, providers=[CPU])
        kinds.append({node.op_type for node in onnx.load(tmp_path / f"{batch}.onnx").graph.node})
    assert "Shape" in kinds[0] and "Shape" not in kinds[1]


def test_a_session_for_timing_is_for_its_batch_size(cuda, graph):
    runner = ort.OrtRunner(graph, "cuda")
    for batch in (2, 1):
        runner.timed_call(tiny_images(batch).numpy(), transfers=True)()
    assert [made["batch"] for made in cuda.made] == [None, 2, 1]


def test_a_graph_that_would_run_on_the_cpu_in_part_is_not_timed(cuda, graph, monkeypatch):
    monkeypatch.setattr(cuda, "refuses", staticmethod(lambda options: options.no_cpu and (
        "This session contains graph nodes that are assigned to the default CPU EP, but fallback is disabled.")))
    runner = ort.OrtRunner(graph, "cuda")
    with pytest.raises(BackendError, match=r"run a part of tiny\.onnx on the CPU \(.*\), so its time is not"):
        runner.timed_call(tiny_images(2).numpy(), transfers=False)


def test_copies_are_timed_on_request(cuda, graph):
    ort.OrtRunner(graph, "cuda").timed_call(tiny_images(2).numpy(), transfers=True)()
    assert cuda.bindings[-1].runs == [] and cuda.made[-1]["no_cpu"]


def test_single_nodes_are_not_timed_on_cuda(cuda, graph):
    with pytest.raises(BackendError, match=r"are those of launches; profile it with --device cpu"):
        ort.OrtRunner(graph).layer_times(tiny_images(1).numpy(), 3)


def test_the_float32_of_a_graph_is_float32(cuda, graph, monkeypatch):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    with pytest.raises(BackendError, match="NVIDIA_TF32_OVERRIDE=1 in the environment"):
        ort.OrtRunner(graph)
    assert ort.OrtRunner(graph, "cpu").device == "cpu"


def lowered(graph, tmp_path):
    """A bfloat16 graph of the tiny model's interface."""
    import dataclasses

    import onnx
    from helpers import tiny_model

    from dyvit_deploy.graph.read import set_facts
    make, info = helper.make_node, helper.make_tensor_value_info
    nodes = [make("Cast", ["images"], ["low"], to=T.BFLOAT16),
             make("ReduceMean", ["low", "axes"], ["mean"], keepdims=0),
             make("Cast", ["mean"], ["logits"], to=T.FLOAT)]
    axes = [helper.make_tensor("axes", T.INT64, [2], [2, 3])]
    proto = helper.make_model(helper.make_graph(
        nodes, "g", [info("images", T.FLOAT, ["batch", 3, 32, 32])], [info("logits", T.FLOAT, ["batch", 3])],
        axes), opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    set_facts(proto, dataclasses.replace(tiny_model(None, classes=3)[1], precision="bfloat16"))
    onnx.save(proto, tmp_path / "low.onnx")
    return tmp_path / "low.onnx"


def test_a_graph_that_cuda_cannot_run_is_emulated_unless_cuda_was_requested(cuda, graph, tmp_path, monkeypatch):
    monkeypatch.setattr(cuda, "refuses", staticmethod(lambda options: "NOT_IMPLEMENTED : bfloat16 ReduceMean"))
    path = lowered(graph, tmp_path)
    runner = ort.OrtRunner(path)
    assert (runner.device, runner.emulated, runner.label) == ("cpu", True, "ONNX Runtime cpu, emulated")
    feed = tiny_images(2).numpy()
    assert np.abs(runner.infer(feed).logits - feed.mean((2, 3))).max() < 1e-2
    with pytest.raises(ArtifactError, match=r"can load on the cuda \(NOT_IMPLEMENTED.*pass --device cpu"):
        ort.OrtRunner(path, "cuda")
    # Float32 is not emulated.
    with pytest.raises(ArtifactError, match="pass --device cpu"):
        ort.OrtRunner(graph)


def test_a_driver_that_only_the_loader_finds_counts(monkeypatch):
    loaded = []

    def load(name):
        loaded.append(name)
        if name != "libcuda.so.1":
            raise OSError(name)
    monkeypatch.setattr(ctypes, "CDLL", load)
    # The library is not in the cache of ldconfig.
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(Session, "made", [])
    assert ort.cuda_works.__wrapped__() is True and loaded[0] == "libcuda.so.1"
    monkeypatch.setattr(ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    assert ort.cuda_works.__wrapped__() is False
