#!/usr/bin/env python3
"""A served model under load, a third of it hostile: errors, wrong answers, and memory of the server.

    python benchmarks/hostile.py --triton triton/ --requests 10000

Two of three requests are image files for the ensemble, whose logits are compared with those of the local runner. Every
third one is of a kind that `Hostile` lists, and must be refused. The memory is what all processes of the server have
allocated. The result is written to benchmarks/results/hostile-digits-s.json.
"""
from __future__ import annotations

import argparse
import collections
import http.client
import json
import struct
import tempfile
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gpu import now
from serving import BATCH, RESULTS, in_threads, pictures, process_mib

from dyvit_deploy.artifacts.facts import library_versions
from dyvit_deploy.artifacts.files import check_target, write_json
from dyvit_deploy.demo.quickstart import STUDENT
from dyvit_deploy.errors import DyvitError
from dyvit_deploy.machine.hardware import machine
from dyvit_deploy.runners.ort import OrtRunner
from dyvit_deploy.serving.check import server_for
from dyvit_deploy.serving.client import Address, Client, Refused
from dyvit_deploy.serving.config import ServeConfig
from dyvit_deploy.serving.export import export_repository
from dyvit_deploy.serving.repository import ServedModel, read_repository
from dyvit_deploy.serving.server import LOOPBACK, Server, check_version

# Every third request is hostile.
EVERY = 3
# Requests between two measurements of memory.
MEASURED = 250
# Not the pages of library files, whose share depends on what else runs on the machine.
OWN = ("Pss_Anon:", "Pss_Shmem:")
# The largest difference of a logit that is no wrong answer.
TOLERANCE = 1e-3


def huge_png(side: int = 30_000) -> bytes:
    """A small file that claims `side` x `side` pixels."""
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
            + chunk(b"IEND", b""))


class Hostile:
    """Requests that a server must refuse; each is a function that returns normally if it was accepted."""

    def __init__(self, address: Address, model: ServedModel, jpeg: bytes) -> None:
        self._address, self._model = address, model
        name = model.servable.input.name
        one = np.zeros((1, *model.servable.input.shape[1:]), model.servable.input.dtype)
        images = {"a cut image": jpeg[:100], "an image damaged inside": jpeg[:200] + bytes(400) + b"\xff\xd9",
                  "an empty image": b"", "no image": b"%!PS-Adobe-3.0 EPSF-3.0\n" * 50,
                  "an oversized image": huge_png()}
        self.kinds: dict[str, Callable[[Client], Any]] = {
            kind: self._file(content) for kind, content in images.items()} | {
            "a wrong shape": self._tensor({name: one[:, :, :-1]}),
            "a wrong rank": self._tensor({name: one[0]}),
            "a wrong type": self._tensor({name: one.astype(np.float64)}),
            "a batch above the maximum": self._tensor({name: np.repeat(one, model.max_batch + 1, axis=0)}),
            "a wrong input": self._tensor({"no such input": one}),
            "a wrong output": lambda client: client.infer(model.name, {name: one}, ["no such output"]),
            "a wrong model": lambda client: client.infer("no such model", {name: one}, ["logits"]),
            "an empty body": self._raw(b""),
            "broken JSON": self._raw(b'{"inputs": [{"name": '),
            "JSON of another kind": self._raw(b"[[[]]]"),
            "a false header length": self._raw(b"{}", {"Inference-Header-Content-Length": "1000000"}),
        }

    def _file(self, content: bytes) -> Callable[[Client], Any]:
        assert self._model.ensemble
        feeds, ensemble = {"encoded": np.array([[content]], dtype=object)}, self._model.ensemble
        return lambda client: client.infer(ensemble, feeds, ["logits"])

    def _tensor(self, feeds: dict[str, np.ndarray]) -> Callable[[Client], Any]:
        return lambda client: client.infer(self._model.name, feeds, ["logits"])

    def _raw(self, body: bytes, headers: dict[str, str] | None = None) -> Callable[[Client], Any]:
        def send(_: Client) -> None:
            connection = http.client.HTTPConnection(self._address.http, timeout=60)
            connection.request("POST", f"/v2/models/{self._model.name}/infer", body, headers or {})
            status = connection.getresponse().status
            connection.close()
            if status >= 400:
                raise Refused(f"status {status}")
        return send


class LongRun:
    """Requests of several clients, a third of them hostile; `expected` are the logits for `files`."""

    def __init__(self, server: Server, address: Address, model: ServedModel, files: list[bytes],
                 expected: np.ndarray) -> None:
        self._server, self._address, self._model = server, address, model
        self._files, self._expected = files, expected
        self._hostile = Hostile(address, model, files[0])
        self._lock, self._sent = threading.Lock(), 0
        self._counts: collections.Counter[str] = collections.Counter()
        self._first: dict[str, str] = {}
        self._memory: list[dict[str, float]] = []
        self._worst = 0.0

    def run(self, requests: int, clients: int) -> dict[str, Any]:
        """The counts of good and hostile requests, of errors and wrong answers, and the memory of the server."""
        seconds = in_threads(clients, lambda _: self._ask(requests))
        memory = sorted(self._memory, key=lambda m: m["requests"])
        return {
            "requests": requests, "clients": clients, "requests_per_sec": requests / seconds,
            "good": self._counts["good"], "errors": self._counts["error"], "wrong_answers": self._counts["wrong"],
            "max_logit_error": self._worst, "hostile": self._counts["hostile"], "refused": self._counts["refused"],
            "accepted": self._counts["accepted"], "unexpected": self._counts["unexpected"], "first": self._first,
            "kinds": list(self._hostile.kinds), "memory": memory,
            # Threads of the server allocate memory of their own when they first decode, some late: this is no leak,
            # which the second half would show.
            "memory_growth_after_1000": _growth(memory, 1000),
            "memory_growth_second_half": _growth(memory, requests // 2)}

    def _ask(self, requests: int) -> None:
        with Client(self._address) as client:
            while (mine := self._next(requests)) is not None:
                if mine % EVERY:
                    self._good(client, mine)
                else:
                    self._refused(client, mine)
                if mine % MEASURED == 0:
                    self._memory.append({"requests": mine, "server_mib": process_mib(self._server.pid, OWN)})

    def _next(self, requests: int) -> int | None:
        with self._lock:
            if self._sent == requests:
                return None
            self._sent += 1
            return self._sent

    def _count(self, what: str, told: str = "") -> None:
        with self._lock:
            self._counts[what] += 1
            if told:
                self._first.setdefault(what, told)

    def _good(self, client: Client, mine: int) -> None:
        number = mine % len(self._files)
        self._count("good")
        try:
            answer = client.infer(self._model.ensemble or "", {
                "encoded": np.array([[self._files[number]]], dtype=object)}, ["logits"])["logits"][0]
        except DyvitError as error:
            self._count("error", str(error))
            return
        error = float(np.abs(answer - self._expected[number]).max())
        self._worst = max(self._worst, error)
        if not error <= TOLERANCE:
            self._count("wrong", f"image {number} is off by {error}")

    def _refused(self, client: Client, mine: int) -> None:
        kinds = list(self._hostile.kinds.items())
        kind, send = kinds[mine // EVERY % len(kinds)]
        self._count("hostile")
        try:
            send(client)
            self._count("accepted", kind)
        except Refused:
            self._count("refused")
        except (DyvitError, OSError, http.client.HTTPException) as error:
            self._count("unexpected", f"{kind}: {error}")


def _growth(memory: list[dict[str, float]], settled: int) -> float | None:
    """By which fraction memory grew after the first `settled` requests."""
    sizes = [m["server_mib"] for m in memory if m["requests"] >= settled]
    return max(sizes) / sizes[0] - 1 if sizes else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triton", help="as for dyvit serve")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--out", type=Path, default=RESULTS / "hostile-digits-s.json")
    options = parser.parse_args()
    check_target(options.out)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "repository"
        export_repository(STUDENT, folder)
        [model] = read_repository(folder)
        files, pixels = pictures(model)
        with OrtRunner(model.servable.path, device="cpu") as local:
            expected = np.concatenate([local.predict(pixels[i:i + BATCH]).logits for i in range(0, len(pixels), BATCH)])
        with server_for(folder, [model], ServeConfig(triton=options.triton)) as server:
            address = Address(f"{LOOPBACK}:{server.ports.http}", f"{LOOPBACK}:{server.ports.grpc}")
            result = {"model": STUDENT.stem, "machine": machine(), "started": now(), "stand_in": server.notes(),
                      "versions": library_versions("onnxruntime", "onnxruntime-gpu", "tritonclient", "numpy", "pillow")
                      | {"triton": check_version(f"http://{address.http}")},
                      **LongRun(server, address, model, files, expected).run(options.requests, options.clients)}
    write_json(options.out, result)
    print(json.dumps({key: value for key, value in result.items() if key not in ("memory", "machine", "versions")}))
    print(options.out)


if __name__ == "__main__":
    main()
