"""Preflight of plans before they are loaded; other kinds of plans and libraries are in tests/runners."""
import re

import pytest
from helpers import needs_rtx, tiny_graph

from dyvit_deploy.engine import preflight as module
from dyvit_deploy.engine.build import build_engine
from dyvit_deploy.engine.config import BatchProfile, BuildConfig
from dyvit_deploy.engine.preflight import preflight, read_plan_header, require_loadable
from dyvit_deploy.engine.sidecar import sidecar_path
from dyvit_deploy.errors import ArtifactError, BackendError
from dyvit_deploy.inspect.artifact import inspect_artifact
from dyvit_deploy.machine.hardware import Gpu

pytestmark = needs_rtx
ADA, AMPERE, HOPPER = Gpu("Ada", "8.9"), Gpu("Ampere", "8.6"), Gpu("Hopper", "9.0")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plans")
    graph = tiny_graph(folder)
    profiles = (BatchProfile(1, 2, 4),)
    build_engine(graph, folder / "e.plan", "rtx", BuildConfig(profiles))
    build_engine(graph, folder / "ada.plan", "rtx", BuildConfig(profiles, compute_capabilities=("8.9",)))
    return folder


@pytest.fixture
def plan(built, tmp_path):
    for name in ("e.plan", "e.plan.json", "ada.plan", "ada.plan.json"):
        (tmp_path / name).write_bytes((built / name).read_bytes())
    return tmp_path / "e.plan"


def see(monkeypatch, gpu):
    monkeypatch.setattr(module, "gpu", lambda: gpu)


def test_a_plan_for_this_machine_has_no_problems(plan, monkeypatch):
    see(monkeypatch, ADA)
    report = preflight(plan)
    assert report and not report.problems and report.advice == "" and report.to_json()["will_load"]
    spec, facts = require_loadable(plan, trust=False)
    assert spec.format == "rtx" and facts.model is not None


def test_without_a_gpu_the_advice_is_another_machine_not_another_build(plan, monkeypatch):
    see(monkeypatch, None)
    assert not preflight(plan)
    with pytest.raises(BackendError, match="no NVIDIA GPU with a driver works here; take it to a machine"):
        require_loadable(plan, trust=False)


def test_another_gpu_than_it_was_built_for_is_named_with_the_command(plan, monkeypatch):
    see(monkeypatch, AMPERE)
    with pytest.raises(BackendError, match=r"for compute capability 8\.9, and Ampere has 8\.6; build it again here: "
                                           r"dyvit build .*--format rtx"):
        require_loadable(plan.with_name("ada.plan"), trust=False)


@pytest.mark.parametrize("capability", ["9.0", "10.0", "10.3", "11.0"])
@pytest.mark.parametrize("name, sidecar", [("e.plan", True), ("ada.plan", True), ("e.plan", False)])
def test_a_gpu_that_the_library_does_not_support_is_a_problem_that_no_rebuild_solves(
        plan, monkeypatch, name, sidecar, capability):
    see(monkeypatch, HOPPER._replace(compute_capability=capability))
    path = plan.with_name(name)
    if not sidecar:
        sidecar_path(path).unlink()
    report = preflight(path)
    assert report.problems == (f"TensorRT for RTX does not support Hopper (compute capability {capability})",)
    assert report.advice == "use TensorRT on this GPU: make the engine with --format trt"
    assert report.to_json()["advice"] == report.advice and not report.to_json()["will_load"]
    with pytest.raises(BackendError, match=r"^[^\n]*does not support Hopper [^\n]*; use TensorRT on this GPU: [^\n]*$"):
        require_loadable(path, trust=True)
    assert "should load" not in inspect_artifact(path).details["here"]


def test_a_changed_plan_on_such_a_gpu_needs_another_library_not_another_copy(plan, monkeypatch):
    see(monkeypatch, HOPPER)
    plan.write_bytes(plan.read_bytes()[:-1] + b"\0")
    assert "--format trt" in preflight(plan).advice


@pytest.mark.parametrize("capability", ["8.0", "8.9", "12.0", "12.1"])
def test_gpus_that_the_library_supports_load_a_plan_for_any_of_them(plan, monkeypatch, capability):
    see(monkeypatch, ADA._replace(compute_capability=capability))
    assert preflight(plan)


def test_another_version_is_named_with_both(plan, monkeypatch):
    see(monkeypatch, ADA)
    text = sidecar_path(plan).read_text()
    version = text.split('"version": "')[1].split('"')[0]
    sidecar_path(plan).write_text(text.replace(f'"version": "{version}"', '"version": "1.3.0.35"', 1))
    with pytest.raises(BackendError, match=rf"built by TensorRT for RTX 1\.3\.0\.35, and {version} is installed"):
        require_loadable(plan, trust=False)


def test_another_system_is_named(plan, monkeypatch):
    see(monkeypatch, ADA)
    sidecar_path(plan).write_text(sidecar_path(plan).read_text().replace("linux-x86_64", "windows-amd64"))
    assert any("built for windows-amd64" in problem for problem in preflight(plan).problems)


def test_a_changed_plan_is_loaded_only_on_trust(plan, monkeypatch):
    see(monkeypatch, ADA)
    content = bytearray(plan.read_bytes())
    content[-100] ^= 1
    plan.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"not the file that e\.plan\.json describes; .*native code.*--trust"):
        require_loadable(plan, trust=False)
    spec, facts = require_loadable(plan, trust=True)
    # Its facts are not those of this plan.
    assert spec.format == "rtx" and facts is None


def test_a_plan_without_its_sidecar_has_its_library_and_version(plan, monkeypatch):
    see(monkeypatch, ADA)
    sidecar_path(plan).unlink()
    report = preflight(plan)
    assert report and report.built["library"].startswith("TensorRT for RTX 1.") and report.notes[0].endswith("--trust.")
    with pytest.raises(ArtifactError, match=r"has no e\.plan\.json.*native code.*--trust"):
        require_loadable(plan, trust=False)
    assert require_loadable(plan, trust=True)[1] is None
    shown = inspect_artifact(plan)
    assert shown.facts is None and shown.engine is None and "first bytes" in shown.details["described by"]
    assert shown.details["here"] == "should load, with --trust"


@pytest.mark.parametrize("content, words", [
    (b"not a plan at all, but long enough to hold a header", "is not an engine plan"),
    (b'\x10\x00\x00\x00{"names": 1}vtrt' + bytes(64), "put its own data before the plan, cut that off"),
    (b"", "is empty"),
])
def test_a_file_that_is_not_a_plan_is_refused(tmp_path, content, words):
    (tmp_path / "x.plan").write_bytes(content)
    with pytest.raises(ArtifactError, match=words):
        preflight(tmp_path / "x.plan")


def test_a_plan_that_was_cut_short_is_refused_with_both_sizes(plan):
    whole = plan.stat().st_size
    plan.write_bytes(plan.read_bytes()[:whole // 2])
    sidecar_path(plan).unlink()
    with pytest.raises(ArtifactError, match=f"has {whole // 2} of the {whole} bytes"):
        read_plan_header(plan)


def test_inspect_shows_layers_and_lineage_without_loading_the_plan(plan):
    report = inspect_artifact(plan)
    assert report.engine.builder["format"] == "rtx" and report.keep_counts == (8, 4, 2)
    assert report.details["block 0"].startswith("attn.qkv float32") and report.details["profiles"]
    assert report.facts.parent["file"] == "tiny.safetensors" and report.details["source"]
    assert report.table()


@pytest.mark.parametrize("precision, gpu, words", [
    ("float8", AMPERE, "computes in float8, which Ampere .compute capability 8.6. does not support"),
    ("float32", Gpu("Turing", "7.5"), "no float32 products for Turing"), ("float8", ADA, None),
])
def test_a_gpu_without_the_plans_data_types_is_a_problem(plan, monkeypatch, precision, gpu, words):
    see(monkeypatch, gpu)
    text = sidecar_path(plan).read_text().replace('"head/Gemm": "float32"', f'"head/Gemm": "{precision}"')
    sidecar_path(plan).write_text(text)
    problems = " ".join(preflight(plan).problems)
    assert not problems if words is None else re.search(words, problems)
    if "Turing" in problems:
        assert "--format trt" in preflight(plan).advice


def test_the_command_to_build_again_is_for_the_gpu_that_is_here(plan, monkeypatch):
    see(monkeypatch, AMPERE)
    assert "--compute-capability 8.6 " in preflight(plan.with_name("ada.plan")).advice


def test_a_changed_plan_is_not_described_by_its_old_sidecar(plan):
    content = bytearray(plan.read_bytes())
    content[-100] ^= 1
    plan.write_bytes(content)
    report = inspect_artifact(plan)
    assert report.engine is None and report.facts is None and "of another plan" in report.details["described by"]
    assert "copy it again" in preflight(plan).advice
