import pytest
from helpers import cached_export

from dyvit_deploy.deploy import pipeline


@pytest.fixture
def quick_export(monkeypatch):
    """Exports each tiny model once: torch takes two seconds for it, and these tests are about what comes after."""
    monkeypatch.setattr(pipeline, "export_onnx", cached_export)
