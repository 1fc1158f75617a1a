import numpy as np
import onnx
import pytest
from helpers import fake_runner, tiny_checkpoint, tiny_images
from onnx import TensorProto, helper

from dyvit_deploy.errors import ArtifactError, BackendError, ConfigError
from dyvit_deploy.export.config import ExportConfig
from dyvit_deploy.export.onnx import export_onnx
from dyvit_deploy.runners.base import TensorSpec, run_in_batches
from dyvit_deploy.runners.open import open_runner


def foreign_onnx(path, batch="n", outputs=("scores",), dtype=TensorProto.FLOAT, side=4):
    """A classifier that dyvit did not write: the mean of each channel, for 4 x 4 images."""
    image = helper.make_tensor_value_info("x", dtype, [batch, 3, side, side])
    nodes = [helper.make_node("ReduceMean", ["x", "axes"], [name], keepdims=0) for name in outputs]
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    graph = helper.make_graph(nodes, "g", [image], [helper.make_tensor_value_info(name, dtype, [batch, 3])
                                                    for name in outputs], [axes])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    checkpoint = tiny_checkpoint(folder)
    export_onnx(checkpoint, folder / "tiny.onnx", ExportConfig(with_tokens=True))
    return checkpoint, folder / "tiny.onnx"


def test_both_backends_give_the_same_logits_and_tokens(exported):
    feed = tiny_images(3).numpy()
    with open_runner(exported[0]) as ours, open_runner(exported[1]) as theirs:
        a, b = ours.infer(feed), theirs.infer(feed)
    assert np.allclose(a.logits, b.logits, atol=1e-5)
    assert all(np.array_equal(x, y) for x, y in zip(a.kept, b.kept)) and len(a.kept) == len(b.kept) == 3
    assert len(a.scores) == 3 and b.scores == ()


def test_facts_travel_with_the_graph(exported):
    with open_runner(exported[0]) as ours, open_runner(exported[1]) as theirs:
        assert (ours.facts.model, ours.facts.prune) == (theirs.facts.model, theirs.facts.prune)
        assert theirs.facts.parent["sha256"] == ours.facts.parent["sha256"]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("feed", [np.zeros((1, 3, 32, 31), np.float32), np.zeros((1, 32, 32, 3), np.float32),
                                  np.zeros((1, 3, 32, 32), np.float64), np.zeros((3, 32, 32), np.float32)])
def test_feeds_that_do_not_fit_are_refused_before_they_run(exported, which, feed):
    with open_runner(exported[which]) as runner, pytest.raises(BackendError, match=r"takes float32 \[any, 3, 32, 32\]"):
        runner.infer(feed)


def test_foreign_models_run_without_facts(tmp_path):
    with open_runner(foreign_onnx(tmp_path / "f.onnx")) as runner:
        assert runner.facts is None and runner.input == TensorSpec("x", "float32", (None, 3, 4, 4))
        assert runner.infer(np.ones((2, 3, 4, 4), np.float32)).logits.tolist() == [[1, 1, 1]] * 2
        assert runner.image_spec().image_size == (4, 4)


def test_a_free_image_size_must_be_given(tmp_path):
    with open_runner(foreign_onnx(tmp_path / "f.onnx", side="s")) as runner:
        with pytest.raises(BackendError, match="--image-size"):
            runner.image_spec()
        assert runner.image_spec((8, 6)).image_size == (8, 6)


def test_a_fixed_batch_is_padded_and_cut():
    runner = fake_runner(np.arange(8).reshape(4, 2), batch=4)
    out = run_in_batches(runner, np.zeros((6, 4, 4, 3), np.uint8), batch=99)
    assert out.logits.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [0, 1], [2, 3]]


@pytest.mark.parametrize("name, content, words", [
    ("x.onnx", b"not a model", "not an ONNX model"), ("x.plan", b"x", "not an engine plan"),
    ("x", b"x", "neither an ONNX file"),
])
def test_files_that_nothing_runs_are_refused(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=words):
        open_runner(tmp_path / name)


def test_a_truncated_graph_is_refused(exported, tmp_path):
    whole = exported[1].read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ArtifactError, match=r"cut\.onnx is not an ONNX model"):
        open_runner(tmp_path / "cut.onnx")


def test_graphs_that_are_no_image_classifiers_are_refused(tmp_path):
    with pytest.raises(ArtifactError, match="only models with one float or uint8"):
        open_runner(foreign_onnx(tmp_path / "i.onnx", dtype=TensorProto.DOUBLE))


def test_unknown_devices_are_refused(exported):
    with pytest.raises(ConfigError, match="Did you mean 'cuda'"):
        open_runner(exported[1], device="cudaa")
