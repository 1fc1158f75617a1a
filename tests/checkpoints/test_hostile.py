"""What people and attackers put into checkpoints ends in one sentence, and nothing is taken in silence."""
import argparse
import json

import numpy as np
import pytest
import timm
import torch

from dyvit_deploy.config import LoadConfig
from dyvit_deploy.errors import CheckpointError, DyvitError
from dyvit_deploy.model.checkpoint import load_facts, load_model

NAMED = LoadConfig(model="timm:test_vit")


def state_of(seed=0, **options):
    torch.manual_seed(seed)
    return timm.create_model("test_vit", num_classes=10, **options).state_dict()


STATE = state_of()


def load(folder, content, load=LoadConfig()):
    torch.save(content, folder / "m.pth")
    return load_model(folder / "m.pth", load)


@pytest.mark.parametrize("arguments, options", [
    ({"num_heads": 4}, {"num_heads": 4}), ({"gp": "avg", "model_kwargs": {"fc_norm": False}}, {"global_pool": "avg"}),
    ({"model_kwargs": {"num_heads": 4}}, {"num_heads": 4}), ({"global_pool": "token"}, {"global_pool": "token"})])
def test_arguments_of_the_model_in_the_file_are_used(tmp_path, arguments, options):
    _, facts = load(tmp_path, {"state_dict": STATE, "args": {"model": "test_vit"} | arguments})
    assert options.items() <= dict(facts.model.options).items()
    _, facts = load(tmp_path, {"state_dict": STATE, "hyper_parameters": {"model": {"name": "test_vit"} | arguments}})
    assert options.items() <= dict(facts.model.options).items()


def test_pooling_that_a_norm_leaves_open_is_an_assumption(tmp_path):
    state = state_of(global_pool="max")
    assert "avgmax" in load(tmp_path, state, NAMED)[1].assumed[0]
    given = LoadConfig(model="timm:test_vit", model_args=(("global_pool", "max"),))
    model, facts = load(tmp_path, state, given)
    assert facts.assumed == () and model.backbone.global_pool == "max"


def config(folder, **changes):
    values = {"architecture": "test_vit", "pretrained_cfg": {
        "input_size": [3, 160, 160], "mean": [.4] * 3, "std": [.2] * 3, "crop_pct": .5, "interpolation": "nearest"}}
    (folder / "config.json").write_text(json.dumps(values | changes))


def test_a_files_own_arguments_count_before_a_configuration_beside_it_and_its_use_is_told(tmp_path, caplog):
    caplog.set_level("INFO")
    config(tmp_path)
    arguments = {"model": "test_vit", "mean": [.1] * 3, "std": [.3] * 3, "crop_pct": .9, "interpolation": "bilinear"}
    assert load(tmp_path, {"args": arguments, "state_dict": STATE})[1].model.preprocess.mean == (.1, .1, .1)
    assert not caplog.records
    assert load(tmp_path, STATE)[1].model.preprocess.mean == (.4, .4, .4)
    assert "config.json beside it" in caplog.text


@pytest.mark.parametrize("change, named", [
    (lambda t: t.int(), "int32"), (lambda t: t.bool(), "bool"), (lambda t: t.to(torch.complex64), "complex64"),
    (lambda t: t.to_sparse(), "sparse"), (lambda t: t.to("meta"), "meta device"),
    (lambda t: t.to(torch.float8_e4m3fn), "float8")])
def test_tensors_that_are_no_weights_as_they_are_are_named(tmp_path, change, named):
    with pytest.raises(CheckpointError, match=named):
        load(tmp_path, {name: change(tensor) for name, tensor in STATE.items()}, NAMED)


def test_a_layer_beside_the_wrapped_model_is_not_left_out(tmp_path):
    wrapped = {f"backbone.{name}": tensor for name, tensor in STATE.items()}
    assert load(tmp_path, wrapped | {"loss.weight": torch.ones(10)}, NAMED)[1].adapted
    for name, tensor in (("classifier.weight", torch.ones(10, 64)), ("fc_norm.weight", torch.ones(64))):
        with pytest.raises(CheckpointError, match=f"'{name}' beside the model"):
            load(tmp_path, wrapped | {name: tensor}, NAMED)


def test_of_a_student_and_a_teacher_each_keeps_its_own_head(tmp_path):
    other = state_of(1)
    both = {}
    for name, state in (("student", STATE), ("teacher", other)):
        both |= {f"{name}.{'' if n.startswith('head') else 'backbone.'}{n}": t for n, t in state.items()}
    for weights, state in (("model", STATE), ("ema", other)):
        model, _ = load(tmp_path, both, LoadConfig(model="timm:test_vit", weights=weights))
        assert torch.equal(model.backbone.head.weight, state["head.weight"])


def test_copies_of_tensors_without_values_are_compared_without_a_traceback(tmp_path):
    sparse = {name: tensor.to_sparse() for name, tensor in STATE.items()}
    copies = {name: tensor.clone() for name, tensor in sparse.items()}
    with pytest.raises(CheckpointError, match="several sets of weights"):
        load(tmp_path, {"model": sparse, "state_dict": copies}, NAMED)


def test_copies_and_cycles_are_not_several_sets_of_weights(tmp_path):
    content = {"model": STATE, "state_dict": dict(STATE)}
    content["self"] = content
    assert load(tmp_path, content, NAMED)[1].parent["weights"] == "model"


CYCLE = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize("arguments", [
    {"mean": "imagenet"}, {"mean": ["a"]}, {"mean": [None]}, {"mean": (1, 2)}, {"mean": [123.7, 116.3, 103.5]},
    {"crop_pct": [1]}, {"crop_pct": "x"}, {"crop_pct": float("nan")}, {"crop_pct": -1}, {"crop_pct": 3},
    {"input_size": [float("nan")] * 3}, {"input_size": "x"}, {"input_size": [3, -1, 10**30]}, {"std": [0, 0, 0]},
    {"model_kwargs": {"depth": 10**6}}, {"model_kwargs": {"patch_size": [1]}}, {"num_heads": "x"}, {"cycle": CYCLE},
    {"mean": np.array([[1.0]])}, {"interpolation": 3}, {"interpolation": "best"}, {"crop_mode": "border"}])
def test_arguments_of_any_kind_end_in_a_sentence_or_are_used(tmp_path, arguments):
    values = {"model": "test_vit", "mean": [.1] * 3, "std": [.3] * 3, "crop_pct": .9} | arguments
    for content in ({"args": values}, {"args": argparse.Namespace(**values)}):
        torch.save({"state_dict": STATE} | content, tmp_path / "m.pth")
        try:
            facts = load_facts(tmp_path / "m.pth")
            assert facts.model.preprocess.mean == (.1, .1, .1)
        except DyvitError as error:
            assert len(str(error)) < 600


@pytest.mark.parametrize("changes", [
    {"architecture": "nope"}, {"architecture": 3}, {"pretrained_cfg": []}, {"pretrained_cfg": {"input_size": "x"}},
    {"pretrained_cfg": {"input_size": [1]}}, {"pretrained_cfg": {"crop_pct": -1}}, {"model_args": {"depth": 1024}},
    {"pretrained_cfg": {"mean": [float("inf")] * 3}}, {"model_args": {"patch_size": 0}}, {"label_names": {"a": 1}},
    {"model_args": [1]}, {"model_args": {"num_heads": 0}}, {"pretrained_cfg": {"input_size": [3, 1e30, 1e30]}}])
def test_configurations_of_any_kind_end_in_a_sentence(tmp_path, changes):
    config(tmp_path, **changes)
    torch.save(STATE, tmp_path / "model.bin")
    try:
        load_facts(tmp_path)
    except DyvitError as error:
        assert len(str(error)) < 600
    # A named model does not need it.
    assert load_model(tmp_path / "model.bin", LoadConfig(
        model="timm:vit_tiny_patch16_224", model_args=(("depth", 6), ("embed_dim", 64), ("num_heads", 2),
                                                       ("mlp_ratio", 3))))[1].model.width == 64


@pytest.mark.parametrize("content", [
    STATE | {"pos_embed": torch.zeros(101, 64)}, STATE | {"pos_embed": torch.tensor(1.0)},
    {"model": STATE, "model_ema": STATE, "epoch": np.array([1, 2])},
    STATE | {"blocks." + "9" * 5000 + ".x": torch.ones(1)}])
def test_tensors_of_any_kind_end_in_a_sentence(tmp_path, content):
    for given in (NAMED, LoadConfig()):
        try:
            load(tmp_path, content, given)
        except DyvitError as error:
            assert str(error)


def test_a_tensor_of_a_sharded_file_is_read_from_the_file_that_the_index_names(tmp_path):
    other = state_of(1)
    torch.save(STATE, tmp_path / "a.bin")
    torch.save(other, tmp_path / "b.bin")
    files = dict.fromkeys(STATE, "a.bin") | {"head.bias": "b.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    model, _ = load_model(tmp_path / "pytorch_model.bin.index.json", NAMED)
    assert torch.equal(model.backbone.head.bias, other["head.bias"])
    assert torch.equal(model.backbone.head.weight, STATE["head.weight"])
