"""Servers that are missing, too old, broken, or occupy a port: one sentence each."""
import contextlib
import http.server
import json
import os
import socket
import stat
import threading
import tracemalloc

import numpy as np
import pytest
from helpers import dyvit, photo_folder, plan_file, tiny_checkpoint

from dyvit_deploy.engine.config import BuildConfig
from dyvit_deploy.errors import BackendError, ConfigError, MissingDependency
from dyvit_deploy.serving import check, server
from dyvit_deploy.serving.client import Address, Client, to_outputs
from dyvit_deploy.serving.config import ServingConfig
from dyvit_deploy.serving.export import export_repository
from dyvit_deploy.serving.repository import read_repository
from dyvit_deploy.serving.server import Ports, Server, check_version, find_triton

pytest.importorskip("tritonclient.grpc", reason="tritonclient is missing: pip install 'dyvit-deploy[triton]'")


@pytest.fixture
def repository(tmp_path, quick_export):
    export_repository(tiny_checkpoint(tmp_path), tmp_path / "repository", ServingConfig(name="m"))
    return tmp_path / "repository"


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def answering(request):
    """A server that is not a Triton: every path gives the same JSON."""
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(request.param).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_): ...
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


def test_a_missing_server_comes_with_the_command_that_installs_one(monkeypatch, tmp_path, repository):
    monkeypatch.delenv("DYVIT_TRITON", raising=False)
    monkeypatch.setattr(server.shutil, "which", lambda name: None)
    monkeypatch.setattr(server.sys, "prefix", str(tmp_path))
    with pytest.raises(MissingDependency, match="pip install --no-deps nvidia-pytriton"):
        find_triton()
    result = dyvit("serve", repository, "--check", "--triton", tmp_path / "nowhere")
    assert result.exit_code == 1 and "There is no Triton Inference Server in" in result.output


def test_an_environment_with_numpy_2_is_refused_because_it_would_give_wrong_tensors(tmp_path):
    packages = tmp_path / "env/lib/site-packages"
    script(packages / "pytriton/tritonserver/bin/tritonserver", "")
    probed = json.dumps(["2.4.6", "3.11", "/lib", str(packages)])
    script(tmp_path / "env/bin/python", f"#!/bin/sh\necho '{probed}'\n")
    with pytest.raises(BackendError, match=r"numpy 2\.4\.6.*pip install 'numpy<2'"):
        find_triton(tmp_path / "env")


@pytest.mark.parametrize("known", ["", "/opt/mine:/opt/yours", ":/opt/mine:"])
def test_the_libraries_of_the_user_stay_on_the_path_of_the_server(tmp_path, monkeypatch, known):
    monkeypatch.setenv("LD_LIBRARY_PATH", known)
    packages = tmp_path / "env/lib/site-packages"
    script(packages / "pytriton/tritonserver/bin/tritonserver", "")
    script(packages / "pytriton/tritonserver/python_backend_stubs/3.11/triton_python_backend_stub", "")
    probed = json.dumps(["1.26.4", "3.11", "/lib", str(packages)])
    script(tmp_path / "env/bin/python", f"#!/bin/sh\necho '{probed}'\n")
    environment = find_triton(tmp_path / "env").environment
    own = ["/lib", str(packages / "nvidia_pytriton.libs")]
    # An empty entry would be the current directory.
    assert environment["LD_LIBRARY_PATH"].split(":") == own + [folder for folder in known.split(":") if folder]
    assert environment["PATH"].split(":")[1:] == os.environ["PATH"].split(":")


def test_kept_tokens_of_more_than_ten_stages_stay_in_order():
    kept = {f"kept_{stage}": np.full((1, 1), stage) for stage in (10, 11, *range(10))}
    outputs = to_outputs(kept | {"logits": np.zeros((1, 5), np.float32)})
    assert [int(stage[0, 0]) for stage in outputs.kept] == list(range(12))


def test_the_check_of_a_server_does_not_keep_the_images(tmp_path, repository):
    [model] = read_repository(repository)
    photo_folder(tmp_path / "photos", count=24, side=600)

    def peak(count):
        tracemalloc.start()
        with contextlib.ExitStack() as stack:
            images = check._encoded(str(tmp_path / "photos"), model, count)
            checked = check._ModelCheck(stack, Address("nowhere"), model, images)
            assert len(images) == count and len(checked.expected.logits) == count
            found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found / 2**20
    peak(4)
    # Each image has 1.03 MiB of pixels.
    assert peak(24) - peak(8) < 3


@pytest.mark.parametrize("answering, words", [
    ({"name": "triton", "version": "2.10.0"}, "is version 2.10.0; its Python models need 2.51 or later"),
    ({"name": "something"}, "does not answer as a Triton"), ([1], "does not answer as a Triton"),
], indirect=["answering"])
def test_a_server_that_is_too_old_or_no_triton_is_refused(answering, words, repository):
    with pytest.raises(BackendError, match=words):
        check_version(f"http://{answering}")
    result = dyvit("serve", repository, "--check", "--url", answering)
    assert result.exit_code == 1 and words in result.output


def test_a_server_that_is_not_there_is_one_sentence(repository):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    result = dyvit("serve", repository, "--check", "--url", f"127.0.0.1:{port}")
    assert result.exit_code == 1 and "check the address" in result.output


def test_a_server_that_closes_the_connection_is_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        def close():
            connection, _ = listening.accept()
            connection.recv(1)
            connection.close()
        threading.Thread(target=close, daemon=True).start()
        with pytest.raises(BackendError, match="Triton does not answer"), \
                Client(Address(f"127.0.0.1:{listening.getsockname()[1]}")) as client:
            client.infer("m", {"images": np.zeros((1, 3, 4, 4), np.float32)}, ["logits"])


def test_a_port_that_is_taken_is_named(tmp_path, repository, monkeypatch):
    fake = script(tmp_path / "tritonserver", "#!/bin/sh\nexit 1\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BackendError, match=f"Port {port} cannot be used"):
            Ports.from_first(port)
        result = dyvit("serve", repository, "--triton", fake, "--port", port)
        assert result.exit_code == 1 and f"Port {port}" in result.output
    with pytest.raises(ConfigError, match="A port is a number"):
        Ports.from_first(0)


def test_a_server_that_stops_at_once_is_an_error_with_the_reason(tmp_path, repository):
    fake = script(tmp_path / "bin/tritonserver", "#!/bin/sh\necho 'error: creating server: no luck'\nexit 1\n")
    with pytest.raises(BackendError, match="Triton stopped: error: creating server: no luck"), \
            Server(find_triton(fake), repository, Ports.from_first(None)):
        pass


@pytest.mark.parametrize("compatible", [True, False])
def test_serve_starts_the_server_with_the_option_that_version_compatible_plans_need(tmp_path, compatible):
    plan = plan_file(tmp_path, config=BuildConfig(version_compatible=compatible))
    export_repository(plan, tmp_path / "repository", ServingConfig(name="m"))
    fake = script(tmp_path / "bin/tritonserver", f"#!/bin/sh\necho \"$@\" > {tmp_path}/typed\nexit 1\n")
    for more in ([], ["--check"]):
        assert dyvit("serve", tmp_path / "repository", "--triton", fake, *more).exit_code == 1
        typed = (tmp_path / "typed").read_text().split()
        assert typed.count("--backend-config=tensorrt,version-compatible=true") == compatible


def test_a_graph_that_fits_no_profile_is_not_the_reason_for_a_failure(tmp_path, repository):
    harmless = ("E1127 10:00:00.000001 1 logging.cc:44] IExecutionContext::setInputShape: Error Code 3",
                "E1127 10:00:00.000002 1 instance_state.cc:3895] Failed to set cuda graph shape for m_0_0")
    lines = "".join(f"echo '{line}'\n" for line in (*harmless, "E1127 10:00:00.000003 1 server.cc:1] the real one"))
    fake = script(tmp_path / "bin/tritonserver", f"#!/bin/sh\n{lines}exit 1\n")
    with pytest.raises(BackendError, match="Triton stopped: the real one"), \
            Server(find_triton(fake), repository, Ports.from_first(None)):
        pass


def test_a_server_that_lacks_a_backend_gets_a_stand_in_with_a_note(tmp_path):
    fake = script(tmp_path / "bin/tritonserver", "")
    (tmp_path / "backends/python").mkdir(parents=True)
    triton = find_triton(fake)
    with server.backend_folder(triton, ["onnxruntime", "tensorrt"]) as folder:
        assert sorted(os.listdir(folder)) == ["onnxruntime", "python"]
        assert (folder / "onnxruntime/model.py").read_text() == server.STAND_IN.read_text()
    (tmp_path / "backends/onnxruntime").mkdir()
    with server.backend_folder(triton, ["onnxruntime"]) as folder:
        # The server's own folder is used if it lacks nothing.
        assert folder == triton.backends


@pytest.mark.parametrize("options, words", [
    (("--url", "127.0.0.1:1"), "are for --check"), (("--data", "digits2"), "are for --check"),
    (("--json", "r.json"), "the report of --check"), (("--check", "--url", "h:1", "--port", 1), "leave out --triton"),
    (("--check", "--port", 0, "--triton", "FAKE"), "A port is a number"),
])
def test_options_that_would_do_nothing_are_refused(repository, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    fake = script(tmp_path / "bin/tritonserver", "")
    result = dyvit("serve", repository, *(fake if option == "FAKE" else option for option in options))
    assert result.exit_code == 2 and words in result.output


@pytest.mark.parametrize("url", ["localhost:http", "no such host:1", "[::1"])
def test_an_invalid_address_is_one_sentence(repository, url):
    result = dyvit("serve", repository, "--check", "--url", url)
    assert result.exit_code == 1 and "check the address" in result.output


def test_serving_options_are_for_repositories_only(tmp_path):
    result = dyvit("export", tiny_checkpoint(tmp_path), "-o", tmp_path / "m.onnx", "--instances", 2)
    assert result.exit_code == 2 and "add --format triton" in result.output
    result = dyvit("export", tiny_checkpoint(tmp_path), "--format", "tritn", "-o", tmp_path / "m")
    assert result.exit_code == 2 and "'triton'" in result.output


