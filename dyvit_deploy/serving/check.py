"""Checks that a served repository gives the outputs of its artifacts: starts a server, sends images in every form that
it accepts, compares the outputs with the local runner, and stops the server."""
from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Group
from rich.text import Text

from ..config import with_orientation
from ..data.images import UNREADABLE, Track, no_track
from ..data.open import open_images
from ..data.preprocess import resize_and_crop, upright
from ..data.reading import decode
from ..data.walk import FORMATS, IMAGE_SUFFIXES, LeftOut, walk
from ..errors import ConfigError, DataError
from ..parity.compare import BatchParity, compare_outputs, default_tolerance
from ..runners.base import Outputs, join_outputs, run_in_batches
from ..runners.open import open_runner
from ..settings.tables import Table
from .client import Address, Client, Refused, TritonRunner, to_outputs
from .config import ServeConfig
from .repository import ServedModel, read_repository, server_flags
from .server import LOOPBACK, Ports, Server, check_version, find_triton, responds

BATCH, THREADS = 8, 8
# Of the formats that models/preprocess.py decodes.
SERVED_SUFFIXES = (*FORMATS["JPEG"], *FORMATS["PNG"], *FORMATS["WEBP"])
# Triton's own default.
FIRST_PORT = 8000
# Bytes of the largest request that is sent.
LARGEST = 256 << 20
# The most images that are sent to count batches, because their tensors wait in memory.
COUNTED = 64


@dataclass(frozen=True)
class ServedParity:
    """The outputs of one model for images sent in one `way`, compared with the local runner."""

    model: str
    way: str
    parity: BatchParity

    @property
    def failures(self) -> tuple[str, ...]:
        return tuple(f"{self.model}, {self.way}: {failure}" for failure in self.parity.failures)


@dataclass(frozen=True)
class ServeReport:
    """The result of `check_serving`; true if the outputs match the local runner in every way, and bad requests are
    refused.

    `batching` has, per model, the number of concurrent single-image `requests` and of the `executions` that they were
    batched into.
    """

    KIND: ClassVar[str] = "serve"

    repository: str
    server: str
    data: str
    answers: tuple[ServedParity, ...]
    batching: dict[str, dict[str, int]]
    refused: tuple[str, ...]
    notes: tuple[str, ...]
    failures: tuple[str, ...]

    def __bool__(self) -> bool:
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        return {"passed": bool(self), **dataclasses.asdict(self)}

    def table(self) -> Group:
        """One row per model and way, then lines on batching and on refused requests."""
        title = f"{self.repository} in Triton {self.server} against the local runner, on {self.data}"
        table = Table(title=Text(title), title_justify="left")
        for column in ("model", "sent as", "images", "max error", "top-1 agree", "verdict"):
            table.add_column(column, justify="left" if column in ("model", "sent as") else "right")
        for row in self.answers:
            parity = row.parity
            error = "inf" if parity.max_error is None else f"{parity.max_error:.1e}"
            table.add_row(row.model, row.way, str(parity.images), error, f"{parity.top1_agreement:.2%}",
                          Text("differs", "red") if row.failures else Text("same", "green"))
        lines = [f"{name}: {counts['requests']} single requests, up to {THREADS} at a time, ran in "
                 f"{counts['executions']} executions" for name, counts in self.batching.items()]
        return Group(table, *map(Text, lines),
                     Text(f"refused without harm to the server: {', '.join(self.refused) or 'nothing'}"))


def check_serving(repository: str | Path, config: ServeConfig = ServeConfig(),
                  track: Track[Any] = no_track) -> ServeReport:
    """Compares every configuration with its artifact, then the outputs of a server with those of the local runner.

    Raises:
        ArtifactError, ExportError: there is no repository, or its configurations do not match its artifacts.
        MissingDependency, BackendError: there is no server, it does not start or respond, or it is too old.
        DataError: there are no images.
    """
    models = read_repository(repository)
    with contextlib.ExitStack() as stack:
        address, notes = _connect(stack, repository, models, config)
        version = check_version(f"http://{address.http}")
        rows, batching, refused, failures = [], {}, set[str](), list[str]()
        for model in models:
            images = _encoded(config.data, model, config.images)
            check = _ModelCheck(stack, address, model, images)
            rows += check.compare(track)
            batching[model.name] = check.count_batches()
            refused_requests, errors = check.send_bad_requests()
            refused.update(refused_requests)
            failures += errors
        failures += [failure for row in rows for failure in row.failures]
        return ServeReport(str(repository), version, f"{len(images)} images of {config.data}", tuple(rows), batching,
                           tuple(sorted(refused)), tuple(notes), tuple(failures))


def serve_repository(repository: str | Path, config: ServeConfig = ServeConfig(),
                     say: Callable[[str], None] = lambda _: None) -> None:
    """Runs a server on the repository until Ctrl-C or SIGTERM.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM.
        ConfigError: an option that only `check_serving` uses.
        ArtifactError, ExportError, MissingDependency, BackendError: see `check_serving`.
    """
    if config != ServeConfig(triton=config.triton, port=config.port):
        raise ConfigError("--url, --data and --images are for --check; add it, or leave them out.")
    models = read_repository(repository)
    port = FIRST_PORT if config.port is None else config.port
    with server_for(repository, models, dataclasses.replace(config, port=port)) as server:
        for line in server.notes():
            say(line)
        names = [name for model in models for name in (model.name, model.ensemble, *model.routers) if name]
        say(f"Serving {', '.join(dict.fromkeys(names))} at http://{LOOPBACK}:{server.ports.http} (gRPC "
            f"{server.ports.grpc}, metrics {server.ports.metrics}); log: {server.log_file}; Ctrl-C stops it.")
        server.wait()


def _connect(stack: contextlib.ExitStack, repository: str | Path, models: Sequence[ServedModel],
             config: ServeConfig) -> tuple[Address, list[str]]:
    """The address of a running server, and notes about it; a server that is started here stops with `stack`."""
    if config.url:
        if config.triton or config.port is not None:
            raise ConfigError("--url names a server that is already running; leave out --triton and --port.")
        address = Address(config.url.removeprefix("http://").rstrip("/"))
        return address, ["gRPC was not checked: --url names the HTTP port only."]
    server = stack.enter_context(server_for(repository, models, config))
    return Address(f"{LOOPBACK}:{server.ports.http}", f"{LOOPBACK}:{server.ports.grpc}"), server.notes()


def server_for(repository: str | Path, models: Sequence[ServedModel], config: ServeConfig) -> Server:
    """An installed server with the backends and options that `models` need, not started yet."""
    return Server(find_triton(config.triton), repository, Ports.from_first(config.port),
                  sorted({model.servable.backend for model in models}), server_flags(models))


class Encoded(NamedTuple):
    """An image file: its name, and what reads its content. Neither that nor its pixels are kept in memory."""

    name: str
    read: Callable[[], bytes]

    def decoded(self) -> Image.Image:
        return decode(io.BytesIO(self.read()))


def _encoded(source: str, model: ServedModel, limit: int) -> list[Encoded]:
    """The image files in a folder, or the images of a data set as PNG. Files of formats that Triton is not given are
    sent as PNG, too."""
    if Path(source).is_dir():
        left_out = LeftOut()
        paths = list(walk(source, IMAGE_SUFFIXES, left_out))
        left_out.tell(source)
        return [Encoded(path, functools.partial(_as_sent, path)) for path in paths[:limit]
                if _is_readable(path)] or _no_images(source)
    images = open_images(source, model.servable.facts.model, limit=limit)
    # A data set has images of the model's size, which are small.
    return [Encoded(name, functools.partial(bytes, _png(pixels))) for batch in images.batches(BATCH)
            for name, pixels in zip(batch.names, batch.images)]


def _is_readable(path: str) -> bool:
    try:
        decode(path)
    except UNREADABLE:
        return False
    return True


def _as_sent(path: str) -> bytes:
    """The content of a file, as PNG if Triton is not given its format."""
    if path.lower().endswith(SERVED_SUFFIXES):
        return Path(path).read_bytes()
    return _png(np.asarray(decode(path)))


def _no_images(source: str) -> list[Encoded]:
    raise DataError(f"{source} holds no image that can be read; name a folder that does.")


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


class _ModelCheck:
    """Checks one model of a server; `expected` are the outputs of its artifact in a local runner, which is closed with
    `stack`."""

    def __init__(self, stack: contextlib.ExitStack, address: Address, model: ServedModel,
                 images: list[Encoded]) -> None:
        self.address, self.model, self.images = address, model, images
        self.servable, self.batch = model.servable, min(BATCH, model.max_batch, len(images))
        self.names = [output.name for output in self.servable.outputs]
        self.local = stack.enter_context(open_runner(self.servable.path))
        self.tolerance = default_tolerance(self.local, self.local)
        self.spec = with_orientation(self.servable.facts.model, model.orient)
        parts = [slice(start, start + self.batch) for start in range(0, len(images), self.batch)]
        self.expected = join_outputs([run_in_batches(self.local, self.pixels(part), self.batch) for part in parts])

    def pixels(self, rows: slice) -> NDArray[np.uint8]:
        """Some of the images at the model's input size, uint8 [B, height, width, 3]."""
        return np.stack([resize_and_crop(image.decoded(), self.spec) for image in self.images[rows]])

    def feed(self, rows: slice) -> dict[str, NDArray[Any]]:
        """Some of the images as the model's input."""
        return {self.servable.input.name: self.local.prepare(self.pixels(rows))}

    def compare(self, track: Track[Any]) -> list[ServedParity]:
        """Sends the images in every way, and compares the outputs."""
        ways = list(self._ways())
        rows = []
        for way, batch, send in track(ways, f"asking {self.model.name}", len(ways)):
            starts = range(0, len(self.images), batch)
            outputs = join_outputs([send(slice(start, start + batch)) for start in starts])
            names = [image.name for image in self.images]
            rows.append(ServedParity(self.model.name, way,
                                     compare_outputs(self.expected, outputs, batch, self.tolerance, names)))
        return rows

    def _ways(self) -> Iterator[tuple[str, int, Callable[[slice], Outputs]]]:
        """The ways to send images: a label, the batch size, and a function that sends a slice of the images."""
        for protocol in ("http", "grpc") if self.address.grpc else ("http",):
            for batch in sorted({1, self.batch}):
                yield f"tensors, {protocol}, batch {batch}", batch, self._sender(protocol, self.model.name, self.feed)
        if self.model.ensemble:
            yield f"image files, batch {self.batch}", self.batch, self._sender("http", self.model.ensemble, self._files)
            yield "raw images", 1, self._sender("http", self.model.ensemble, self._raw)
            for router in self.model.routers:
                yield f"image files to {router}", self.batch, self._sender(
                    "http", router, self._files, {"keep_ratio": self.model.keep_ratio})
        for router in self.model.routers:
            yield f"tensors to {router}", self.batch, self._sender("http", router, self.feed,
                                                                   {"keep_ratio": self.model.keep_ratio})

    def _files(self, rows: slice) -> dict[str, NDArray[Any]]:
        return {"encoded": np.array([[image.read()] for image in self.images[rows]], dtype=object)}

    def _raw(self, rows: slice) -> dict[str, NDArray[Any]]:
        # Raw pixels have no EXIF orientation.
        opened = [image.decoded() for image in self.images[rows]]
        return {"raw": np.stack([np.asarray(upright(image) if self.model.orient else image) for image in opened])}

    def _sender(self, protocol: str, name: str, feeds: Callable[[slice], dict[str, NDArray[Any]]],
                parameters: dict[str, Any] | None = None) -> Callable[[slice], Outputs]:
        def send(rows: slice) -> Outputs:
            with Client(self.address, protocol) as client:
                return to_outputs(client.infer(name, feeds(rows), self.names, parameters))
        return send

    def count_batches(self) -> dict[str, int]:
        """Sends concurrent single-image requests; returns their number, and in how many executions they ran."""
        before, [feed] = self._statistics(), self.feed(slice(COUNTED)).values()

        def send(rows: range) -> None:
            with TritonRunner(self.address, self.model.name, self.servable) as runner:
                for row in rows:
                    runner.infer(feed[row:row + 1])
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(send, [range(first, len(feed), THREADS) for first in range(THREADS)]))
        after = self._statistics()
        return {"requests": after[0] - before[0], "executions": after[1] - before[1]}

    def _statistics(self) -> tuple[int, int]:
        """The number of images and of executions of the model so far."""
        [statistics] = self.address.get(f"/v2/models/{self.model.name}/stats")["model_stats"][-1:]
        return int(statistics["inference_count"]), int(statistics["execution_count"])

    def send_bad_requests(self) -> tuple[list[str], list[str]]:
        """Sends bad requests, which the server must refuse and survive; returns the refused ones, and failures."""
        image = self.servable.input.name
        one = self.feed(slice(1))[image]
        bad: dict[str, tuple[str, dict[str, NDArray[Any]]]] = {
            "a wrong shape": (self.model.name, {image: one[:, :, :-1]}),
            "a wrong rank": (self.model.name, {image: one[0]}),
            "a wrong type": (self.model.name, {image: one.astype(np.float64)}),
        }
        if (self.model.max_batch + 1) * one.nbytes < LARGEST:
            bad["a batch above the maximum"] = (self.model.name,
                                                {image: np.repeat(one, self.model.max_batch + 1, axis=0)})
        if self.model.ensemble:
            broken = np.array([[self.images[0].read()[:100]]], dtype=object)
            bad["a damaged image file"] = (self.model.ensemble, {"encoded": broken})
        refused, failures = [], []
        for label, (name, feeds) in bad.items():
            try:
                with Client(self.address) as client:
                    client.infer(name, feeds, ["logits"])
                failures.append(f"{name} accepted {label}.")
            except Refused:
                refused.append(label)
            if not responds(f"http://{self.address.http}/v2/health/ready"):
                failures.append(f"{name} went down with {label}.")
        return refused, failures
