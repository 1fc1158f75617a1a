"""Containers are read without running code, and files of other kinds are named for what they are."""
import argparse
import json
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from helpers import tiny_graph, tiny_model

from dyvit_deploy.artifacts.kinds import kind_of
from dyvit_deploy.checkpoints.archive import plain, read_archive
from dyvit_deploy.errors import CheckpointError
from dyvit_deploy.runners.open import unknown_kind

WEIGHTS = {"w": torch.ones(2)}


def fake_class(monkeypatch, module, name, base):
    """A class of a library that is not installed."""
    for end in range(1, module.count(".") + 2):
        part = ".".join(module.split(".")[:end])
        if part not in sys.modules:
            monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    found = sys.modules[module]
    kind = type(name, (base,), {"__module__": module})
    monkeypatch.setattr(found, name, kind, raising=False)
    return kind


@pytest.mark.parametrize("module, name", [
    ("yacs.config", "CfgNode"), ("easydict", "EasyDict"), ("mmengine.config.config", "ConfigDict"),
    ("lightning.fabric.utilities.data", "AttributeDict")])
@pytest.mark.parametrize("zipped", [True, False])
def test_of_dictionaries_of_configuration_libraries_the_content_is_read(tmp_path, monkeypatch, module, name, zipped):
    with monkeypatch.context() as patch:
        kind = fake_class(patch, module, name, dict)
        value = kind(model=kind(name="vit"))
        value.__dict__["frozen"] = True
        torch.save({"model": WEIGHTS, "cfg": value}, tmp_path / "m.pth", _use_new_zipfile_serialization=zipped)
    content = read_archive(tmp_path / "m.pth").content
    assert plain(content["cfg"]) == {"model": {"name": "vit"}}
    assert torch.equal(content["model"]["w"], WEIGHTS["w"])


def test_omegaconf_is_read_as_plain_values(tmp_path):
    omegaconf = pytest.importorskip("omegaconf")
    values = {"model": {"name": "vit", "heads": [1, 2]}, "lr": 1e-3}
    torch.save({"model": WEIGHTS, "cfg": omegaconf.OmegaConf.create(values)}, tmp_path / "m.pth")
    assert plain(read_archive(tmp_path / "m.pth").content["cfg"]) == values


class Attack:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("attack, named", [
    (Attack(eval, "1"), "eval"), (Attack(list, range(10)), ""),
    (Attack(np.load, "x.npy"), "load"), (Attack(getattr, "a", "upper"), "getattr"),
    (Attack(types.SimpleNamespace, 1), "")])
def test_functions_in_a_pickle_are_refused_by_name(tmp_path, attack, named):
    torch.save({"model": WEIGHTS, "x": attack}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=named) as caught:
        read_archive(tmp_path / "m.pth")
    assert "m.pth" in str(caught.value) and str(caught.value).count(". ") <= 2


def other_kinds(folder):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), folder / "script.pt")
    yield "script.pt", "TorchScript"
    (folder / "graph.pth").write_bytes(tiny_graph(folder).read_bytes())
    yield "graph.pth", "ONNX file"
    np.savez(folder / "jax.npz", a=np.ones(2))
    yield "jax.npz", "NumPy arrays"
    (folder / "llama.bin").write_bytes(b"GGUF" + bytes(100))
    yield "llama.bin", "GGUF"
    (folder / "keras.bin").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    yield "keras.bin", "Keras"
    (folder / "flax_model.msgpack").write_bytes(b"\x85" + bytes(100))
    yield "flax_model.msgpack", "Flax"
    for name in ("model.ckpt.index", "model.ckpt.data-00000-of-00001", "saved_model.pb"):
        (folder / name).write_bytes(bytes(100))
        yield name, "TensorFlow"
    (folder / "array.pt").write_bytes(b"\x93NUMPY" + bytes(100))
    yield "array.pt", "NumPy array"
    (folder / "engine.pt").write_bytes(b"ftrt" + bytes(100))
    yield "engine.pt", "engine plan"
    with zipfile.ZipFile(folder / "model.keras", "w") as file:
        file.writestr("config.json", "{}")
        file.writestr("model.weights.h5", "")
    yield "model.keras", "Keras"


def test_files_of_other_kinds_are_named_for_what_they_are(tmp_path):
    for name, what in other_kinds(tmp_path):
        with pytest.raises(CheckpointError, match=what) as caught:
            read_archive(tmp_path / name)
        if kind_of(tmp_path / name) is None:
            assert str(unknown_kind(tmp_path / name)) == str(caught.value)
        assert str(caught.value).startswith(f"{tmp_path / name} is ") and ";" in str(caught.value), name


@pytest.mark.parametrize("weight_map, message", [
    ({"w": "../secret.safetensors"}, "not beside it"), ({"w": "/etc/passwd"}, "not beside it"),
    ({"w": "gone.safetensors"}, "which is missing"), ({"w": "x" * 5000}, "which is missing"),
    ({"w": "model.safetensors.index.json"}, "not beside it"), ([], "no weight_map"), ({"w": 3}, "no weight_map")])
def test_an_index_names_files_beside_it_only(tmp_path, weight_map, message):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=message):
        read_archive(tmp_path / "model.safetensors.index.json")


def test_an_index_whose_shard_lacks_a_tensor_is_refused(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "a.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "a.bin", "b": "a.bin"}}))
    with pytest.raises(CheckpointError, match="names the tensor 'b'"):
        read_archive(index)


def test_a_folder_without_or_with_several_files_of_weights_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="holds no files of weights; name one file"):
        read_archive(tmp_path)
    for name in ("a.pth", "b.pth"):
        torch.save(WEIGHTS, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"holds 2 files of weights: a\.pth, b\.pth"):
        read_archive(tmp_path)


def test_plain_turns_namespaces_and_numpy_into_values_of_python():
    value = argparse.Namespace(a=np.float64(1.5), b=(1, types.SimpleNamespace(c=np.str_("x"))))
    assert plain(value) == {"a": 1.5, "b": [1, {"c": "x"}]}
    assert type(plain(value)["a"]) is float


def test_weights_that_are_no_numbers_are_named_at_export(tmp_path):
    from dyvit_deploy.export.onnx import export_onnx
    from dyvit_deploy.model.checkpoint import save_checkpoint

    model, facts = tiny_model(None)
    with torch.no_grad():
        model.backbone.blocks[1].mlp.fc1.weight[3, 2] = float("nan")
    save_checkpoint(tmp_path / "nan.safetensors", model, facts)
    with pytest.raises(CheckpointError, match=r"nan.safetensors has NaN .* 'blocks.1.mlp.fc1.weight'"):
        export_onnx(tmp_path / "nan.safetensors", tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()
