"""A GPU that is not there: its memory is the host's, its library the one of `fake_tensorrt`, of which the classes
that only some engines need are here: those of refit and of TensorRT for RTX."""
from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from types import SimpleNamespace as Thing
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from fake_tensorrt import CLASSES, RTX_CLASSES, Api, IBuilderConfig, ICudaEngine, Member, creates, make
from helpers import tiny_model
from onnx import TensorProto as T, helper

from dyvit_deploy.config import EngineRunConfig
from dyvit_deploy.deploy import on_device
from dyvit_deploy.engine import build, preflight
from dyvit_deploy.engine.config import BuildConfig
from dyvit_deploy.graph.read import PRODUCTS, set_facts
from dyvit_deploy.machine.hardware import Gpu
from dyvit_deploy.runners import tensorrt as runners
from dyvit_deploy.runners.tensorrt import TensorRTRunner

OLD, NEW, RTX = "10.12.0.36", "11.4.0.106", "1.7.1.116"
CARD = Gpu("Fake GPU", "9.0")
RTX_CARD = CARD._replace(compute_capability="8.9")     # TensorRT for RTX does not support the other one
KEPT = (8, 4, 2)
ELEMENTS = {"float32": T.FLOAT, "float16": T.FLOAT16, "uint8": T.UINT8}
QKV, CONV = "blocks.1.attn.qkv/MatMul", "patch_embed.proj/Conv"


class RtxBuilderConfig(IBuilderConfig):
    writable = (*IBuilderConfig.writable, "num_compute_capabilities")
    num_compute_capabilities = 1
    def set_compute_capability(self, compute_capability: Member, index: int) -> bool:
        assert 0 <= index < self.num_compute_capabilities
        self._capabilities.insert(index, compute_capability.name)
        return True


class ISerializationConfig(Api):
    def __init__(self) -> None: self._flags = {"EXCLUDE_WEIGHTS"}      # of plans without weights
    def clear_flag(self, flag: Member) -> bool: return self._flags.discard(flag.name) is None
    def set_flag(self, flag: Member) -> bool: return self._flags.add(flag.name) is None


class Refitter(Api):
    def __init__(self, engine: ICudaEngine, logger: Any) -> None: self._engine, self._logger = engine, logger

    def refit_cuda_engine(self) -> bool:
        self._engine._plan["weights"] = True
        return True


class OnnxParserRefitter(Api):
    def __init__(self, refitter: Refitter, logger: Any) -> None:
        self._plan, self._logger = refitter._engine._plan, logger

    def refit_from_file(self, path: str) -> bool:
        assert isinstance(path, str)
        proto = onnx.load(path)
        told = {node.name for node in proto.graph.node if node.op_type in PRODUCTS}
        fits = told == {product["node"] for product in self._plan["products"]}
        if not (fits and {"REFIT", "STRIP_PLAN"} & set(self._plan["flags"])):
            self._refuse("Error Code 4: API Usage Error (Refit: a weight is not refittable.)")
            return False
        self.library.graphs.append(proto)
        return True


class IRuntimeConfig(Api):
    writable = ("cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy")
    create_runtime_cache = creates("IRuntimeCache")

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._cache = cache
        return True


class IRuntimeCache(Api):
    def __init__(self) -> None: self._content = b""

    def deserialize(self, content: bytes) -> bool:
        self._content = content
        return True

    def serialize(self) -> memoryview: return memoryview(self._content + b"kernel ")


CLASSES += [ISerializationConfig, Refitter, OnnxParserRefitter, IRuntimeConfig, IRuntimeCache]
RTX_CLASSES["IBuilderConfig"] = RtxBuilderConfig


class HostTensor(torch.Tensor):
    """Memory of a GPU that is none; whatever touches it is noted with the stream it was given to."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        owner = next((a for a in args if isinstance(a, cls)), None)
        if owner is not None and function.__name__ in ("copy_", "zero_"):
            owner.cuda.work.append((function.__name__, owner.cuda.current))
        with torch._C.DisableTorchFunctionSubclass():                      # what a model makes of it is none of ours
            return function(*args, **(kwargs or {}))


class HostCuda:
    """`runners.cuda.Cuda` on the host. Above `fits` images, allocations fail."""

    def __init__(self, free=1e5, fits=10**6):
        self.free, self.fits = free, fits
        self.streams, self.work, self.current, self.captures, self.replays = 0, [], None, 0, 0

    def pinned(self, shape, dtype):
        return torch.empty(shape, dtype=getattr(torch, dtype))

    def on_device(self, shape, dtype):
        if shape[0] > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")
        self.work.append(("empty", self.current))
        tensor = self.pinned(shape, dtype).as_subclass(HostTensor)
        tensor.cuda = self
        return tensor

    def stream(self):
        self.streams += 1
        return Thing(cuda_stream=99 + self.streams, synchronize=lambda: None)

    @contextlib.contextmanager
    def within(self, stream):
        before, self.current = self.current, stream.cuda_stream
        try:
            yield
        finally:
            self.current = before

    def event(self):
        event = Thing(record=lambda stream: setattr(event, "at", time.perf_counter()),
                      elapsed_time=lambda later: (later.at - event.at) * 1e3)
        return event

    def capture(self, launch, stream):
        def replay():
            self.replays += self.current == stream.cuda_stream
            launch()
        self.captures += 1
        return replay

    def synchronize(self): self.work.append(("synchronize", None))
    def free_mib(self): return self.free
    def out_of_memory(self): return torch.OutOfMemoryError


def answer(feed):
    """What the engines compute: logits and kept tokens that differ from image to image."""
    flat = feed.reshape(len(feed), -1).astype(np.float32)
    first = (np.abs(flat[:, :1]) * 10).astype(np.int64)
    return {"logits": flat[:, :5] * 2} | {f"kept_{i}": first + 100 * i + np.arange(k) for i, k in enumerate(KEPT)}


def graph(folder, *, input="float32", batch="n", inside=T.FLOAT, facts=True, name="tiny"):
    """An ONNX file with the interface and the names of ours, whose nodes do not matter."""
    sides = (32, 32, 3) if input == "uint8" else (3, 32, 32)
    outputs = [("logits", T.FLOAT, 5), *((f"kept_{i}", T.INT64, k) for i, k in reversed(list(enumerate(KEPT))))]
    nodes = [helper.make_node("Cast", ["images"], ["x"], to=inside),
             helper.make_node("Conv", ["x", "v"], ["p"], CONV), helper.make_node("MatMul", ["x", "w"], ["y"], QKV),
             helper.make_node("Cast", ["y"], ["logits"], to=T.FLOAT),
             *(helper.make_node("Cast", ["y"], [out], to=T.INT64) for out, *_ in outputs[1:])]
    weights = [helper.make_tensor(key, inside, shape, np.zeros(np.prod(shape))) for key, shape in (
        ("w", (32, 5)), ("v", (4, 3, 8, 8)))]
    proto = helper.make_model(helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("images", ELEMENTS[input], [batch, *sides])],
        [helper.make_tensor_value_info(out, kind, [batch, k]) for out, kind, k in outputs], weights))
    if facts:
        set_facts(proto, dataclasses.replace(tiny_model()[1], input=input, keep_counts=KEPT))
    onnx.save(proto, folder / f"{name}.onnx")
    return folder / f"{name}.onnx"


def install(monkeypatch, version, card=...):
    """The library of that version, on a machine with that GPU; by default one that the library supports."""
    library = make(version, answer)
    card = (RTX_CARD if version == RTX else CARD) if card is ... else card
    monkeypatch.setitem(sys.modules, "tensorrt_rtx" if version == RTX else "tensorrt", library)
    for module in (build, preflight, on_device):
        monkeypatch.setattr(module, "gpu", lambda: card)
    return library


def prepared(monkeypatch, version, card=...):
    """A machine with that library, whose engines compute what the graph does that was parsed last."""
    library, sessions = install(monkeypatch, version, card), {}
    monkeypatch.setattr(runners, "Cuda", HostCuda)

    def compute(feed):
        if len(library.graphs) not in sessions:
            sessions[len(library.graphs)] = onnxruntime.InferenceSession(
                library.graphs[-1].SerializeToString(), providers=["CPUExecutionProvider"])
        session = sessions[len(library.graphs)]
        names = [value.name for value in session.get_outputs()]
        return dict(zip(names, session.run(names, {session.get_inputs()[0].name: feed})))

    library.answer, library.compute = library.compute, compute
    return library


def spoil(library, change=lambda logits: logits * 2 + 1):
    """Engines compute other logits from now on, by default wrong ones."""
    right = library.compute
    library.compute = lambda feed: {name: change(values).astype(values.dtype) if name == "logits" else values
                                    for name, values in right(feed).items()}


def engine(folder, config=BuildConfig(), format="trt", name="tiny", **options):
    path = folder / f"{name}.plan"
    build.build_engine(graph(folder, name=name, **options), path, format, config)
    return path


def opened(path, cuda=None, **run):
    return TensorRTRunner(path, EngineRunConfig(**run), cuda or HostCuda())


def images(batch, kind="float32"):
    values = np.random.default_rng(batch).uniform(0, 256, (batch, 3, 32, 32)).astype(kind)
    return values.reshape(batch, 32, 32, 3) if kind == "uint8" else values


def agrees(found, feed):
    pairs = list(zip((found.logits, *found.kept), answer(feed).values()))
    return len(pairs) == 4 and all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)
