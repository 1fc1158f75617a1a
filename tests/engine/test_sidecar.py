import dataclasses
import json

import pytest
from helpers import tiny_model

from dyvit_deploy.engine.config import BatchProfile, BuildConfig
from dyvit_deploy.engine.layers import EngineLayer
from dyvit_deploy.engine.sidecar import EngineFacts, is_altered, read_sidecar, sidecar_path, write_plan
from dyvit_deploy.errors import ArtifactError

PLAN = b"vtrt and the rest of a plan"


@pytest.fixture
def written(tmp_path):
    facts = EngineFacts(
        plan={"sha256": "0" * 64, "bytes": len(PLAN)}, builder={"format": "rtx", "version": "1.7.1"},
        config=BuildConfig((BatchProfile(1, 2, 4, "a"),), 64.0), target={"gpu": None, "system": "linux-x86_64"},
        profiles=(BatchProfile(1, 2, 4, "a"),), inputs={"images": ["float32", [None, 3, 32, 32]]}, outputs={},
        products={"head/Gemm": "float16"}, source={"file": "m.onnx", "sha256": "1" * 64}, rebuild="dyvit build m.onnx",
        model=tiny_model()[1], layers=(EngineLayer("g", "gemm", ("float16",), ("head/Gemm",)),))
    write_plan(tmp_path / "e.plan", PLAN, facts)
    return tmp_path / "e.plan", facts


def test_facts_survive_the_way_to_the_disk_and_back(written):
    path, facts = written
    assert path.read_bytes() == PLAN and read_sidecar(path) == facts


def test_a_plan_alone_has_no_facts(written):
    path, _ = written
    sidecar_path(path).unlink()
    assert read_sidecar(path) is None


def test_a_changed_plan_is_noticed(written):
    path, facts = written
    import hashlib
    good = dataclasses.replace(facts, plan={"sha256": hashlib.sha256(PLAN).hexdigest(), "bytes": len(PLAN)})
    assert is_altered(path, facts) and not is_altered(path, good)


@pytest.mark.parametrize("change, words", [
    (lambda v: "no json", "does not describe an engine"),
    (lambda v: [1], "does not describe an engine"),
    (lambda v: v | {"format": 99}, "written in format 99, this dyvit reads format 1; .* or build the engine again"),
    (lambda v: {k: x for k, x in v.items() if k != "plan"}, "does not describe an engine"),
    (lambda v: v | {"plan": {}}, "plan lacks bytes, sha256"),
    (lambda v: v | {"builder": {"format": "rtx"}}, "builder lacks version"),
    (lambda v: v | {"builder": {"format": "../x", "version": "1"}}, "does not describe an engine"),
    (lambda v: v | {"config": {"profiles": []}}, "at least one profile"),
    (lambda v: v | {"surprise": 1}, "no field 'surprise'"),
    (lambda v: v | {"profiles": [{"min": 3, "opt": 1, "max": 2}]}, "does not describe an engine"),
])
def test_other_json_beside_a_plan_is_refused_in_one_sentence(written, change, words):
    path, _ = written
    values = change(json.loads(sidecar_path(path).read_text()))
    sidecar_path(path).write_text(values if isinstance(values, str) else json.dumps(values))
    with pytest.raises(ArtifactError, match=words) as caught:
        read_sidecar(path)
    assert "\n" not in str(caught.value)


def test_a_plan_is_never_left_beside_the_facts_of_another(written, monkeypatch):
    path, facts = written
    from dyvit_deploy.artifacts import files as artifacts
    replace = artifacts.os.replace

    def fails_for_plans(source, target):
        if str(target).endswith(".plan"):
            raise OSError(28, "No space left on device")
        replace(source, target)
    monkeypatch.setattr(artifacts.os, "replace", fails_for_plans)
    with pytest.raises(ArtifactError, match="could not be written"):
        write_plan(path, b"vtrt new", dataclasses.replace(facts, plan={"sha256": "2" * 64, "bytes": 8}))
    assert path.read_bytes() == PLAN and is_altered(path, read_sidecar(path))
