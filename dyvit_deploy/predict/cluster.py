"""The same rows from many processes or machines, through Ray Data."""
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
from .config import PredictConfig
from .predictor import Answer, Places, Predictor
from .report import Prediction

WAVE = 8000                                 # batches whose places are in the cluster's memory at once
BLOCKS = 1000                               # parts that a wave is dealt out in
PATIENCE = 10                               # seconds that a cluster may take to answer
SILENT = {"RAY_USAGE_STATS_ENABLED": "0",   # else Ray reports to its makers
          "RAY_BACKEND_LOG_LEVEL": "fatal"}  # else an error is shown that is none, at every start of a worker
# Ray then takes 127.0.0.1 for this machine's address, and listens there only; its own _node_ip_address does not.
ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


class Worker:
    """One process of the cluster: opens the artifact once, then reads and runs batches."""

    def __init__(self, artifact: str, config: PredictConfig, load: LoadConfig, threads: int) -> None:
        self._config, self._threads, self._error = config, threads, ("", "")
        try:
            if is_checkpoint(artifact):
                require("torch").set_num_threads(threads)
            runner = open_runner(artifact, load=load, device=config.device, threads=threads)
            self._predictor = Predictor(runner, config, load)
        except DyvitError as error:                                        # Ray would wrap it in its own tracebacks
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
        found = [[r.image, r.classes, r.probabilities, r.error] for r in rows]
        return {"number": row["number"], "rows": json.dumps(found), "kind": kind, "text": text}


@contextmanager
def predict_on_ray(artifact: str, config: PredictConfig, load: LoadConfig) -> Iterator[Answer]:
    """An `Answer` of Ray's workers: those of the cluster in RAY_ADDRESS, else of a Ray of this machine alone.

    Every machine needs this package, and the artifact and images at the same paths. A RAY_ADDRESS that is empty or
    "local" is none. A Ray that the calling program has started is used as it is, wherever that listens.

    Raises:
        MissingDependency: without Ray.
        ConfigError: more workers than cores, no GPU for what needs one, or the program has imported Ray before, so that
            it cannot be kept from listening on the network any more.
        BackendError: no cluster there, or a worker failed.
    """
    if is_engine(artifact):
        check_engine_device(artifact, config.device)
    os.environ.update({name: os.environ.get(name, value) for name, value in SILENT.items()})
    address = os.environ.get("RAY_ADDRESS", "")
    address = "" if address == "local" else address
    if not address:
        _keep_alone()
    ray = require("ray", extra="ray")
    require("ray.data", extra="ray")
    mine = not ray.is_initialized()
    if mine:
        try:
            _require_listening(address)
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR,
                     **({} if address else {"include_dashboard": False}))
        except (OSError, RuntimeError, ValueError) as error:
            raise BackendError(f"Ray cannot be reached or started ({reason(error)}); check RAY_ADDRESS, and "
                               "RAY_AUTH_MODE=token where the cluster asks for one.") from error
    try:
        yield _Cluster(ray, os.path.abspath(artifact) if os.path.exists(artifact) else artifact, config, load).answer
    finally:
        if mine:
            ray.shutdown()


def _keep_alone() -> None:
    """Raises ConfigError where Ray would listen on the network; it takes the switch only while it is imported."""
    loaded = sys.modules.get("ray")
    if loaded and not loaded.is_initialized() and any(os.environ.get(name) != value for name, value in ALONE.items()):
        switch = " ".join(f"{name}={value}" for name, value in ALONE.items())
        raise ConfigError("This program imported ray before, so that Ray would listen on the network; set "
                          f"{switch} before the import, or call ray.init() yourself.")
    os.environ.update(ALONE)


def _require_listening(address: str) -> None:
    """Raises OSError where nobody answers at host:port; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()


class _Cluster:
    """Deals batches out and takes their rows in order."""

    def __init__(self, ray: Any, artifact: str, config: PredictConfig, load: LoadConfig) -> None:
        cores = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
        machines = [int(count) for count in cores if count >= 1]
        gpus = int(ray.cluster_resources().get("GPU", 0)) if config.device != "cpu" else 0
        if not gpus and (config.device == "cuda" or is_engine(artifact)):  # Ray would wait for one for ever
            why = "--device cuda" if config.device == "cuda" else artifact
            raise ConfigError(f"The cluster has no GPU, and {why} needs one; add a machine that has, or choose another "
                              "device or artifact.")
        workers = config.workers or gpus or len(machines)
        if not machines or workers > sum(machines):
            raise ConfigError(f"The cluster has {sum(machines)} cores, too few for --workers {workers}.")
        # Alike on every machine, and small enough that the fullest one takes its workers.
        threads = max(1, min(machines) // -(-workers // len(machines)))
        self._ray, self._options = ray, {
            "fn_constructor_args": (artifact, replace(config, csv=None, parquet=None), load, threads),
            "compute": ray.data.ActorPoolStrategy(size=workers), "num_cpus": threads,
            **({"num_gpus": _share(workers, gpus)} if gpus else {})}

    def answer(self, chunks: Iterator[Places]) -> Iterator[tuple[Places, list[Prediction]]]:
        context = self._ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        while wave := list(islice(chunks, WAVE)):
            rows = [{"number": number, "places": _places(places)} for number, places in enumerate(wave)]
            units = self._ray.data.from_items(rows, override_num_blocks=min(len(rows), BLOCKS))
            try:
                for number, row in enumerate(units.map(Worker, **self._options).iter_rows()):
                    if row["kind"]:
                        raise getattr(errors, row["kind"])(row["text"])
                    assert row["number"] == number, "Ray keeps the order when it is told to"
                    yield wave[number], [Prediction(image, tuple(classes), tuple(shares), error)
                                         for image, classes, shares, error in json.loads(row["rows"])]
            except self._ray.exceptions.RayError as error:
                raise BackendError(f"A Ray worker failed ({reason(error, last=True)}); see Ray's own log for more."
                                   ) from error


def _share(workers: int, gpus: int) -> float:
    """What each worker gets of a GPU, in Ray's steps of 1/10,000, so that all of them find one."""
    return 10_000 // -(-workers // gpus) / 10_000


def _places(places: Places) -> str:
    return json.dumps([[place.name, os.path.abspath(place.path), place.part] for place in places])
