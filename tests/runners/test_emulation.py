"""Emulated bfloat16, compared with torch, which supports it."""
import numpy as np
import onnx
import pytest
import torch

from dyvit_deploy.runners.emulation import in_float32


def bfloat16_model(tmp_path):
    """y = relu(x @ w + b), everything bfloat16 inside."""
    rng = np.random.default_rng(0)
    weight, bias = torch.from_numpy(rng.standard_normal((8, 8), dtype=np.float32)).bfloat16(), torch.ones(8).bfloat16()
    make, low, full = onnx.helper.make_node, onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    nodes = [make("Cast", ["x"], ["x16"], to=low), make("MatMul", ["x16", "w"], ["p"]), make("Add", ["p", "b"], ["s"]),
             make("Relu", ["s"], ["r"]), make("Cast", ["r"], ["y"], to=full)]
    values = [onnx.helper.make_tensor(name, low, tensor.shape, tensor.float().flatten().tolist())
              for name, tensor in (("w", weight), ("b", bias))]
    infos = [onnx.helper.make_tensor_value_info(n, full, ["batch", 8]) for n in "xy"]
    proto = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", infos[:1], infos[1:], values), ir_version=10,
                                   opset_imports=[onnx.helper.make_opsetid("", 22)])
    onnx.checker.check_model(proto)
    return proto, weight, bias


def test_it_rounds_as_torch_does(tmp_path):
    import onnxruntime
    proto, weight, bias = bfloat16_model(tmp_path)
    x = np.random.default_rng(1).standard_normal((5, 8), dtype=np.float32)
    with pytest.raises(Exception, match=r"NOT_IMPLEMENTED|bfloat16"):
        onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    session = onnxruntime.InferenceSession(in_float32(proto).SerializeToString(), providers=["CPUExecutionProvider"])
    [got] = session.run(None, {"x": x})
    product = (torch.from_numpy(x).bfloat16().float() @ weight.float()).bfloat16()
    expected = torch.relu(product + bias).float().numpy()
    assert (got == expected).all()
    exact = np.maximum(x @ weight.float().numpy() + 1, 0)
    # The rounding to bfloat16 has an effect.
    assert not np.allclose(got, exact, atol=1e-4)


def test_the_original_is_left_alone(tmp_path):
    proto, _, _ = bfloat16_model(tmp_path)
    before = proto.SerializeToString()
    in_float32(proto)
    assert proto.SerializeToString() == before
