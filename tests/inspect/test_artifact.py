import json

import onnx
import pytest
import torch
from helpers import needs_openvino, tiny_checkpoint

from dyvit_deploy.config import PruneConfig
from dyvit_deploy.deploy.config import DeployConfig
from dyvit_deploy.deploy.pipeline import export_artifact
from dyvit_deploy.errors import ArtifactError
from dyvit_deploy.export.config import ExportConfig
from dyvit_deploy.export.onnx import export_onnx
from dyvit_deploy.inspect.artifact import inspect_artifact
from dyvit_deploy.model import zoo
from dyvit_deploy.model.dynamicvit import DynamicViT
from dyvit_deploy.model.state import published_name


def shown(report) -> str:
    from rich.console import Console
    console = Console(width=200)
    with console.capture() as capture:
        console.print(report.table())
    return capture.get()


def test_a_graph_tells_model_counts_interface_and_origin(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path)
    export_onnx(checkpoint, tmp_path / "m.onnx", ExportConfig(with_tokens=True))
    report = inspect_artifact(tmp_path / "m.onnx")
    text = shown(report)
    assert report.keep_counts == (8, 4, 2) and report.gmacs > 0
    for words in ("16 / 8 / 4 / 2", "images float32 [batch, 3, 32, 32]", "kept_2 int64 [batch, 2]", "tiny.safetensors",
                  "opset", "ai.onnx 20", "TopK"):
        assert words in text, words
    json.dumps(report.to_json(), allow_nan=False)


@needs_openvino
def test_an_openvino_model_tells_what_it_is_compiled_to(tmp_path):
    export_artifact(tiny_checkpoint(tmp_path), tmp_path / "m.xml", DeployConfig("openvino"))
    report = inspect_artifact(tmp_path / "m.xml")
    assert report.kind == "OpenVINO" and report.keep_counts == (8, 4, 2)
    assert report.details["products as compiled here"] == "41 float32"
    assert report.size_mib > (tmp_path / "m.bin").stat().st_size / 2**20


def test_a_checkpoint_tells_the_same_model(tmp_path):
    report = inspect_artifact(tiny_checkpoint(tmp_path))
    assert report.kind == "checkpoint" and report.keep_counts == (8, 4, 2) and report.details["predictors"] == 3


def test_a_published_file_without_keep_ratio_is_inspected_all_the_same(tmp_path):
    model = DynamicViT(zoo.get("digits-s"), PruneConfig.from_ratio(0.7, (1, 3, 4)))
    torch.save({"model": {published_name(k): v for k, v in model.state_dict().items()}}, tmp_path / "p.pth")
    report = inspect_artifact(tmp_path / "p.pth")
    assert report.facts.model.name == "digits-s" and report.facts.prune is None and report.details["predictors"] == 3


def test_files_of_others_say_so(tmp_path):
    value = onnx.helper.make_tensor_value_info("x", 1, ["b", 2])
    out = onnx.helper.make_tensor_value_info("y", 1, ["b", 2])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [out])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "f.onnx")
    report = inspect_artifact(tmp_path / "f.onnx")
    assert report.facts is None and "not dyvit" in shown(report)


@pytest.mark.parametrize("name, words", [("x.onnx", "not a whole ONNX file"), ("x.bin.zip", "neither an ONNX file")])
def test_other_files_are_refused(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"\x08nonsense")
    with pytest.raises(ArtifactError, match=words):
        inspect_artifact(tmp_path / name)


def test_a_checkpoint_of_an_unknown_architecture_is_described_all_the_same(tmp_path):
    torch.save({"w": torch.zeros(3, 4)}, tmp_path / "x.pth")
    report = inspect_artifact(tmp_path / "x.pth")
    assert report.facts is None and report.parameters == 12 and "--model" in report.details["architecture"]


def test_weights_beside_the_graph_are_no_damage(tmp_path):
    import numpy as np
    tensor = onnx.numpy_helper.from_array(np.ones((2, 2), np.float32), "w")
    value, out = (onnx.helper.make_tensor_value_info(n, 1, ["b", 2]) for n in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [value], [out], [tensor])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "e.onnx", save_as_external_data=True, location="e.data",
              size_threshold=0)
    assert inspect_artifact(tmp_path / "e.onnx").details["inputs"] == "x float32 [b, 2]"


def test_what_runtimes_fuse_is_told(tmp_path):
    export_onnx(tiny_checkpoint(tmp_path), tmp_path / "m.onnx")
    report = inspect_artifact(tmp_path / "m.onnx")
    told = report.details["in ONNX Runtime"]
    assert f"of {report.facts.model.depth} blocks" in told and "BiasGelu" in told


@needs_openvino
def test_openvino_runs_attention_as_one_kernel(tmp_path):
    export_artifact(tiny_checkpoint(tmp_path), tmp_path / "m.xml", DeployConfig("openvino"))
    report = inspect_artifact(tmp_path / "m.xml")
    depth = report.facts.model.depth
    assert f"one kernel in {depth} of {depth} blocks" in report.details["as compiled here"]


def test_a_checkpoint_of_a_training_that_diverged_is_told(tmp_path):
    model = DynamicViT(zoo.get("digits-s"), PruneConfig.from_ratio(0.7, (1, 3, 4)))
    state = {published_name(k): v for k, v in model.state_dict().items()}
    state["head.bias"][0], state["norm.weight"][1] = float("nan"), float("inf")
    torch.save({"model": state}, tmp_path / "p.pth")
    report = inspect_artifact(tmp_path / "p.pth")
    assert report.details["NaN or infinite"] == "2 tensors, the first norm.weight" and report.facts is not None
