"""Does a served repository answer as its artifacts do? Starts a server, sends images every way, compares, stops."""
from __future__ import annotations

import contextlib
import dataclasses
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
from rich.table import Table
from rich.text import Text

from ..data.folder import IMAGE_SUFFIXES
from ..data.images import UNREADABLE, Track, no_track
from ..data.open import open_images
from ..data.preprocess import resize_and_crop
from ..data.reading import decode
from ..errors import ConfigError, DataError
from ..parity.compare import BatchParity, compare_outputs, default_tolerance
from ..runners.base import Outputs, join_outputs, run_in_batches
from ..runners.open import open_runner
from .client import Address, Client, Refused, TritonRunner, to_outputs
from .config import ServeConfig
from .repository import ServedModel, read_repository, server_flags
from .server import LOOPBACK, Ports, Server, answers, check_version, find_triton

BATCH, THREADS = 8, 8
# Triton's own default.
FIRST_PORT = 8000
# Largest request in bytes.
LARGEST = 256 << 20


@dataclass(frozen=True)
class Answered:
    """The answers of one model one way, compared with the local runner; `failures` say what differs."""

    model: str
    way: str
    parity: BatchParity

    @property
    def failures(self) -> tuple[str, ...]:
        return tuple(f"{self.model}, {self.way}: {failure}" for failure in self.parity.failures)


@dataclass(frozen=True)
class ServeReport:
    """True when every way gives what the local runner gives, and bad requests are refused.

    `batching` has, per model, single `requests` sent at once and the `executions` that they became.
    """

    KIND: ClassVar[str] = "serve"

    repository: str
    server: str
    data: str
    answers: tuple[Answered, ...]
    batching: dict[str, dict[str, int]]
    refused: tuple[str, ...]
    notes: tuple[str, ...]
    failures: tuple[str, ...]

    def __bool__(self) -> bool:
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        return {"passed": bool(self), **dataclasses.asdict(self)}

    def table(self) -> Group:
        """One row per model and way, and a line for what else was seen."""
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
        return Group(table, *map(Text, lines), Text(f"refused, and went on: {', '.join(self.refused) or 'nothing'}"))


def check_serving(repository: str | Path, config: ServeConfig = ServeConfig(),
                  track: Track[Any] = no_track) -> ServeReport:
    """Holds every configuration against its artifact, then every answer of a server against the local runner.

    Raises:
        ArtifactError, ExportError: no repository, or one that its artifacts contradict.
        MissingDependency, BackendError: no server, or one that does not start, is too old or gone.
        DataError: no images.
    """
    models = read_repository(repository)
    with contextlib.ExitStack() as stack:
        address, notes = _connect(stack, repository, models, config)
        version = check_version(f"http://{address.http}")
        found, batching, refused, failures = [], {}, set[str](), list[str]()
        for model in models:
            images = _encoded(config.data, model, config.images)
            asked = _Asked(address, model, images)
            found += asked.compare(track)
            batching[model.name] = asked.share_batches()
            done, wrong = asked.refuse()
            refused.update(done)
            failures += wrong
        failures += [failure for row in found for failure in row.failures]
        return ServeReport(str(repository), version, f"{len(images)} images of {config.data}", tuple(found), batching,
                           tuple(sorted(refused)), tuple(notes), tuple(failures))


def serve_repository(repository: str | Path, config: ServeConfig = ServeConfig(),
                     say: Callable[[str], None] = lambda _: None) -> None:
    """Runs a server on the repository until Ctrl-C or SIGTERM, which are KeyboardInterrupt; see `check_serving`."""
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
    """A running server, which stops with `stack` if it was started here, and what is to be known of it."""
    if config.url:
        if config.triton or config.port is not None:
            raise ConfigError("--url is of a server that runs already; leave out --triton and --port.")
        address = Address(config.url.removeprefix("http://").rstrip("/"))
        return address, ["gRPC was not checked: --url names the HTTP port only."]
    server = stack.enter_context(server_for(repository, models, config))
    return Address(f"{LOOPBACK}:{server.ports.http}", f"{LOOPBACK}:{server.ports.grpc}"), server.notes()


def server_for(repository: str | Path, models: Sequence[ServedModel], config: ServeConfig) -> Server:
    """An installed server with the backends and options that `models` need; not yet started."""
    return Server(find_triton(config.triton), repository, Ports.from_first(config.port),
                  sorted({model.servable.backend for model in models}), server_flags(models))


class Encoded(NamedTuple):
    """An image file's name and content."""

    name: str
    content: bytes


def _encoded(source: str, model: ServedModel, limit: int) -> list[Encoded]:
    """Files of a folder as they are; images of a data set as PNG."""
    if Path(source).is_dir():
        paths = sorted(p for p in Path(source).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        found = [Encoded(str(path), path.read_bytes()) for path in paths[:limit]]
        return [image for image in found if _readable(image)] or _no_images(source)
    images = open_images(source, model.servable.facts.model, limit=limit)
    return [Encoded(name, _png(pixels)) for batch in images.batches(BATCH)
            for name, pixels in zip(batch.names, batch.images)]


def _readable(image: Encoded) -> bool:
    try:
        decode(io.BytesIO(image.content))
    except UNREADABLE:
        return False
    return True


def _no_images(source: str) -> list[Encoded]:
    raise DataError(f"{source} holds no image that can be read; name a folder that does.")


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


class _Asked:
    """One model of a server, beside its artifact in a local runner."""

    def __init__(self, address: Address, model: ServedModel, images: list[Encoded]) -> None:
        self.address, self.model, self.images = address, model, images
        self.servable, self.batch = model.servable, min(BATCH, model.max_batch, len(images))
        self.names = [output.name for output in self.servable.outputs]
        opened = [decode(io.BytesIO(image.content)) for image in images]
        self.raw = [np.asarray(image) for image in opened]
        self.pixels = np.stack([resize_and_crop(image, self.servable.facts.model) for image in opened])
        with open_runner(self.servable.path) as local:
            self.expected = run_in_batches(local, self.pixels, self.batch)
            self.feed = local.prepare(self.pixels)
            self.tolerance = default_tolerance(local, local)

    def compare(self, track: Track[Any]) -> list[Answered]:
        """The answers every way that images can be sent."""
        ways = list(self._ways())
        rows = []
        for way, batch, ask in track(ways, f"asking {self.model.name}", len(ways)):
            starts = range(0, len(self.images), batch)
            got = join_outputs([ask(slice(start, start + batch)) for start in starts])
            names = [image.name for image in self.images]
            rows.append(Answered(self.model.name, way,
                                 compare_outputs(self.expected, got, batch, self.tolerance, names)))
        return rows

    def _ways(self) -> Iterator[tuple[str, int, Callable[[slice], Outputs]]]:
        """How images are sent, how many at once, and what sends them."""
        for protocol in ("http", "grpc") if self.address.grpc else ("http",):
            for batch in sorted({1, self.batch}):
                yield f"tensors, {protocol}, batch {batch}", batch, self._sender(
                    protocol, self.model.name, lambda part: {self.servable.input.name: self.feed[part]})
        if self.model.ensemble:
            yield f"image files, batch {self.batch}", self.batch, self._sender("http", self.model.ensemble, self._files)
            yield "raw images", 1, self._sender("http", self.model.ensemble,
                                                lambda part: {"raw": np.stack(self.raw[part])})
            for router in self.model.routers:
                yield f"image files to {router}", self.batch, self._sender(
                    "http", router, self._files, {"keep_ratio": self.model.keep_ratio})
        for router in self.model.routers:
            yield f"tensors to {router}", self.batch, self._sender(
                "http", router, lambda part: {self.servable.input.name: self.feed[part]},
                {"keep_ratio": self.model.keep_ratio})

    def _files(self, part: slice) -> dict[str, NDArray[Any]]:
        return {"encoded": np.array([[image.content] for image in self.images[part]], dtype=object)}

    def _sender(self, protocol: str, name: str, feeds: Callable[[slice], dict[str, NDArray[Any]]],
                parameters: dict[str, Any] | None = None) -> Callable[[slice], Outputs]:
        def send(part: slice) -> Outputs:
            with Client(self.address, protocol) as client:
                return to_outputs(client.infer(name, feeds(part), self.names, parameters))
        return send

    def share_batches(self) -> dict[str, int]:
        """Single requests sent at once, and the executions that they became."""
        before = self._statistics()

        def ask(rows: range) -> None:
            with TritonRunner(self.address, self.model.name, self.servable) as runner:
                for row in rows:
                    runner.infer(self.feed[row:row + 1])
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(ask, [range(first, len(self.images), THREADS) for first in range(THREADS)]))
        after = self._statistics()
        return {"requests": after[0] - before[0], "executions": after[1] - before[1]}

    def _statistics(self) -> tuple[int, int]:
        """Images and executions of the model so far."""
        [stats] = self.address.get(f"/v2/models/{self.model.name}/stats")["model_stats"][-1:]
        return int(stats["inference_count"]), int(stats["execution_count"])

    def refuse(self) -> tuple[list[str], list[str]]:
        """What bad requests were refused, and what went wrong with others; the server has to go on."""
        image = self.servable.input.name
        one = self.feed[:1]
        bad: dict[str, tuple[str, dict[str, NDArray[Any]]]] = {
            "a wrong shape": (self.model.name, {image: one[:, :, :-1]}),
            "a wrong rank": (self.model.name, {image: one[0]}),
            "a wrong type": (self.model.name, {image: one.astype(np.float64)}),
        }
        if (self.model.max_batch + 1) * one.nbytes < LARGEST:
            bad["a batch above the maximum"] = (self.model.name,
                                                {image: np.repeat(one, self.model.max_batch + 1, axis=0)})
        if self.model.ensemble:
            broken = np.array([[self.images[0].content[:100]]], dtype=object)
            bad["a damaged image file"] = (self.model.ensemble, {"encoded": broken})
        done, failures = [], []
        for what, (name, feeds) in bad.items():
            try:
                with Client(self.address) as client:
                    client.infer(name, feeds, ["logits"])
                failures.append(f"{name} accepted {what}.")
            except Refused:
                done.append(what)
            if not answers(f"http://{self.address.http}/v2/health/ready"):
                failures.append(f"{name} went down with {what}.")
        return done, failures
