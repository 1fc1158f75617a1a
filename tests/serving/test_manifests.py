"""The manifests of docs/scaling.md fit the schemas of Kubernetes and KServe."""
import os

import pytest
import yaml
from helpers import ROOT

DOCS = ROOT / "docs"


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
