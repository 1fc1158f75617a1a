"""A `tensorrt` that needs no GPU: the names of 10.12 and of 11, and just enough behaviour to build and run engines.

A name that the version does not have is refused, as by the real library, and noted in `unknown`. Names that
TensorRT 11 removed exist on the 10.12 shape, and whoever asks for one is noted in `removed_touched` on both. The
names are those of NVIDIA's bindings (python/src/infer and python/src/parsers of the releases 10.12 and 11.1).
An engine computes the function `compute` of its library, which a test gives, on the memory at its addresses.
"""
from __future__ import annotations

import ctypes
import json
import math
from collections import UserList
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import numpy as np
import onnx

from dyvit_deploy.graph.read import PRODUCTS, element_types

REMOVED = {
    "BuilderFlag": "FP16 INT8 BF16 FP8 INT4 FP4 OBEY_PRECISION_CONSTRAINTS PREFER_PRECISION_CONSTRAINTS WEIGHTLESS",
    "NetworkDefinitionCreationFlag": "EXPLICIT_BATCH",
    "Builder": "platform_has_fast_fp16 platform_has_fast_int8 platform_has_tf32",
    "IBuilderConfig": "int8_calibrator set_calibration_profile quantization_flags set_quantization_flag",
    "ICudaEngine": "device_memory_size has_implicit_batch_dimension create_execution_context_without_device_memory",
    "IExecutionContext": "all_shape_inputs_specified",
    "ILayer": "precision precision_is_set reset_precision set_output_type output_type_is_set reset_output_type",
    "ITensor": "dynamic_range set_dynamic_range reset_dynamic_range",
    "OnnxParser": "supports_model parse_with_weight_descriptors",
    "tensorrt": "IInt8Calibrator IInt8EntropyCalibrator IInt8EntropyCalibrator2 IInt8MinMaxCalibrator",
}
ENUMERATIONS = {
    "BuilderFlag": "GPU_FALLBACK REFIT TF32 SPARSE_WEIGHTS VERSION_COMPATIBLE STRIP_PLAN STRICT_NANS",
    "DataType": "FLOAT HALF INT8 INT32 BOOL UINT8 FP8 BF16 INT64 INT4 FP4",
    "HardwareCompatibilityLevel": "NONE AMPERE_PLUS SAME_COMPUTE_CAPABILITY",
    "LayerInformationFormat": "ONELINE JSON",
    "MemoryPoolType": "WORKSPACE TACTIC_DRAM TACTIC_SHARED_MEMORY",
    "NetworkDefinitionCreationFlag": "STRONGLY_TYPED",
    "ProfilingVerbosity": "LAYER_NAMES_ONLY DETAILED NONE",
    "TensorIOMode": "NONE INPUT OUTPUT",
    "ILogger": "INTERNAL_ERROR ERROR WARNING INFO VERBOSE",
    "SerializationFlag": "EXCLUDE_WEIGHTS EXCLUDE_LEAN_RUNTIME INCLUDE_REFIT",
    "ComputeCapability": "NONE CURRENT SM80 SM86 SM89 SM120 SM121", "CudaGraphStrategy": "DISABLED WHOLE_GRAPH_CAPTURE",
    "DynamicShapesKernelSpecializationStrategy": "LAZY EAGER NONE",
}
# Members that came later, with their first version of TensorRT; asking an earlier one is how to find out, not an error.
SINCE = {"SerializationFlag.INCLUDE_REFIT": (10, 14)}
ONLY_RTX = ("ComputeCapability", "CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy", "IRuntimeCache")
# ONNX element type: TensorRT's name, the inspector's, numpy's.
TYPES = {onnx.TensorProto.FLOAT: ("FLOAT", "Float", "float32"), onnx.TensorProto.FLOAT16: ("HALF", "Half", "float16"),
         onnx.TensorProto.INT64: ("INT64", "Int64", "int64"), onnx.TensorProto.UINT8: ("UINT8", "UInt8", "uint8")}
SPELT = {name: spelt for name, spelt, _ in TYPES.values()}
NUMPY = {name: kind for name, _, kind in TYPES.values()}
LONG = {"Float": "Row major linear FP32", "Half": "Row major linear FP16 format"}  # of convolutions, in 10


class Member(NamedTuple):
    """One value of an enumeration: no integer, like those of the bindings."""

    owner: str
    name: str
    value: int

    def __int__(self) -> int: return self.value
    def __str__(self) -> str: return f"{self.owner}.{self.name}"


def missing(place: Any, name: str) -> Any:
    """What a version answers to a name that it does not have, or that the next one removed."""
    library, owner = place.library, place.owner
    if not name.startswith("_") and f"{owner}.{name}" not in SINCE:
        removed = name in REMOVED.get(owner, "").split()
        (library.removed_touched if removed else library.unknown).append(f"{owner}.{name}")
        if removed and library.major == 10:
            return MagicMock(name=name)
    raise AttributeError(f"{owner} has no {name}")


class Library(ModuleType):
    """The module, and what a test sets and reads: see `make`."""

    owner, library = "tensorrt", property(lambda self: self)
    __getattr__ = missing


class Strict(type):
    __getattr__ = missing


class Api(metaclass=Strict):
    """A class of the library. `writable` are the properties that may be set."""

    library, owner = None, "?"
    writable: tuple[str, ...] = ()
    __getattr__ = missing

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in self.writable:
            missing(self, name)
        object.__setattr__(self, name, value)

    def _refuse(self, message: str) -> None: self._logger.log(self.library.ILogger.ERROR, message)


def creates(name: str) -> Callable[..., Any]:
    """A method that makes an object of that class."""
    return lambda self, *given: getattr(self.library, name)(*given)


class ILogger(Api):
    __setattr__ = object.__setattr__                                       # Python classes derive from this one


class IProgressMonitor(ILogger): ...


class Dims(UserList): ...                   # neither a tuple nor a list


class ITensor(Api):
    writable = ("name", "dtype", "shape")


class INetworkDefinition(Api):
    num_inputs = property(lambda self: len(self._inputs))
    num_outputs = property(lambda self: len(self._outputs))
    def get_input(self, index: int) -> ITensor: return self._inputs[index]
    def get_output(self, index: int) -> ITensor: return self._outputs[index]


class OnnxParser(Api):
    num_errors = 0

    def __init__(self, network: INetworkDefinition, logger: Any) -> None: self._network = network

    def parse_from_file(self, path: str) -> bool:
        assert isinstance(path, str)
        proto, network = onnx.load(path), self._network
        self.library.graphs.append(proto)
        network._inputs = [self._tensor(value) for value in proto.graph.input]
        network._outputs = [self._tensor(value) for value in proto.graph.output]
        network._products, types = [], element_types(proto)
        for node in proto.graph.node:
            if node.op_type in PRODUCTS:
                kind = "FLOAT" if node.name in self.library.widened else TYPES[types[node.input[0]]][0]
                network._products += [{"node": node.name, "operator": node.op_type, "dtype": kind}]
        return True

    def _tensor(self, value: Any) -> ITensor:
        tensor, kind = self.library.ITensor(), value.type.tensor_type
        tensor.name, tensor.dtype = value.name, getattr(self.library.DataType, TYPES[kind.elem_type][0])
        tensor.shape = Dims([side.dim_value or -1 for side in kind.shape.dim])
        return tensor


class IOptimizationProfile(Api):
    def __init__(self) -> None: self._shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None:
        self._shapes[input] = [list(min), list(opt), list(max)]


class ITimingCache(Api):
    def __init__(self, content: bytes = b"") -> None:
        self._entries = set(json.loads(content or b"[]"))

    def combine(self, other: ITimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch                                         # one of another GPU is left out
        self._entries |= other._entries
        return True

    def serialize(self) -> memoryview: return memoryview(json.dumps(sorted(self._entries)).encode())


class IBuilderConfig(Api):
    writable = ("profiling_verbosity", "hardware_compatibility_level", "builder_optimization_level", "progress_monitor")
    progress_monitor = None

    def __init__(self) -> None:
        self._flags, self._pools, self._profiles, self._cache = {"TF32"}, {}, [], None
        self._capabilities: list[str] = []
        self.builder_optimization_level = 3
        self.profiling_verbosity = self.library.ProfilingVerbosity.LAYER_NAMES_ONLY
        self.hardware_compatibility_level = self.library.HardwareCompatibilityLevel.NONE

    def set_flag(self, flag: Member) -> None: self._flags.add(flag.name)
    def clear_flag(self, flag: Member) -> None: self._flags.discard(flag.name)
    def set_memory_pool_limit(self, pool: Member, size: int) -> None: self._pools[pool.name] = size
    def get_timing_cache(self) -> ITimingCache | None: return self._cache

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile._shapes)
        return len(self._profiles) - 1

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return True

    create_timing_cache = creates("ITimingCache")


def packed(library: Library, plan: dict[str, Any]) -> memoryview:
    return memoryview(library.magic + json.dumps(plan).encode())


class Builder(Api):
    def __init__(self, logger: Any) -> None: self._logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        self.library.network_flags.append(flags)
        return self.library.INetworkDefinition()

    create_builder_config = creates("IBuilderConfig")
    create_optimization_profile = creates("IOptimizationProfile")

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> memoryview | None:
        if any(-1 in tensor.shape for tensor in network._inputs) and not config._profiles:
            return self._refuse("Network has dynamic inputs, but no optimization profile has been defined.")
        if config.progress_monitor and not self._phases(config.progress_monitor):
            return None
        if config._cache is not None:
            config._cache._entries |= {product["node"] for product in network._products}
        plan = {
            "version": self.library.__version__, "flags": sorted(config._flags), "pools": config._pools,
            "level": config.builder_optimization_level, "hardware": config.hardware_compatibility_level.name,
            "verbosity": config.profiling_verbosity.name, "profiles": config._profiles, "products": network._products,
            "capabilities": config._capabilities, "weights": "STRIP_PLAN" not in config._flags,
            "tensors": {tensor.name: [mode, tensor.dtype.name, list(tensor.shape)] for mode, tensors in (
                ("INPUT", network._inputs), ("OUTPUT", network._outputs)) for tensor in tensors}}
        self.library.built.append(plan)
        return packed(self.library, plan)

    @staticmethod
    def _phases(monitor: Any) -> bool:
        """The whole build of two steps, with a phase of three within; False when the monitor says to stop."""
        monitor.phase_start("Building engine", None, 2)
        monitor.phase_start("Timing kernels", "Building engine", 3)
        for phase, steps in (("Timing kernels", 3), ("Building engine", 2)):
            if not all(monitor.step_complete(phase, step) for step in range(steps)):
                return False
            monitor.phase_finish(phase)
        return True


class Runtime(Api):
    writable = ("engine_host_code_allowed",)
    engine_host_code_allowed = False

    def __init__(self, logger: Any) -> None: self._logger = logger

    def deserialize_cuda_engine(self, content: Any) -> ICudaEngine | None:
        content, library = bytes(content), self.library
        plan = json.loads(content.removeprefix(library.magic)) if content.startswith(library.magic) else {}
        portable = "VERSION_COMPATIBLE" in plan.get("flags", ())
        refusal = library.refusal
        if plan.get("version") != library.__version__ and not portable:
            refusal = "Error Code 1: Serialization (Version tag does not match.)"
        elif portable and not self.engine_host_code_allowed:
            refusal = "Error Code 1: Internal Error (Engine has host code, which is not allowed.)"
        if refusal:
            return self._refuse(f"IRuntime::deserializeCudaEngine: {refusal}")
        return library.ICudaEngine(plan, self._logger)


class ICudaEngine(Api):
    def __init__(self, plan: dict[str, Any], logger: Any) -> None:
        self._plan, self._logger, self._tensors = plan, logger, plan["tensors"]

    num_io_tensors = property(lambda self: len(self._tensors))
    num_optimization_profiles = property(lambda self: max(1, len(self._plan["profiles"])))
    device_memory_size_v2 = property(lambda self: int(self.library.context_mib * 2**20))
    create_runtime_config, create_serialization_config = creates("IRuntimeConfig"), creates("ISerializationConfig")
    def get_tensor_name(self, index: int) -> str: return list(self._tensors)[index]
    def get_tensor_mode(self, name: str) -> Member: return getattr(self.library.TensorIOMode, self._tensors[name][0])
    def get_tensor_dtype(self, name: str) -> Member: return getattr(self.library.DataType, self._tensors[name][1])
    def get_tensor_shape(self, name: str) -> Dims: return Dims(self._tensors[name][2])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        fixed = {name: [self._tensors[name][2]] * 3}
        return [Dims(shape) for shape in (self._plan["profiles"] or [fixed])[profile_index][name]]

    def create_engine_inspector(self) -> EngineInspector: return self.library.EngineInspector(self._plan)
    def create_execution_context(self, settings: Any = None) -> IExecutionContext | None:
        self.library.contexts.append(settings)
        return self.library.IExecutionContext(self) if self.library.gives_contexts else None

    def serialize_with_config(self, config: Any) -> memoryview:
        weights = self._plan["weights"] and "EXCLUDE_WEIGHTS" not in config._flags
        lost = {"REFIT", "STRIP_PLAN"} if weights and "INCLUDE_REFIT" not in config._flags else set()
        return packed(self.library, self._plan | {"weights": weights, "flags": sorted({*self._plan["flags"]} - lost)})


class EngineInspector(Api):
    """Tells layers in the words of its version; convolutions in 10 only where an execution context has shapes."""

    writable = ("execution_context",)
    execution_context = None

    def __init__(self, plan: dict[str, Any]) -> None: self._plan = plan

    def get_engine_information(self, format: Member) -> str:
        assert format.name == "JSON"
        layers: list[Any] = [self._layer(**product) for product in self._plan["products"]]
        if self._plan["verbosity"] != "DETAILED":
            layers = [layer["Name"] for layer in layers]
        return json.dumps({"Layers": layers, "Bindings" if self.library.major == 10 else "I/O Tensors": []})

    def _layer(self, node: str, operator: str, dtype: str) -> dict[str, Any]:
        conv, unknown = operator == "Conv", "N/A due to dynamic shapes"
        spelt = SPELT[dtype] if self.library.tells_types else unknown
        shaped = self.execution_context is not None and self.execution_context._shapes
        old = {"Format/Datatype": (LONG.get(spelt, spelt) if shaped else unknown) if conv else spelt}
        tensor = {"Name": "x"} | (old if self.library.major == 10 else {"Datatype": spelt, "Format": unknown})
        return {"Name": f"{node}_myl0_1", "LayerType": "CaskConvolution" if conv else "gemm", "Inputs": [tensor],
                "Outputs": [tensor], "Metadata": f"[ONNX Layer: {node}]"}


class IExecutionContext(Api):
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine, self._logger, self._profile = engine, engine._logger, 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.library.profiles_chosen.append(profile_index)
        self._profile = profile_index
        self._shapes.clear()
        return 0 <= profile_index < self._engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        assert type(shape) in (tuple, list)
        least, _, most = self._engine.get_tensor_profile_shape(name, self._profile)
        if not all(a <= side <= b for a, side, b in zip(least, shape, most)):
            self._refuse("IExecutionContext::setInputShape: Error Code 3: API Usage Error (shape outside the profile.)")
            return False
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> Dims:
        batch = next(iter(self._shapes.values()))[0] if self._shapes else -1
        return Dims(self._shapes.get(name) or [batch if side < 0 else side for side in self._engine._tensors[name][2]])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = int(memory)
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        tensors = self._engine._tensors
        if set(tensors) - set(self._addresses) or self.library.breaks or not self._engine._plan["weights"]:
            self._refuse("IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (an illegal memory access)")
            return False
        self.library.launches.append(stream_handle)
        inputs = [self._memory(name) for name, (mode, *_) in tensors.items() if mode == "INPUT"]
        for name, values in self.library.compute(*inputs).items():
            memory = self._memory(name)
            assert (memory.shape, memory.dtype) == (values.shape, values.dtype), name
            memory[...] = values
        return True

    def _memory(self, name: str) -> np.ndarray:
        shape, kind = tuple(self.get_tensor_shape(name)), np.dtype(NUMPY[self._engine._tensors[name][1]])
        content = (ctypes.c_char * (math.prod(shape) * kind.itemsize)).from_address(self._addresses[name])
        return np.frombuffer(content, kind).reshape(shape)


CLASSES = [IProgressMonitor, *Api.__subclasses__()]      # `fake_gpu` has more
RTX_CLASSES: dict[str, type[Api]] = {}     # instead of those, in TensorRT for RTX


def make(version: str, compute: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None) -> Library:
    """A library of `version`: 10.12 and 11 are TensorRT, 1.7 is TensorRT for RTX.

    A test may set `compute`; `widened`, products that come out as Float; `refusal`, what is said to every plan;
    `gives_contexts`, `breaks`, `context_mib`, `tells_types`. It may read `unknown`, `removed_touched`, `graphs` (as
    parsed), `network_flags`, `built`, `contexts` (their settings), `profiles_chosen`, `launches` (their streams).
    """
    library = Library("tensorrt")
    numbers = tuple(map(int, version.split(".")))
    library.__version__, library.major = version, numbers[0]
    library.magic = b"vtrt" if library.major == 1 else b"ftrt"
    library.compute, library.widened, library.refusal = compute, set(), None
    library.gives_contexts, library.breaks, library.context_mib, library.tells_types = True, False, 1.0, True
    for name in ("unknown", "removed_touched", "graphs", "network_flags", "built", "contexts", "profiles_chosen",
                 "launches"):
        setattr(library, name, [])
    known = {"ILayer": (Api, {})} | {cls.__name__: (cls, {}) for cls in CLASSES}
    known |= {name: (cls, {}) for name, cls in RTX_CLASSES.items() if library.major == 1}
    for name, values in ENUMERATIONS.items():
        first = 1 if name == "NetworkDefinitionCreationFlag" and library.major == 10 else 0
        members = {value: Member(name, value, number) for number, value in enumerate(values.split(), first)
                   if library.major == 1 or numbers >= SINCE.get(f"{name}.{value}", numbers)}
        known[name] = known.get(name, [Api])[0], members
    for name, (cls, values) in known.items():
        if library.major == 1 or name not in ONLY_RTX:
            setattr(library, name, Strict(name, (cls,), {"library": library, "owner": name, **values}))
    return library
