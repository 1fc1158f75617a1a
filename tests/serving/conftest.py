"""One Triton for all tests that need no server of their own: models are loaded into it and taken out again."""
import contextlib
import time
from pathlib import Path

import pytest
from helpers import HANGS

from dyvit_deploy.serving.client import Address
from dyvit_deploy.serving.repository import VERSION_COMPATIBLE
from dyvit_deploy.serving.server import LOOPBACK, Ports, Server, find_triton


class SharedTriton:
    """A server without models, and the folder in which it looks for them."""

    def __init__(self, server, folder):
        http = pytest.importorskip("tritonclient.http")
        self.server, self.folder = server, folder
        self.address = Address(f"{LOOPBACK}:{server.ports.http}", f"{LOOPBACK}:{server.ports.grpc}")
        self.client = http.InferenceServerClient(self.address.http, network_timeout=HANGS, connection_timeout=HANGS)

    @contextlib.contextmanager
    def loaded(self, repository):
        """Serves every model of `repository` meanwhile."""
        def last(place):                                                   # an ensemble needs its parts, a router all
            text = (place / "config.pbtxt").read_text()
            return "ensemble" in text, 'key: "models"' in text, place.name
        places = sorted((p.parent for p in Path(repository).glob("*/config.pbtxt")), key=last)
        try:
            for place in places:
                (self.folder / place.name).symlink_to(place.resolve())
                self.client.load_model(place.name)
            yield self
        finally:
            for place in reversed(places):
                if (self.folder / place.name).is_symlink():
                    self._unload(place.name)
                    (self.folder / place.name).unlink()

    def _unload(self, name):
        """Until it is gone, because the next one may have its name."""
        self.client.unload_model(name)
        ends = time.monotonic() + HANGS
        while any(model["name"] == name and model.get("state") not in (None, "UNAVAILABLE")
                  for model in self.client.get_model_repository_index()):
            assert time.monotonic() < ends
            time.sleep(0.02)


@pytest.fixture(scope="session")
def triton(tmp_path_factory):
    """Started once; with the option that version-compatible plans need, which others take no notice of."""
    folder = tmp_path_factory.mktemp("triton") / "repository"
    folder.mkdir()
    options = ["--model-control-mode=explicit", VERSION_COMPATIBLE]
    with Server(find_triton(), folder, Ports.from_first(None), ["onnxruntime", "openvino"], options) as server:
        yield SharedTriton(server, folder)
