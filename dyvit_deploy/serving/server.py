"""Finds an installed Triton Inference Server, starts it on a repository, and stops it."""
from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from ..artifacts.locks import scratch_folder
from ..errors import BackendError, ConfigError, MissingDependency, reason
from ..machine.posix import kill_group
from ..optional import SETTINGS

# The oldest release that the tests run; the Python models need some of its features.
OLDEST = (2, 51)
LOOPBACK = "127.0.0.1"
# The environment variable with the path of a Triton, used without --triton.
VARIABLE = "DYVIT_TRITON"
STAND_IN = Path(__file__).parent / "models" / "runtime.py"
STANDS_IN_FOR = ("onnxruntime", "openvino")
READY_SECONDS, STOP_SECONDS = 300.0, 40.0
FAILED = re.compile(r"failed to load '(.+?)' version \d+: (.*?)(?:\\n|\"?$)", re.M)
# Lines in the log of every server, not reasons for a failure. The last two are errors of CUDA graphs for batch sizes
# that a profile does not take.
NO_REASON = "CudaDriverHelper|pinned|^\\+|^\\||metrics|cleaning up|Collecting|setInputShape|cuda graph shape"
PROBE = """import json, sys, sysconfig
import numpy
print(json.dumps([numpy.__version__, "%d.%d" % sys.version_info[:2], sysconfig.get_config_var("LIBDIR"),
                  sysconfig.get_path("purelib")]))"""


@dataclass(frozen=True)
class Triton:
    """An installed server: `backends` is the folder of its backends, `environment` has the variables that it needs.

    `bundled` is True for the server in the package nvidia-pytriton, whose Python backend needs the file `stub`.
    """

    binary: Path
    backends: Path
    environment: dict[str, str]
    bundled: bool
    stub: Path | None = None

    def lacks(self, backend: str) -> bool:
        return not (self.backends / backend).is_dir()


@dataclass(frozen=True)
class Ports:
    """The ports of a server on this machine's loopback address."""

    http: int
    grpc: int
    metrics: int

    @classmethod
    def from_first(cls, first: int | None) -> Ports:
        """`first` and the two ports after it; None takes any free ports.

        Raises:
            ConfigError: `first` is not a port number.
            BackendError: a port is in use.
        """
        if first is not None and not 1 <= first <= 65533:
            raise ConfigError(f"A port is a number from 1 to 65533, not {first}.")
        with contextlib.ExitStack() as stack:
            ports = []
            for number in (0, 0, 0) if first is None else range(first, first + 3):
                probe = stack.enter_context(socket.socket())
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((LOOPBACK, number))
                except OSError as error:
                    raise BackendError(f"Port {number} cannot be used ({error.strerror}); stop what listens there, or "
                                       "pass another --port, of which the two after it are used too.") from error
                ports.append(probe.getsockname()[1])
        return cls(*ports)


def find_triton(path: str | Path | None = None) -> Triton:
    """The server at `path`, a tritonserver or a virtual environment with nvidia-pytriton; by default the one named by
    the variable DYVIT_TRITON, else on the PATH, under /opt/tritonserver, or in this Python.

    Raises:
        MissingDependency: there is none.
        BackendError: its Python is not supported, or would give wrong tensors.
    """
    named = path or os.environ.get(VARIABLE)
    candidates = [Path(named)] if named else [
        *([Path(on_path)] if (on_path := shutil.which("tritonserver")) else []),
        Path("/opt/tritonserver/bin/tritonserver"), Path(sys.prefix)]
    for candidate in candidates:
        if candidate.is_file() and os.access(candidate, os.X_OK):
            binary = candidate.resolve()
            return Triton(binary, binary.parent.parent / "backends", {}, bundled=False)
        if (candidate / "bin" / "python").is_file() and (bundled := _bundled(candidate)):
            return bundled
    raise MissingDependency(
        (f"There is no Triton Inference Server in {named}" if named else "No Triton Inference Server was found here")
        + "; start one elsewhere and pass --url, or get it by: python3 -m venv triton && triton/bin/pip install "
          "--no-deps nvidia-pytriton && triton/bin/pip install 'numpy<2' pillow onnxruntime openvino, "
          "then pass --triton triton")


def _bundled(environment: Path) -> Triton | None:
    """The server of nvidia-pytriton in a virtual environment; None if that package is not installed there."""
    python = environment / "bin" / "python"
    try:
        output = subprocess.run([python, "-c", PROBE], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    numpy, version, libraries, packages = json.loads(output)
    root = Path(packages) / "pytriton" / "tritonserver"
    if not (root / "bin" / "tritonserver").is_file():
        return None
    if int(numpy.split(".")[0]) >= 2:
        raise BackendError(f"The Python of {environment} has numpy {numpy}, with which this Triton gives wrong tensors "
                           f"without an error; fix it with: {python} -m pip install 'numpy<2'")
    stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise BackendError(f"The Triton in {environment} does not support Python {version}; make the environment with "
                           f"another Python: {', '.join(sorted(p.name for p in stub.parent.parent.iterdir()))}.")
    bundled = Path(packages) / "nvidia_pytriton.libs"
    paths = {"PATH": _first_in("PATH", python.absolute().parent),
             "LD_LIBRARY_PATH": _first_in("LD_LIBRARY_PATH", libraries, bundled)}
    return Triton(root / "bin" / "tritonserver", root / "backends", paths, True, stub)


def _first_in(variable: str, *folders: str | Path) -> str:
    """The value of a variable of this environment that lists folders, with these before all others."""
    # An empty entry would be the current directory.
    known = [folder for folder in os.environ.get(variable, "").split(os.pathsep) if folder]
    return os.pathsep.join([*map(str, folders), *known])


@contextlib.contextmanager
def backend_folder(triton: Triton, needed: Sequence[str]) -> Iterator[Path]:
    """Yields a folder with the server's backends, and with a stand-in in Python for each `needed` backend that it lacks
    and that has a stand-in; yields the server's own folder if nothing is missing."""
    missing = [name for name in needed if name in STANDS_IN_FOR and triton.lacks(name)]
    if not missing and not triton.bundled:
        yield triton.backends
        return
    with scratch_folder("backends") as folder:
        for backend in triton.backends.iterdir() if triton.backends.is_dir() else ():
            # In the wheel, the Python backend has no stub.
            if triton.stub and backend.name == "python":
                shutil.copytree(backend, folder / "python", ignore=shutil.ignore_patterns(triton.stub.name))
                shutil.copyfile(triton.stub, folder / "python" / triton.stub.name)
                (folder / "python" / triton.stub.name).chmod(0o755)
            else:
                (folder / backend.name).symlink_to(backend.resolve())
        for backend_name in missing:
            (folder / backend_name).mkdir()
            shutil.copyfile(STAND_IN, folder / backend_name / "model.py")
        yield folder


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Within the block, SIGTERM and SIGHUP (a closed terminal) raise KeyboardInterrupt, so that a server is stopped.

    It has no effect outside the main thread, where Python cannot set signal handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = [signal.signal(name, signal.default_int_handler) for name in names]
    try:
        yield
    finally:
        for name, handler in zip(names, before):
            signal.signal(name, handler)


class Server:
    """A Triton that serves a repository; a context manager that starts and stops it.

    Raises:
        BackendError: it does not start, is too old, or does not load a model; the message has the reason.
    """

    def __init__(self, triton: Triton, repository: str | Path, ports: Ports, needed: Sequence[str] = (),
                 arguments: Sequence[str] = ()) -> None:
        self.ports, self.repository = ports, Path(repository)
        self._triton, self._needed, self._arguments = triton, needed, arguments
        self._stack = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._failed = False

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Server:
        with contextlib.ExitStack() as stack:
            backends = stack.enter_context(backend_folder(self._triton, self._needed))
            self.repository = stack.enter_context(_without_spaces(self.repository.resolve()))
            number, name = tempfile.mkstemp(prefix="dyvit-triton-", suffix=".log")
            self.log_file, self._output = Path(name), number
            stack.callback(self._end_log)
            stack.enter_context(_ended_by_signals())
            stack.callback(self._stop)
            self._process = self._launch(backends)
            self._wait()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _launch(self, backends: Path) -> subprocess.Popen[bytes]:
        command = [str(self._triton.binary), f"--model-repository={self.repository}",
                   f"--backend-directory={backends}", "--disable-auto-complete-config",
                   *(f"--{name}-address={LOOPBACK}" for name in ("http", "grpc", "metrics")),
                   *(f"--{name}-port={getattr(self.ports, name)}" for name in ("http", "grpc", "metrics")),
                   *(["--allow-gpu-metrics=false"] if self._triton.bundled else []), *self._arguments]
        try:
            return subprocess.Popen(command, stdout=self._output, stderr=subprocess.STDOUT, start_new_session=True,
                                    env=SETTINGS | os.environ | self._triton.environment
                                    | {"PYTHONDONTWRITEBYTECODE": "1"})
        except OSError as error:
            raise BackendError(f"{self._triton.binary} cannot be started ({error.strerror}); install Triton again.",
                               ) from error

    def _wait(self) -> None:
        """Waits until every model is ready."""
        assert self._process is not None
        url, ends = f"http://{LOOPBACK}:{self.ports.http}", time.monotonic() + READY_SECONDS
        while not responds(f"{url}/v2/health/ready"):
            if self._process.poll() is not None or FAILED.search(self.log()):
                raise self._failure("Triton stopped")
            if time.monotonic() > ends:
                raise self._failure(f"Triton was not ready after {READY_SECONDS:.0f} s")
            time.sleep(0.1)
        check_version(url)

    def _stop(self) -> None:
        process = self._process
        if process is None:
            return
        try:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_SECONDS)
        # Also after a second Ctrl-C, which ends the wait above.
        finally:
            # Kills what is left of the server and its Python processes.
            kill_group(process)
            process.wait()

    def notes(self) -> list[str]:
        """Notes on backends that the server lacks."""
        return [f"This Triton has no {name} backend; dyvit's stand-in in Python runs the models, with the same runtime."
                for name in self._needed if name in STANDS_IN_FOR and self._triton.lacks(name)]

    def wait(self) -> None:
        """Waits until the server ends.

        Raises:
            KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGHUP.
            BackendError: the server ended by itself.
        """
        assert self._process is not None
        code = self._process.wait()
        raise self._failure(f"Triton was killed (signal {-code})" if code < 0 else
                            f"Triton ended with exit code {code}")

    def log(self) -> str:
        """The server's log so far."""
        return self.log_file.read_text("utf-8", "replace")

    def _end_log(self) -> None:
        """Closes the log, and removes it unless the server failed."""
        os.close(self._output)
        if not self._failed:
            self.log_file.unlink(missing_ok=True)

    def _failure(self, event: str) -> BackendError:
        """An error with the `event`, its reason in one line, and the path of the log."""
        self._failed = True
        if match := FAILED.search(self.log()):
            why = f"it does not load {match[1]}: {match[2]}"
        else:
            lines = [line for line in self.log().splitlines() if line.strip() and not re.search(NO_REASON, line)]
            errors = [line for line in lines if re.match(r"[EF]\d{4} |error: ", line)]
            last = (errors[:1] or lines[-1:] or ["its log is empty"])[0]
            why = re.sub(r"^[A-Z]\d{4} [\d:.]+ \d+ \S+\] ", "", last).strip().strip('"')
        return BackendError(f"{event}: {why.rstrip('.')}; its log is {self.log_file}.")


@contextlib.contextmanager
def _without_spaces(repository: Path) -> Iterator[Path]:
    """Yields a path to the repository without spaces: with one, Triton's Python processes fail, and it waits for them.
    """
    if not re.search(r"\s", str(repository)):
        yield repository
        return
    with scratch_folder("repository") as folder:
        link = folder / "repository"
        link.symlink_to(repository)
        yield link


UNREACHABLE = (OSError, ValueError, HTTPException)
# Servers are contacted without the proxy that the environment may configure.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def get_json(url: str) -> Any:
    """The JSON at `url`; raises one of UNREACHABLE if there is none."""
    with _DIRECT.open(url, timeout=10) as response:
        return json.loads(response.read(16 << 20))


def responds(url: str) -> bool:
    """True if `url` responds with status 200."""
    try:
        with _DIRECT.open(url, timeout=5) as response:
            return bool(response.status == 200)
    except UNREACHABLE:
        return False


def check_version(url: str) -> str:
    """The release of the server at `url`.

    Raises:
        BackendError: it is not a Triton, or is older than OLDEST.
    """
    try:
        version = str(get_json(f"{url}/v2")["version"])
    except (*UNREACHABLE, KeyError, TypeError) as error:
        raise BackendError(f"{url} does not answer as a Triton Inference Server ({reason(error)}); check the "
                           "address, which must be that of its HTTP port.") from error
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST:
        raise BackendError(f"The Triton at {url} is version {version}; its Python models need "
                           f"{'.'.join(map(str, OLDEST))} or later.")
    return version
