"""The files of a Triton repository, and refused settings, without a server."""
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from helpers import plan_file, tiny_checkpoint, tiny_graph, tiny_model

from dyvit_deploy.calibration.config import PrecisionConfig
from dyvit_deploy.config import KeepRequest, LoadConfig
from dyvit_deploy.data import preprocess
from dyvit_deploy.deploy.config import DeployConfig
from dyvit_deploy.deploy.report import Progress
from dyvit_deploy.engine.config import BuildConfig
from dyvit_deploy.errors import ArtifactError, ConfigError, DataError, ExportError
from dyvit_deploy.export.config import ExportConfig
from dyvit_deploy.model import checkpoint as checkpoints
from dyvit_deploy.model.checkpoint import save_checkpoint
from dyvit_deploy.serving import journal
from dyvit_deploy.serving.config import ServingConfig
from dyvit_deploy.serving.export import export_repository, plan_repository
from dyvit_deploy.serving.interface import read_servable
from dyvit_deploy.serving.pbtxt import normal, read_pbtxt, to_pbtxt
from dyvit_deploy.serving.repository import read_repository

pytest.importorskip("tritonclient.grpc", reason="tritonclient is missing: pip install 'dyvit-deploy[triton]'")
RATIOS = LoadConfig(keep=KeepRequest(ratios=(0.5, 0.75)))


@pytest.fixture
def checkpoint(tmp_path, quick_export):
    return tiny_checkpoint(tmp_path)


def edit(folder, model, before, after):
    path = folder / model / "config.pbtxt"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))


def test_names_dims_and_types_are_those_of_the_artifact(tmp_path, checkpoint):
    config = DeployConfig(export=ExportConfig(with_tokens=True))
    report = export_repository(checkpoint, tmp_path / "repo", ServingConfig(max_batch=16, instances=2), config)
    [model] = read_repository(tmp_path / "repo")
    assert report and list(report.models.values()) == ["onnxruntime", "python", "ensemble"]
    assert model.config["max_batch_size"] == 16 and model.config["instance_group"][0]["count"] == 2
    outputs = {value["name"]: (value["data_type"], value["dims"]) for value in model.config["output"]}
    counts = model.servable.facts.keep_counts
    assert outputs == {"logits": ("TYPE_FP32", ["5"])} | {
        f"kept_{stage}": ("TYPE_INT64", [str(count)]) for stage, count in enumerate(counts)}
    assert model.config["input"] == [{"name": "images", "data_type": "TYPE_FP32", "dims": ["3", "32", "32"]}]
    assert (tmp_path / "repo" / model.name / "labels.txt").read_text().split() == [str(i) for i in range(5)]
    carried = tmp_path / "repo" / f"{model.name}-preprocess/1/preprocess.py"
    assert carried.read_text() == Path(preprocess.__file__).read_text()


def test_raw_pixels_are_an_input_of_type_uint8(tmp_path, checkpoint):
    export_repository(checkpoint, tmp_path / "repo", config=DeployConfig(export=ExportConfig(input="uint8")))
    [model] = read_repository(tmp_path / "repo")
    assert model.config["input"] == [{"name": "images", "data_type": "TYPE_UINT8", "dims": ["32", "32", "3"]}]


def test_three_keep_ratios_read_their_checkpoint_once(tmp_path, checkpoint, monkeypatch):
    read, read_checkpoint = [], checkpoints.read_checkpoint
    monkeypatch.setattr(checkpoints, "read_checkpoint", lambda *args: read.append(args) or read_checkpoint(*args))
    load = LoadConfig(keep=KeepRequest(ratios=(0.5, 0.75, 0.9)))
    assert export_repository(checkpoint, tmp_path / "repo", load=load) and len(read) == 1
    assert plan_repository(checkpoint, tmp_path / "other", load=load).steps and len(read) == 2


def test_several_keep_ratios_are_behind_a_router_with_the_plain_name(tmp_path, checkpoint):
    export_repository(checkpoint, tmp_path / "repo", ServingConfig(name="cats"), load=RATIOS)
    models = {model.name: model for model in read_repository(tmp_path / "repo")}
    assert set(models) == {"cats-0.5", "cats-0.75"}
    assert all(model.routers == ("cats",) and model.keep_ratio == name[5:] for name, model in models.items())
    choice = read_pbtxt(tmp_path / "repo/cats/config.pbtxt")["parameters"]["models"]["string_value"]
    # The first is the default.
    assert list(json.loads(choice).values()) == ["cats-0.75", "cats-0.5"]
    assert models["cats-0.75"].servable.facts.keep_counts > models["cats-0.5"].servable.facts.keep_counts
    text = (tmp_path / "repo/README.md").read_text()
    assert "0.75 by default" in text and "`cats-0.5-images`" in text


def test_an_engine_brings_its_profiles_and_cuda_graphs(tmp_path):
    plan = plan_file(tmp_path, ((1, 1, 1), (2, 8, 32)))
    export_repository(plan, tmp_path / "repo")
    [model] = read_repository(tmp_path / "repo")
    config = model.config
    assert (config["backend"], config["max_batch_size"]) == ("tensorrt", 32)
    assert config["instance_group"][0] == {"count": 1, "kind": "KIND_GPU", "profile": ["0", "1"]}
    assert config["dynamic_batching"]["preferred_batch_size"] == [8, 32]
    graphs = config["optimization"]["cuda"]
    assert graphs["graphs"] and [spec["batch_size"] for spec in graphs["graph_spec"]] == [1, 8, 32]
    assert (tmp_path / "repo" / model.name / "1/model.plan").read_bytes() == plan.read_bytes()


FLAG = "--backend-config=tensorrt,version-compatible=true"


def starts(text):
    """The lines of a repository's README that start a server."""
    lines = [line for line in text.splitlines() if "tritonserver --model-repository" in line]
    assert len(lines) == 2
    return lines


def test_a_version_compatible_plan_puts_tritons_option_into_the_lines_that_start_a_server(tmp_path):
    plan = plan_file(tmp_path, config=BuildConfig(version_compatible=True))
    assert read_servable(plan).version_compatible
    export_repository(plan, tmp_path / "repo", ServingConfig(name="new"))
    text = (tmp_path / "repo/README.md").read_text()
    assert all(FLAG in line for line in starts(text)) and "only plans that you trust" in text
    assert "The plan of `new` was built with `--version-compatible`" in text
    assert "only with the version of TensorRT that built it" not in text
    export_repository(plan_file(tmp_path), tmp_path / "repo", ServingConfig(name="fixed"))
    text = (tmp_path / "repo/README.md").read_text()
    # One such model is enough.
    assert all(FLAG in line for line in starts(text))
    assert "`dyvit inspect fixed/1/model.plan`" in text and "The plan of `fixed` was" not in text


def test_a_plan_of_one_version_and_one_profile_needs_no_option_and_no_remark(tmp_path):
    export_repository(plan_file(tmp_path), tmp_path / "repo")
    text = (tmp_path / "repo/README.md").read_text()
    assert FLAG not in text and "version-compatible" not in text and "profiles" not in text
    assert "only with the version of TensorRT that built it" in text and "--gpus all" in text
    assert starts(text)[0].startswith("tritonserver --model-repository=repo --http-address=")


def test_the_engine_that_is_inspected_for_its_version_is_one(tmp_path, checkpoint):
    export_repository(checkpoint, tmp_path / "repo", ServingConfig(name="a-graph"))
    export_repository(plan_file(tmp_path), tmp_path / "repo", ServingConfig(name="engine"))
    assert "`dyvit inspect engine/1/model.plan`" in (tmp_path / "repo/README.md").read_text()


def test_the_readme_of_a_repository_without_an_engine_mentions_none(tmp_path, checkpoint):
    export_repository(checkpoint, tmp_path / "repo")
    text = (tmp_path / "repo/README.md").read_text()
    assert not [word for word in ("TensorRT", "--gpus", "profiles", FLAG) if word in text]


def test_the_harmless_errors_of_several_profiles_are_announced(tmp_path):
    export_repository(plan_file(tmp_path, ((1, 1, 1), (2, 8, 32))), tmp_path / "repo", ServingConfig(name="m"))
    text = " ".join((tmp_path / "repo/README.md").read_text().split())
    assert "`m` has 2 optimization profiles" in text and "Failed to set cuda graph shape" in text
    assert "These errors are harmless" in text


@pytest.mark.parametrize("profiles, changes, settings, words", [
    (((1, 8, 32),), {}, ServingConfig(max_batch=64), "--max-batch 64 is more than the 32"),
    (((8, 8, 8),), {}, ServingConfig(), "leave out batch 1"),
    (((1, 1, 1), (8, 16, 32)), {}, ServingConfig(), "leave out batch 2"),
    (((1, 8, 32),), {"format": "rtx"}, ServingConfig(), "TensorRT for RTX, which Triton does not run"),
    (((1, 8, 32),), {"stripped": True}, ServingConfig(), "dyvit refit"),
])
def test_an_engine_that_its_server_would_fail_on_is_refused(tmp_path, profiles, changes, settings, words):
    plan = plan_file(tmp_path, profiles, **changes)
    with pytest.raises(ConfigError, match=words):
        export_repository(plan, tmp_path / "repo", settings)
    assert not (tmp_path / "repo").exists()


def test_an_engine_must_be_of_the_checkpoint_that_is_named(tmp_path, checkpoint):
    settings = ServingConfig(engine=str(plan_file(tmp_path)))
    assert export_repository(checkpoint, tmp_path / "repo", settings)
    with pytest.raises(ConfigError, match="its keep_counts is"):
        export_repository(checkpoint, tmp_path / "other", settings, load=LoadConfig(keep=KeepRequest(ratio=0.9)))
    assert not (tmp_path / "other").exists()


def test_a_plan_without_its_facts_or_with_those_of_another_is_refused(tmp_path):
    plan = plan_file(tmp_path)
    plan.write_bytes(b"ftrt another plan")
    with pytest.raises(ArtifactError, match=r"is not the file that engine\.plan\.json describes; copy both"):
        read_servable(plan)
    (tmp_path / "engine.plan.json").unlink()
    with pytest.raises(ArtifactError, match="which says what it is; copy both files"):
        read_servable(plan)


def test_a_name_is_taken_once_and_versions_are_side_by_side(tmp_path, checkpoint):
    repo = tmp_path / "repo"
    export_repository(checkpoint, repo)
    before = sorted(path.relative_to(repo) for path in repo.rglob("*"))
    with pytest.raises(ConfigError, match="--model-version 2"):
        export_repository(checkpoint, repo)
    with pytest.raises(ConfigError, match="another model called"):
        export_repository(checkpoint, repo, ServingConfig(version=2, max_batch=2))
    assert sorted(path.relative_to(repo) for path in repo.rglob("*")) == before
    export_repository(checkpoint, repo, ServingConfig(version=2))
    assert [model.version for model in read_repository(repo)] == [2]
    export_repository(checkpoint, repo, ServingConfig(name="other"))
    assert len(read_repository(repo)) == 2


@pytest.mark.parametrize("suffix, before, after, words", [
    ("", "dims: 32", "dims: 31", "says input"),
    ("", "TYPE_FP32", "TYPE_FP16", "says input"),
    ("", 'name: "logits"', 'name: "scores"', "says output"),
    ("", 'backend: "onnxruntime"', 'backend: "tensorrt"', "says backend"),
    ("", "max_batch_size: 64", "max_batch_size: 0", "says max_batch_size 0"),
    ("-images", 'value: "prepared"', 'value: "raw"', "says ensemble_scheduling"),
    ("-preprocess", "bicubic", "nearest", "says preprocess"),
    ("-preprocess", "dims: 3\n", "dims: 4\n", "says"),
    ("", "max_batch_size", "no field", "no configuration of a Triton model"),
])
def test_a_configuration_that_its_artifact_contradicts_is_found_before_a_server_is(
        tmp_path, checkpoint, suffix, before, after, words):
    export_repository(checkpoint, tmp_path / "repo", ServingConfig(name="m"))
    edit(tmp_path / "repo", f"m{suffix}", before, after)
    with pytest.raises((ExportError, ArtifactError), match=words) as caught:
        read_repository(tmp_path / "repo")
    assert "\n" not in str(caught.value)


def test_the_limit_of_pixels_and_other_settings_are_the_users(tmp_path, checkpoint):
    export_repository(checkpoint, tmp_path / "repo", ServingConfig(name="m"))
    edit(tmp_path / "repo", "m-preprocess", "50000000", "1000000")
    edit(tmp_path / "repo", "m", "max_queue_delay_microseconds: 1000", "max_queue_delay_microseconds: 5000")
    assert len(read_repository(tmp_path / "repo")) == 1


def test_foreign_models_in_the_repository_are_left_alone(tmp_path, checkpoint):
    repo = tmp_path / "repo"
    export_repository(checkpoint, repo, ServingConfig(name="m"))
    (repo / "theirs" / "1").mkdir(parents=True)
    (repo / "theirs" / "config.pbtxt").write_text('backend: "onnxruntime" max_batch_size: 1')
    (repo / "theirs" / "1" / "model.onnx").write_bytes(b"of somebody else")
    export_repository(checkpoint, repo, ServingConfig(name="n"))
    assert [model.name for model in read_repository(repo)] == ["m", "n"]


def test_a_model_file_that_is_gone_is_named(tmp_path, checkpoint):
    export_repository(checkpoint, tmp_path / "repo", ServingConfig(name="m"))
    with pytest.raises(ArtifactError, match="name the repository that it is in"):
        read_repository(tmp_path / "repo" / "m")
    (tmp_path / "repo/m/1/model.onnx").unlink()
    with pytest.raises(ArtifactError, match="has no model in it"):
        read_repository(tmp_path / "repo")


def test_a_readme_of_the_users_own_is_left_alone(tmp_path, checkpoint):
    (tmp_path / "README.md").write_text("mine")
    report = export_repository(checkpoint, tmp_path, ServingConfig(name="m"))
    assert (tmp_path / "README.md").read_text() == "mine" and "was left as it is" in report.notes[0]
    assert report and len(read_repository(tmp_path)) == 1


def test_what_was_moved_is_taken_back_when_a_later_folder_cannot_be(tmp_path, checkpoint, monkeypatch):
    from dyvit_deploy.serving import repository
    rename = repository.os.rename

    def interrupted(source, target):
        if str(target).rstrip("/").endswith("-images"):
            raise KeyboardInterrupt
        rename(source, target)
    monkeypatch.setattr(repository.os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_repository(checkpoint, tmp_path / "repo")
    assert list((tmp_path / "repo").iterdir()) == []


def test_what_a_killed_export_moved_is_refused_and_replaced_by_its_repetition(tmp_path, checkpoint):
    export_repository(checkpoint, tmp_path / "repo", load=RATIOS)
    whole = sorted(path.name for path in (tmp_path / "repo").iterdir())
    # As if it had been killed before the ensembles and the router arrived.
    (tmp_path / "repo" / journal.NAME).write_text(json.dumps([name for name in whole if name != "README.md"]))
    for name in whole:
        if name.endswith("-images") or name == "tiny":
            shutil.rmtree(tmp_path / "repo" / name)
    with pytest.raises(ArtifactError, match="was interrupted; repeat it"):
        read_repository(tmp_path / "repo")
    assert export_repository(checkpoint, tmp_path / "repo", load=RATIOS)
    assert sorted(path.name for path in (tmp_path / "repo").iterdir()) == whole
    assert len(read_repository(tmp_path / "repo")) == 2


@pytest.mark.parametrize("text", ['["../other"]', '["a/.."]', '["/tmp"]', '["a/b"]', '[".."]', '["link/1"]', "[3", "7",
                                  '["a\\\\..\\\\b"]'])
def test_a_journal_from_elsewhere_removes_nothing_outside_of_its_models(tmp_path, checkpoint, text):
    other = tmp_path / "other"
    (other / "1").mkdir(parents=True)
    (tmp_path / "repo" / "a" / "b").mkdir(parents=True)
    (tmp_path / "repo" / "link").symlink_to(other)
    (tmp_path / "repo" / journal.NAME).write_text(text)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ArtifactError, match="remove it"):
        export_repository(checkpoint, tmp_path / "repo")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_second_export_into_a_repository_is_refused_by_its_name(tmp_path, checkpoint):
    said = []

    def say(text):
        if text.startswith("writing"):
            with pytest.raises(ConfigError, match=f"Another dyvit is writing {tmp_path / 'repo'}"):
                export_repository(checkpoint, tmp_path / "repo", ServingConfig(name="b"))
            said.append(text)
    assert export_repository(checkpoint, tmp_path / "repo", progress=Progress(say=say)) and said


def test_class_names_with_line_breaks_stay_one_line_each(tmp_path, quick_export):
    model, facts = tiny_model()
    facts = dataclasses.replace(facts, class_names=("a\nb", "c\x85", "d\u2028e", "f", "g"))
    save_checkpoint(tmp_path / "named.safetensors", model, facts)
    export_repository(tmp_path / "named.safetensors", tmp_path / "repo", ServingConfig(name="m"))
    assert len(read_repository(tmp_path / "repo")) == 1
    assert (tmp_path / "repo/m/labels.txt").read_text("utf-8").split("\n")[:2] == ["a b", "c"]


def test_a_file_names_the_classes_and_is_checked_before_the_export(tmp_path, checkpoint, monkeypatch):
    (tmp_path / "labels.txt").write_text("ant\nbee\ncat\ndog\nelk, wapiti\n")
    named = ServingConfig(name="m", labels=str(tmp_path / "labels.txt"))
    export_repository(checkpoint, tmp_path / "repo", named)
    assert len(read_repository(tmp_path / "repo")) == 1
    assert (tmp_path / "repo/m/labels.txt").read_text() == (tmp_path / "labels.txt").read_text()
    (tmp_path / "labels.txt").write_text("ant\n")
    from dyvit_deploy.serving import export
    monkeypatch.setattr(export, "export_artifact", lambda *_: pytest.fail("exported in vain"))
    with pytest.raises(DataError, match="has 1 names, and the model has 5 classes"):
        export_repository(checkpoint, tmp_path / "other", named)


def test_a_name_that_is_taken_is_refused_before_the_export(tmp_path, checkpoint, monkeypatch):
    export_repository(checkpoint, tmp_path / "repo")
    from dyvit_deploy.serving import export
    monkeypatch.setattr(export, "export_artifact", lambda *_: pytest.fail("exported in vain"))
    with pytest.raises(ConfigError, match="--model-version 2"):
        export_repository(checkpoint, tmp_path / "repo")


def test_nothing_is_left_when_the_disk_fills_up_half_way(tmp_path, checkpoint, monkeypatch):
    from dyvit_deploy.serving import repository

    def full(source, target):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(repository.shutil, "copyfile", full)
    with pytest.raises(ArtifactError, match="No space left"):
        export_repository(checkpoint, tmp_path / "repo")
    assert [path.name for path in (tmp_path / "repo").rglob("*")] == []
    assert not list(tmp_path.glob(".dyvit-*"))


@pytest.mark.parametrize("settings, config, load, words", [
    (ServingConfig(engine="e.plan"), DeployConfig(), RATIOS, "leave out the options of precision, graph"),
    (ServingConfig(engine="e.plan"), DeployConfig(precision=PrecisionConfig("int8")), LoadConfig(), "leave out"),
    (ServingConfig(engine="m.onnx"), DeployConfig(), LoadConfig(), "takes a TensorRT plan"),
    (ServingConfig(), DeployConfig(), LoadConfig(keep=KeepRequest(ratios=(1.5, 0.7))), "at most 1"),
    (ServingConfig(), DeployConfig(build=BuildConfig(tf32=True)), LoadConfig(), "builds no engine"),
    (ServingConfig(), DeployConfig(), LoadConfig(keep=KeepRequest(ratios=(0.5, 0.5))), "name a model twice"),
    (ServingConfig(), DeployConfig(precision=PrecisionConfig("int8")), LoadConfig(), "calibrated on images"),
])
def test_contradictions_are_refused_before_the_work(tmp_path, checkpoint, settings, config, load, words):
    with pytest.raises(ConfigError, match=words):
        export_repository(checkpoint, tmp_path / "repo", settings, config, load)
    with pytest.raises(ConfigError, match=words):
        plan_repository(checkpoint, tmp_path / "repo", settings, config, load)


def test_a_graph_that_is_there_takes_no_pruning(tmp_path, checkpoint):
    for keep in (KeepRequest(ratio=0.5), KeepRequest(ratios=(0.5,)), KeepRequest(counts=(3, 2, 1))):
        with pytest.raises(ConfigError, match="was fixed when it was made"):
            export_repository(tiny_graph(tmp_path), tmp_path / "repo", load=LoadConfig(keep=keep))


def test_a_graph_of_another_program_has_no_preprocessing_to_serve_with(tmp_path, checkpoint):
    import onnx
    path = tiny_graph(tmp_path)
    proto = onnx.load(path)
    del proto.metadata_props[:]
    onnx.save(proto, path)
    with pytest.raises(ArtifactError, match="was not written by dyvit"):
        export_repository(path, tmp_path / "repo")


@pytest.mark.parametrize("values", [{"name": "../up"}, {"name": "a b"}, {"name": ""}, {"instances": 0},
                                    {"max_batch": 0}, {"version": 0}, {"graph": "tflite"}])
def test_settings_out_of_range_are_refused(values):
    with pytest.raises(ConfigError):
        ServingConfig(**values)


def test_a_configuration_survives_the_way_to_the_disk_and_back(tmp_path, checkpoint):
    export_repository(checkpoint, tmp_path / "repo", ServingConfig(name="m"), load=RATIOS)
    for path in (tmp_path / "repo").glob("*/config.pbtxt"):
        config = read_pbtxt(path)
        assert normal(config) == config and config["name"] == path.parent.name
        (tmp_path / "again").write_text(to_pbtxt(config))
        assert read_pbtxt(tmp_path / "again") == config


def test_a_dry_run_writes_nothing(tmp_path, checkpoint):
    plan = plan_repository(checkpoint, tmp_path / "repo", load=RATIOS)
    assert "and a router" in plan.steps[-1] and not (tmp_path / "repo").exists()


