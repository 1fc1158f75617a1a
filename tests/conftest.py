"""What all tests share. Heavy imports are within the fixtures: the process that only hands out tests needs none."""
import os
import pathlib
import signal

import pytest

# A shell without job control starts background jobs with Ctrl-C ignored; the programs that tests interrupt inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported: several processes share the cores, and tiny models only lose time to a second thread.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


# Files of few tests that take long: begun last, they would leave all processes but one without work.
LONG = ("engine/test_build.py", "export/test_onnx.py", "demo/test_quickstart.py", "training/test_distributed.py",
        "model/test_reference.py", "test_interop.py", "training/test_loop.py", "export/test_selectors.py",
        "visualization/test_visualize.py", "deploy/test_large.py", "test_readme.py", "test_docs.py",
        "report/test_report_docs.py", "test_cpp.py")


def pytest_collection_modifyitems(items):
    """The files in LONG first, in that order; all others as they are."""
    rank = {name: number for number, name in enumerate(LONG)}
    here = pathlib.Path(__file__).parent
    items.sort(key=lambda item: rank.get(item.path.relative_to(here).as_posix(), len(LONG)))


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory):
    """A folder that is one for all processes of this run."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if base.name.startswith("popen-") else base


@pytest.fixture(scope="session", autouse=True)
def traces(request):
    """Every equal export is traced once; the tests of the exporter itself switch that off."""
    from traces import Traces

    from dyvit_deploy.export import onnx as exporter
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "_trace", found := Traces(request.config.cache.mkdir("traces")))
        yield found


@pytest.fixture(scope="session", autouse=True)
def one_thread_each():
    """ONNX Runtime's threads wait by spinning, on cores that another process of the tests has work for."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    import onnxruntime as ort
    opened = ort.InferenceSession.__init__

    def open_with_one(session, model, sess_options=None, *more, **options):
        sess_options = sess_options or ort.SessionOptions()
        sess_options.intra_op_num_threads = sess_options.intra_op_num_threads or 1
        opened(session, model, sess_options, *more, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ort.InferenceSession, "__init__", open_with_one)
        yield


@pytest.fixture
def quick_export(monkeypatch):
    """Exports each tiny model once, reading of the checkpoint included."""
    from helpers import cached_export

    from dyvit_deploy.deploy import pipeline
    monkeypatch.setattr(pipeline, "export_onnx", cached_export)
