"""A real Triton Inference Server on exported repositories; its outputs are compared with the local runner."""
import contextlib
import io
import os
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers import HANGS, PHOTOS, dyvit, needs_photos, needs_triton, photo_folder, plan_file, tiny_checkpoint
from PIL import Image
from rich.console import Console

from dyvit_deploy.config import KeepRequest, LoadConfig
from dyvit_deploy.data.preprocess import resize_and_crop
from dyvit_deploy.deploy.config import DeployConfig
from dyvit_deploy.errors import BackendError
from dyvit_deploy.export.config import ExportConfig
from dyvit_deploy.export.onnx import export_onnx
from dyvit_deploy.runners.open import open_runner
from dyvit_deploy.serving.check import check_serving
from dyvit_deploy.serving.client import Address, Client, Refused
from dyvit_deploy.serving.config import ServeConfig, ServingConfig
from dyvit_deploy.serving.export import export_repository
from dyvit_deploy.serving.pbtxt import MAX_PIXELS
from dyvit_deploy.serving.repository import VERSION_COMPATIBLE, read_repository
from dyvit_deploy.serving.server import LOOPBACK, Ports, Server, find_triton, responds

pytest.importorskip("tritonclient.grpc", reason="tritonclient is missing: pip install 'dyvit-deploy[triton]'")
pytestmark = [pytest.mark.triton, needs_triton]
# Float32 with the same runtime on both sides.
EXACT = 1e-5


@contextlib.contextmanager
def serving(repository, *arguments):
    with Server(find_triton(), repository, Ports.from_first(None), ["onnxruntime"], arguments) as server:
        yield server, Address(f"{LOOPBACK}:{server.ports.http}", f"{LOOPBACK}:{server.ports.grpc}")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def repository(checkpoint, tmp_path_factory):
    """A model with kept tokens as outputs, and two keep ratios of uint8 input behind a router."""
    folder = tmp_path_factory.mktemp("served") / "repository"
    export_repository(checkpoint, folder, ServingConfig(name="one", max_batch=16),
                      DeployConfig(export=ExportConfig(with_tokens=True)))
    export_repository(checkpoint, folder, ServingConfig(name="two", max_batch=16),
                      DeployConfig(export=ExportConfig(input="uint8")), LoadConfig(keep=KeepRequest(ratios=(0.9, 0.5))))
    return folder


@pytest.fixture(scope="module")
def served(triton, repository):
    with triton.loaded(repository):
        yield triton.server, triton.address


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [np.asarray(Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(size, Image.BICUBIC))
            for size in [(40, 60), (60, 40), (50, 50), (200, 90)]]


def encode(pixels, kind="png"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def local(repository, name, pixels):
    [model] = [m for m in read_repository(repository) if m.name == name]
    with open_runner(model.servable.path, device="cpu") as runner:
        return runner.predict(np.stack([resize_and_crop(Image.fromarray(p), model.servable.facts.model)
                                        for p in pixels]))


def files(*contents):
    return {"encoded": np.array([[content] for content in contents], dtype=object)}


def statistics(address, name):
    [statistics] = address.get(f"/v2/models/{name}/stats")["model_stats"]
    return np.array([statistics["inference_count"], statistics["execution_count"]])


def test_every_way_of_sending_images_gives_what_the_local_runner_gives(repository, served, tmp_path):
    report = check_serving(repository, ServeConfig(str(photo_folder(tmp_path)), url=served[1].http))
    assert report, report.failures
    ways = {(row.model, row.way) for row in report.answers}
    assert {("two-0.5", "image files to two"), ("two-0.9", "tensors to two"), ("one", "raw images")} <= ways
    assert max(row.parity.max_error for row in report.answers) <= EXACT
    console = Console(file=io.StringIO(), width=160)
    console.print(report.table())
    assert len(report.refused) == 5 and "refused without harm to the server: a batch above" in console.file.getvalue()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_both_protocols_give_logits_and_kept_tokens(repository, served, images, protocol):
    expected = local(repository, "one", images)
    with Client(served[1], protocol) as client:
        found = client.infer("one-images", files(*map(encode, images)), ["logits", "kept_0", "kept_2"])
    np.testing.assert_allclose(found["logits"], expected.logits, atol=EXACT)
    np.testing.assert_array_equal(found["kept_2"], expected.kept[2])


@needs_photos
def test_photos_are_decoded_and_resized_as_here(repository, served):
    contents = [path.read_bytes() for path in sorted(PHOTOS.glob("*.jpg"))]
    pixels = [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in contents]
    with Client(served[1]) as client:
        found = client.infer("one-images", files(*contents), ["logits"])["logits"]
    np.testing.assert_allclose(found, local(repository, "one", pixels).logits, atol=EXACT)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_every_kind_of_pixel_becomes_rgb_as_here(repository, served, images, mode):
    image, file = Image.fromarray(images[0]).convert(mode), io.BytesIO()
    image.save(file, "jpeg" if mode == "CMYK" else "png")
    pixels = np.asarray(Image.open(file).convert("RGB"))
    with Client(served[1]) as client:
        found = client.infer("one-images", files(file.getvalue()), ["logits"])["logits"]
    np.testing.assert_allclose(found, local(repository, "one", [pixels]).logits, atol=EXACT)


def test_the_router_takes_the_requested_ratio_and_else_the_highest(repository, served, images):
    highest, lowest = (local(repository, f"two-{ratio}", images[:1]).logits for ratio in ("0.9", "0.5"))
    assert np.abs(highest - lowest).max() > 1e-3
    asked = [(None, highest), ({"keep_ratio": "0.9"}, highest), ({"keep_ratio": "0.50"}, lowest)]
    with Client(served[1]) as client:
        for parameters, expected in asked:
            found = client.infer("two", files(encode(images[0])), ["logits"], parameters)["logits"]
            np.testing.assert_allclose(found, expected, atol=EXACT)
        for wrong in ("0.7", "many", ""):
            with pytest.raises(Refused, match=r"choose one of: 0\.9, 0\.5"):
                client.infer("two", files(encode(images[0])), ["logits"], {"keep_ratio": wrong})


@pytest.mark.parametrize("name", ["one-images", "two"])
def test_classes_come_by_name(served, images, name):
    http = pytest.importorskip("tritonclient.http")
    image = http.InferInput("encoded", [1, 1], "BYTES")
    image.set_data_from_numpy(files(encode(images[0]))["encoded"])
    with http.InferenceServerClient(served[1].http) as client:
        answer = client.infer(name, [image], outputs=[http.InferRequestedOutput("logits", class_count=2)])
    value, number, label = answer.as_numpy("logits")[0, 0].decode().split(":")
    assert number == label and float(value)


def test_single_requests_share_batches_and_each_gets_its_own_answer(triton, checkpoint, images, tmp_path):
    """The server waits for a batch to be full, as long as it takes: how fast the clients are does not matter."""
    repository = tmp_path / "repository"
    export_repository(checkpoint, repository, ServingConfig(name="queue", max_batch=16))
    config = repository / "queue/config.pbtxt"
    patient, changed = re.subn(r"(max_queue_delay_microseconds: )\d+", rf"\g<1>{HANGS * 10 ** 6}", config.read_text())
    config.write_text(patient)
    assert changed == 1
    pixels = [np.roll(images[0], shift, axis=1) for shift in range(32)]
    expected, found = local(repository, "queue", pixels).logits, {}

    def ask(start):
        with Client(triton.address) as client:
            for i in range(start, 32, 16):
                found[i] = client.infer("queue-images", files(encode(pixels[i])), ["logits"])["logits"][0]
    with triton.loaded(repository):
        before = statistics(triton.address, "queue")
        together(*[lambda start=start: ask(start) for start in range(16)])
        requests, executions = statistics(triton.address, "queue") - before
    np.testing.assert_allclose(np.stack([found[i] for i in range(32)]), expected, atol=EXACT)
    assert requests == 32 and executions == 2


def together(*calls):
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def as_kind(kind):
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, kind)
    return file.getvalue()


def huge():
    """A PNG whose header has more pixels than the limit, and which has no data."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    side = int(MAX_PIXELS ** 0.5) + 10
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


@pytest.mark.parametrize("make_bad, words", [
    (lambda good: b"", "cannot be read"), (lambda good: b"no image", "cannot be read"),
    (lambda good: good[:len(good) // 2], "cannot be read"), (lambda good: huge(), "pixels, more than the 50000000"),
    (lambda good: as_kind("ico"), "cannot be read"), (lambda good: as_kind("eps"), "cannot be read"),
], ids=["empty", "text", "truncated", "huge", "ico", "eps"])
def test_a_bad_image_fails_its_own_request_alone(served, images, make_bad, words):
    good, answered, refused = encode(images[0], "jpeg"), [], []

    def ask(*contents):
        with Client(served[1]) as client:
            try:
                answered.append(client.infer("one-images", files(*contents), ["logits"])["logits"])
            except Refused as error:
                refused.append(str(error))
    together(lambda: ask(good), lambda: ask(good, make_bad(good)), lambda: ask(good))
    assert len(answered) == 2 and len(refused) == 1
    assert "image 1 of the request" in refused[0] and words in refused[0]


def test_the_preprocessing_wants_one_kind_of_image(served, images):
    raw = {"raw": images[0][None]}
    flat, empty = {"raw": images[0][None, :, :, :2]}, {"raw": images[0][None, :0]}
    for feeds, words in ((raw | files(encode(images[0])), "either `encoded` or `raw`"), (flat, "shape"),
                         (empty, "has no pixels")):
        with Client(served[1]) as client, pytest.raises(Refused, match=words):
            client.infer("one-images", feeds, ["logits"])


def test_clients_that_go_away_in_the_middle_leave_the_others_alone(served, images):
    head = b"POST /v2/models/one/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    for _ in range(10):
        with socket.create_connection((LOOPBACK, int(served[1].http.split(":")[1]))) as connection:
            connection.sendall(head + b'{"inputs"')
    with Client(served[1]) as client:
        client.infer("one-images", files(encode(images[0])), ["logits"])
    assert responds(f"http://{served[1].http}/v2/health/ready")


def test_a_new_version_takes_over_and_no_request_is_lost(checkpoint, tmp_path, images):
    repository = tmp_path / "repository"
    export_repository(checkpoint, repository, ServingConfig(name="m"))
    old, failures, seen = local(repository, "m", images[:1]).logits[0], [], []
    # The two versions differ only in their outputs.
    other = tiny_checkpoint(tmp_path, seed=1)
    with serving(repository, "--model-control-mode=poll", "--repository-poll-secs=1") as (_, address):
        done = threading.Event()

        def ask():
            with Client(address) as client:
                while not done.is_set():
                    try:
                        seen.append(client.infer("m-images", files(encode(images[0])), ["logits"])["logits"][0])
                    except BackendError as error:
                        failures.append(str(error))
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        export_repository(other, repository, ServingConfig(name="m", version=2))
        new = local(repository, "m", images[:1]).logits[0]
        ends = time.monotonic() + HANGS
        while time.monotonic() < ends and not (seen and np.allclose(seen[-1], new, atol=EXACT)):
            time.sleep(0.2)
        done.set()
        for thread in threads:
            thread.join()
    assert failures == [] and np.abs(old - new).max() > 1e-3
    assert np.allclose(seen[0], old, atol=EXACT) and np.allclose(seen[-1], new, atol=EXACT)
    assert all(np.allclose(answer, old, atol=EXACT) or np.allclose(answer, new, atol=EXACT) for answer in seen)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_serve_runs_until_it_is_stopped_and_leaves_no_process(repository, end):
    port = three_free_ports()
    command = [sys.executable, "-m", "dyvit_deploy", "serve", str(repository), "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("Serving "):
                break
        assert f"127.0.0.1:{port}" in line and "two-0.9-images" in line
        assert responds(f"http://127.0.0.1:{port}/v2/models/two/ready")
        process.send_signal(end)
        assert process.wait(HANGS) == 130
    assert not responds(f"http://127.0.0.1:{port}/v2/health/live")
    assert not [place for place in Path("/proc").glob("[0-9]*/cmdline") if _has(place, f"--http-port={port}")]


def three_free_ports():
    """The first of three in a row; others may have taken the one after a free one."""
    while True:
        port = Ports.from_first(None).http
        with contextlib.suppress(BackendError):
            return Ports.from_first(port).http


def _has(place, text):
    try:
        return text.encode() in place.read_bytes()
    # The process has ended meanwhile.
    except OSError:
        return False


def test_wrong_preprocessing_in_the_server_is_noticed(triton, checkpoint, tmp_path):
    repository = tmp_path / "repository"
    export_repository(checkpoint, repository, ServingConfig(name="m"))
    file = repository / "m-preprocess/1/preprocess.py"
    file.write_text(file.read_text().replace("np.float32(255)", "np.float32(200)"))
    with triton.loaded(repository):
        result = dyvit("serve", repository, "--check", "--url", triton.address.http, "--data",
                       photo_folder(tmp_path / "photos"), "--images", 4)
    assert result.exit_code == 1 and "FAILED m, image files" in result.output
    assert "FAILED m, tensors" not in result.output


def test_a_model_that_does_not_load_is_named_with_the_reason(checkpoint, tmp_path):
    repository = tmp_path / "repository"
    export_repository(checkpoint, repository, ServingConfig(name="m"))
    (repository / "m-preprocess/1/model.py").write_text("raise RuntimeError('broken on purpose')")
    result = dyvit("serve", repository, "--check", "--data", photo_folder(tmp_path / "photos"))
    assert result.exit_code == 1 and "it does not load m-preprocess" in result.output
    assert "broken on purpose" in result.output
    log = re.search(r"its log is (\S+\.log)", result.output.replace("\n", ""))[1]
    assert "broken on purpose" in Path(log).read_text()
    Path(log).unlink()


def test_an_engine_passes_the_servers_validation_and_lacks_only_its_backend(tmp_path):
    repository = tmp_path / "repository"
    export_repository(plan_file(tmp_path), repository, ServingConfig(name="m"))
    with pytest.raises(BackendError, match=r"it does not load m: .*tensorrt"), serving(repository):
        pass


def test_a_server_takes_the_option_of_version_compatible_plans(served):
    assert VERSION_COMPATIBLE.encode() in Path(f"/proc/{served[0].pid}/cmdline").read_bytes().split(b"\0")
    assert responds(f"http://{served[1].http}/v2/health/ready")


def test_openvino_models_are_served_too(checkpoint, tmp_path):
    python = Path(find_triton().environment["PATH"].split(":")[0]) / "python"
    if subprocess.run([python, "-c", "import openvino"], capture_output=True).returncode:
        pytest.skip("the Python of the Triton environment has no openvino")
    export_repository(checkpoint, tmp_path / "repository", ServingConfig(graph="openvino"))
    result = dyvit("serve", tmp_path / "repository", "--check", "--data", photo_folder(tmp_path / "photos"))
    assert result.exit_code == 0, result.output


def test_the_metrics_are_served(served):
    with urllib.request.urlopen(f"http://{LOOPBACK}:{served[0].ports.metrics}/metrics") as answer:
        assert b'nv_inference_request_success{model="one"' in answer.read()


@pytest.fixture
def perf_analyzer(tmp_path):
    """The program and its environment: the one on the PATH, or that of tritonclient 2.51 in the server's Python."""
    if found := shutil.which("perf_analyzer"):
        return found, os.environ
    found = Path(os.environ["DYVIT_TRITON"]) / "bin" / "perf_analyzer"
    for library in Path(os.environ["DYVIT_TRITON"]).glob("lib/*/site-packages/nvidia_pytriton.libs/lib*"):
        # The server's package renames these libraries.
        for name in ("libcudart.so.12", "libb64.so.0d"):
            if library.name.startswith(name.split(".")[0] + "-"):
                (tmp_path / name).symlink_to(library)
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    if not found.is_file() or subprocess.run([found, "--version"], env=environment, capture_output=True).returncode:
        pytest.skip("no perf_analyzer runs here; .ci/run shows how to get it")
    return found, environment


def test_perf_analyzer_measures_what_the_readme_of_a_repository_says(repository, served, perf_analyzer):
    [line] = re.findall(r"^perf_analyzer .*$", (repository / "README.md").read_text(), re.M)
    program, environment = perf_analyzer
    words = [*shlex.split(line.replace("127.0.0.1:8001", served[1].grpc).replace("1:32:4", "4"))[1:],
             "--measurement-interval", "1000", "--max-trials", "3", "--stability-percentage", "999"]
    done = subprocess.run([program, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert float(re.search(r"Concurrency: 4, throughput: ([\d.]+) infer/sec", done.stdout)[1]) > 0


def test_a_graph_alone_can_be_served_from_a_path_with_spaces(checkpoint, tmp_path):
    tmp_path = tmp_path / "with a space"
    tmp_path.mkdir()
    export_onnx(checkpoint, tmp_path / "graph.onnx")
    result = dyvit("export", tmp_path / "graph.onnx", "--format", "triton", "-o", tmp_path / "repository")
    assert result.exit_code == 0 and "dyvit serve" in result.output
    result = dyvit("serve", tmp_path / "repository", "--check", "--data", photo_folder(tmp_path / "photos"))
    assert result.exit_code == 0, result.output
