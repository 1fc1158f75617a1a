"""Predicts with many processes or machines through Ray Data; the rows are the same as on one machine."""
from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

from .. import errors
from ..config import LoadConfig
from ..data.listing import ImagePlace
from ..data.reading import read_images
from ..errors import BackendError, ConfigError, DyvitError, reason
from ..optional import require
from ..runners.open import check_engine_device, is_checkpoint, is_engine, open_runner
from ..settings.notes import LOGGER
from .config import PredictConfig
from .predictor import Chunk, PredictChunks, Predictor
from .report import Prediction

# Chunks whose image locations are in the cluster's memory at once.
WAVE = 8000
# Blocks that the chunks of a wave are split into.
BLOCKS = 1000
# Seconds to wait for a connection to the cluster.
CONNECT_TIMEOUT = 10
# No usage reports to Ray's makers, and no false error message at every start of a worker.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
# With this setting, Ray uses 127.0.0.1 as the address of this machine and listens there only; its own option
# _node_ip_address does not have that effect.
LOCAL_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


class Worker:
    """One process of the cluster: opens the artifact once, then reads and runs batches."""

    def __init__(self, artifact: str, config: PredictConfig, load: LoadConfig, threads: int) -> None:
        self._config, self._threads, self._error = config, threads, ("", "")
        # Each worker would tell the same.
        logging.getLogger(LOGGER).disabled = True
        try:
            if is_checkpoint(artifact):
                require("torch").set_num_threads(threads)
            runner = open_runner(artifact, load=load, device=config.device, threads=threads)
            self._predictor = Predictor(runner, config, load)
        # Returned with the rows, because Ray would wrap the exception in its own tracebacks.
        except DyvitError as error:
            self._error = type(error).__name__, str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        kind, text, rows = *self._error, list[Prediction]()
        if not kind:
            places = [ImagePlace(name, path, "", tuple(part) if part else None)
                      for name, path, part in json.loads(row["places"])]
            try:
                rows = self._predictor.predict(list(read_images(
                    ((place.name, place.read) for place in places), self._predictor.spec, len(places), self._threads)))
            except DyvitError as error:
                kind, text = type(error).__name__, str(error)
        values = [[r.image, r.classes, r.probabilities, r.error, r.turned] for r in rows]
        return {"number": row["number"], "rows": json.dumps(values), "kind": kind, "text": text}


@contextmanager
def predict_on_ray(artifact: str, config: PredictConfig, load: LoadConfig) -> Iterator[PredictChunks]:
    """Yields a `PredictChunks` that runs on Ray's workers: those of the cluster in RAY_ADDRESS, else of this machine.

    Every machine needs this package, and the artifact and images at the same paths. A RAY_ADDRESS that is empty or
    "local" means this machine. A Ray that the calling program has already started is used as it is, even if it listens
    on the network.

    Raises:
        MissingDependency: Ray is not installed.
        ConfigError: more workers than cores, no GPU although one is needed, or the program has already imported Ray, so
            that it would listen on the network.
        BackendError: the cluster cannot be reached, or a worker failed.
    """
    if is_engine(artifact):
        check_engine_device(artifact, config.device)
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
    address = os.environ.get("RAY_ADDRESS", "")
    address = "" if address == "local" else address
    if not address:
        _listen_locally()
    ray = require("ray", extra="ray")
    require("ray.data", extra="ray")
    started_here = not ray.is_initialized()
    if started_here:
        try:
            _check_address(address)
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR,
                     **({} if address else {"include_dashboard": False}))
        except (OSError, RuntimeError, ValueError) as error:
            raise BackendError(f"Ray cannot be reached or started ({reason(error)}); check RAY_ADDRESS, and "
                               "RAY_AUTH_MODE=token where the cluster asks for one.") from error
    try:
        yield _Cluster(ray, os.path.abspath(artifact) if os.path.exists(artifact) else artifact, config, load).predict
    finally:
        if started_here:
            ray.shutdown()


def _listen_locally() -> None:
    """Sets LOCAL_ONLY; raises ConfigError if Ray is already imported without it, because it reads it on import."""
    ray = sys.modules.get("ray")
    if ray and not ray.is_initialized() and any(os.environ.get(name) != value for name, value in LOCAL_ONLY.items()):
        switch = " ".join(f"{name}={value}" for name, value in LOCAL_ONLY.items())
        raise ConfigError("This program imported ray before, so that Ray would listen on the network; set "
                          f"{switch} before the import, or call ray.init() yourself.")
    os.environ.update(LOCAL_ONLY)


def _check_address(address: str) -> None:
    """Raises OSError if nothing listens at host:port; Ray itself would retry for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT).close()


class _Cluster:
    """Distributes chunks to the workers and yields their rows in order."""

    def __init__(self, ray: Any, artifact: str, config: PredictConfig, load: LoadConfig) -> None:
        cores = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
        machines = [int(count) for count in cores if count >= 1]
        gpus = int(ray.cluster_resources().get("GPU", 0)) if config.device != "cpu" else 0
        # Ray would wait forever for a GPU.
        if not gpus and (config.device == "cuda" or is_engine(artifact)):
            why = "--device cuda" if config.device == "cuda" else artifact
            raise ConfigError(f"The cluster has no GPU, and {why} needs one; add a machine that has, or choose another "
                              "device or artifact.")
        workers = config.workers or gpus or len(machines)
        if not machines or workers > sum(machines):
            raise ConfigError(f"The cluster has {sum(machines)} cores, too few for --workers {workers}.")
        # The same number on every machine, small enough for the machine with the fewest cores to run its workers.
        threads = max(1, min(machines) // -(-workers // len(machines)))
        self._ray, self._options = ray, {
            "fn_constructor_args": (artifact, _for_workers(config), load, threads),
            "compute": ray.data.ActorPoolStrategy(size=workers), "num_cpus": threads,
            **({"num_gpus": _gpu_share(workers, gpus)} if gpus else {})}

    def predict(self, chunks: Iterator[Chunk]) -> Iterator[tuple[Chunk, list[Prediction]]]:
        """A `PredictChunks`."""
        context = self._ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        while wave := list(islice(chunks, WAVE)):
            rows = [{"number": number, "places": _to_json(chunk)} for number, chunk in enumerate(wave)]
            units = self._ray.data.from_items(rows, override_num_blocks=min(len(rows), BLOCKS))
            try:
                for number, row in enumerate(units.map(Worker, **self._options).iter_rows()):
                    if row["kind"]:
                        raise getattr(errors, row["kind"])(row["text"])
                    assert row["number"] == number, "Ray keeps the order because of preserve_order"
                    yield wave[number], [Prediction(image, tuple(classes), tuple(probabilities), error, turned)
                                         for image, classes, probabilities, error, turned in json.loads(row["rows"])]
            except self._ray.exceptions.RayError as error:
                raise BackendError(f"A Ray worker failed ({reason(error, last=True)}); see Ray's own log for more."
                                   ) from error


def _for_workers(config: PredictConfig) -> PredictConfig:
    """The config of workers, which write no files and may run in another folder."""
    return replace(config, csv=None, parquet=None, labels=os.path.abspath(config.labels) if config.labels else None)


def _gpu_share(workers: int, gpus: int) -> float:
    """The share of a GPU for each worker, in Ray's steps of 1/10,000, such that the GPUs suffice for all workers."""
    return 10_000 // -(-workers // gpus) / 10_000


def _to_json(chunk: Chunk) -> str:
    return json.dumps([[place.name, os.path.abspath(place.path), place.part] for place in chunk])
