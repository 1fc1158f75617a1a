"""What docs/triton.md and docs/scaling.md say is so: their lines are typed, their Python asks a real server, their
manifests fit the schemas. docs/cpp.md is held by test_cpp.py."""
import os
import re
import shlex

import numpy as np
import pytest
import yaml
from helpers import ROOT, dyvit, needs_triton
from PIL import Image

from dyvit_deploy.export.onnx import export_onnx
from dyvit_deploy.quickstart import STUDENT
from dyvit_deploy.serving.export import export_repository
from dyvit_deploy.serving.server import Ports, Server, find_triton

DOCS = ROOT / "docs"
pytest.importorskip("tritonclient.grpc", reason="tritonclient is missing: pip install 'dyvit-deploy[triton]'")


def blocks(page):
    """The fenced blocks of a page: their kind and text."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (DOCS / page).read_text(), re.S | re.M)


def commands(page):
    return [line.split("  #")[0].strip() for kind, text in blocks(page) if kind == "sh" for line in text.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the pages take as there: a checkpoint, its graph, photos."""
    pytest.importorskip("sklearn", reason="the pages use the digit scenes")
    folder = tmp_path_factory.mktemp("docs")
    (folder / "ckpt.safetensors").write_bytes(STUDENT.read_bytes())
    export_onnx(STUDENT, folder / "model.onnx")
    (folder / "photos").mkdir()
    for name in ("photo.jpg", "another.png", "photos/1.jpg", "photos/2.png"):
        pixels = np.random.default_rng(len(name)).integers(0, 256, (90, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.mark.parametrize("page", ["triton.md", "scaling.md"])
def test_every_block_is_run_here_or_says_what_it_needs(page):
    for kind, text in blocks(page):
        assert kind in ("sh", "python") or (kind == "" and re.match(r"# (needs|runs until) ", text)), text


@pytest.mark.parametrize("page", ["triton.md", "scaling.md"])
def test_the_commands_of_a_page_work_as_they_stand(folder, page, monkeypatch):
    monkeypatch.chdir(folder)
    lines = commands(page)
    assert len(lines) >= 2
    for line in lines:
        words = shlex.split(line)
        if words[1] == "serve" and "DYVIT_TRITON" not in os.environ:
            continue
        if "--openvino" in words:
            pytest.importorskip("openvino")
        if "--parquet" in words:
            pytest.importorskip("pyarrow")
        result = dyvit(*words[1:])
        assert words[0] == "dyvit" and result.exit_code == 0, f"{line}: {result.output}"


@needs_triton
def test_the_python_of_the_triton_page_asks_a_server(folder, tmp_path, monkeypatch, capsys):
    export_repository(folder / "ckpt.safetensors", tmp_path / "repository")
    monkeypatch.chdir(folder)
    found = [text for kind, text in blocks("triton.md") if kind == "python"]
    with Server(find_triton(), tmp_path / "repository", Ports.from_first(None), ["onnxruntime"]) as server:
        for text in found:
            text = text.replace(":8000", f":{server.ports.http}").replace(":8001", f":{server.ports.grpc}")
            exec(compile(text, "triton.md", "exec"), {})
    printed = capsys.readouterr().out
    assert len(found) == 2 and "(8, 10)" in printed and re.search(r"b'-?[\d.]+:\d:\d'", printed)


@needs_triton
def test_the_python_in_a_repositorys_own_readme_asks_its_server(folder, tmp_path, monkeypatch, capsys):
    export_repository(folder / "ckpt.safetensors", tmp_path / "repository")
    [text] = re.findall(r"```python\n(.*?)```", (tmp_path / "repository/README.md").read_text(), re.S)
    monkeypatch.chdir(folder)
    with Server(find_triton(), tmp_path / "repository", Ports.from_first(None), ["onnxruntime"]) as server:
        exec(compile(text.replace(":8000", f":{server.ports.http}"), "README.md", "exec"), {})
    assert len(capsys.readouterr().out.split(":")) == 7


def test_the_kubernetes_manifest_fits_the_schemas_of_kubernetes():
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    documents = list(yaml.safe_load_all((DOCS / "kubernetes.yaml").read_text()))
    assert [document["kind"] for document in documents] == ["Deployment", "Service", "HorizontalPodAutoscaler"]
    for document in documents:
        validate.validate(document, validate.latest_version(), strict=True)
    documents[0]["spec"]["template"]["spec"]["containers"][0]["imaje"] = "x"
    with pytest.raises(validate.ValidationError):
        validate.validate(documents[0], validate.latest_version(), strict=True)


@pytest.mark.skipif("KSERVE_CRD" not in os.environ, reason="KSERVE_CRD does not name KServe's definition of an "
                    "InferenceService (serving.kserve.io_inferenceservices.yaml of its repository)")
def test_the_kserve_manifest_fits_the_schema_of_kserve():
    jsonschema = pytest.importorskip("jsonschema")
    with open(os.environ["KSERVE_CRD"]) as file:
        [version] = [v for v in yaml.safe_load(file)["spec"]["versions"] if v["name"] == "v1beta1"]
    schema = closed(version["schema"]["openAPIV3Schema"])
    manifest = yaml.safe_load((DOCS / "kserve.yaml").read_text())
    jsonschema.validate(manifest, schema)
    manifest["spec"]["predictor"]["model"]["storageUrl"] = "x"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, schema)


def closed(schema):
    """A structural schema in which unknown fields are errors, as the API server's strict validation has it."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: closed(part) for name, part in schema.items()}
    free = schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("properties", {}).get("annotations")
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not free:
        schema.setdefault("additionalProperties", False)
    return schema

