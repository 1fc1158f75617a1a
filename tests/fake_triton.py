"""Triton's Python model of a repository, with a stand-in for Triton's own module."""
import importlib.util
import json
import sys
import types
from types import SimpleNamespace

import numpy as np
from helpers import ROOT

from dyvit_deploy.data import preprocess


def preprocessing_model(monkeypatch, **spec):
    """The model that prepares images, initialised with this spec; call its `finalize` at the end."""
    fake = types.ModuleType("triton_python_backend_utils")
    fake.get_input_tensor_by_name = lambda request, name: request.get(name)
    fake.Tensor = lambda name, values: values
    fake.InferenceResponse = lambda tensors=(), error=None: SimpleNamespace(tensors=tensors, error=error)
    fake.TritonError = type("TritonError", (Exception,), {"INVALID_ARG": 3})
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake)
    monkeypatch.setitem(sys.modules, "preprocess", preprocess)
    path = ROOT / "dyvit_deploy" / "serving" / "models" / "preprocess.py"
    module_spec = importlib.util.spec_from_file_location("served_preprocess", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    prepared = {"threads": 1, "max_pixels": 100_000, "dtype": "uint8", "orient": False} | spec
    model.initialize({"model_config": json.dumps({"parameters": {"spec": {"string_value": json.dumps(prepared)}}})})
    return model


def send_file(model, content):
    """Its response to one image file."""
    encoded = SimpleNamespace(as_numpy=lambda: np.array([content], object))
    [answer] = model.execute([{"encoded": encoded}])
    return answer
