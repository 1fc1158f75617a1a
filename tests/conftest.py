"""What all tests share. Heavy imports are within the fixtures: the process that only hands out tests needs none."""
import pytest


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory):
    """A folder that is one for all processes of this run."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if base.name.startswith("popen-") else base


@pytest.fixture(scope="session", autouse=True)
def traces(session_folder):
    """Every equal export of a session is traced once; the tests of the exporter itself switch that off."""
    from traces import Traces

    from dyvit_deploy.export import onnx as exporter
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "_trace", found := Traces(session_folder / "traces"))
        yield found


@pytest.fixture
def quick_export(monkeypatch):
    """Exports each tiny model once, reading of the checkpoint included."""
    from helpers import cached_export

    from dyvit_deploy import pipeline
    monkeypatch.setattr(pipeline, "export_onnx", cached_export)
