"""A folder with artifacts and reports, and its page; made once, because four artifacts are exported and timed."""
import shutil

import pytest
from filelock import FileLock
from helpers import cached_export, dyvit, photo_folder, tiny_checkpoint

from dyvit_deploy.config import KeepRequest, LoadConfig
from dyvit_deploy.export.config import ExportConfig


@pytest.fixture(scope="session")
def measured(session_folder):
    """Two checkpoints, two graphs of the pruned one (one tells its tokens) and one of the dense one, their reports,
    and photos of five classes. All processes of a session share it: tests that change something take `copied`."""
    folder, done = session_folder / "measured" / "shop window", session_folder / "measured.done"
    with FileLock(session_folder / "measured.lock"):
        if not done.exists():
            measure(folder)
            done.touch()
    return folder


def measure(folder):
    folder.mkdir(parents=True)
    photo_folder(folder.parent / "photos", count=10, classes=5)
    pruned, dense = tiny_checkpoint(folder), tiny_checkpoint(folder, ratio=None)
    cached_export(pruned, folder / "tiny.onnx", ExportConfig(with_tokens=True))
    cached_export(pruned, folder / "plain.onnx")
    cached_export(dense, folder / "dense.onnx", load=LoadConfig(keep=KeepRequest(ratio=1.0)))
    photos = str(folder.parent / "photos")
    for reference, graph in (("tiny.safetensors", "tiny.onnx"), ("tiny-dense.safetensors", "dense.onnx")):
        dyvit("check", folder / reference, folder / graph, "--data", photos, "--images", 10,
              "--json", folder / f"{graph}.check.json")
    for name in ("tiny.safetensors", "tiny-dense.safetensors", "tiny.onnx", "dense.onnx"):
        dyvit("eval", folder / name, "--data", photos, "--json", folder / f"{name}.eval.json")
    dyvit("bench", folder / "tiny.onnx", folder / "tiny.safetensors", "--baseline", folder / "dense.onnx",
          "--batch", "1,4", "--seconds", "0.3", "--json", folder / "bench.json")


@pytest.fixture
def copied(measured, tmp_path):
    """A copy to change, with the photos beside it."""
    shutil.copytree(measured.parent, tmp_path / "copy")
    return tmp_path / "copy" / measured.name
