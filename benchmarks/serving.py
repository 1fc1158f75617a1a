#!/usr/bin/env python3
"""A model served by Triton against the same model in this process, and a long run: the table of docs/triton.md.

    python benchmarks/serving.py --triton triton/ --seconds 15 --rounds 5 --requests 10000

Throughput is measured in turns: batches of 8 through the local runner (as `dyvit bench` does), and single requests of
eight concurrent gRPC clients, which Triton batches. Server and clients share the machine. Every other round runs in
reverse order, and the result is the median over rounds. The long run sends encoded images to the ensemble, 32 at a
time, over HTTP, and records the memory of all processes of the server. The weights of deit-s are random: neither time
nor memory depends on them. The result is written to benchmarks/results/serving-deit-s-0.7.json.
"""
from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from gpu import now
from PIL import Image
from speed import RESULTS, random_checkpoint

from dyvit_deploy.artifacts.facts import library_versions
from dyvit_deploy.artifacts.files import check_target, write_json
from dyvit_deploy.data.preprocess import resize_and_crop
from dyvit_deploy.data.reading import decode
from dyvit_deploy.errors import DyvitError
from dyvit_deploy.machine.hardware import machine
from dyvit_deploy.runners.ort import OrtRunner
from dyvit_deploy.serving.check import server_for
from dyvit_deploy.serving.client import Address, Client, TritonRunner
from dyvit_deploy.serving.config import ServeConfig
from dyvit_deploy.serving.export import export_repository
from dyvit_deploy.serving.repository import ServedModel, read_repository
from dyvit_deploy.serving.server import LOOPBACK, Server, check_version

MODEL, RATIO, BATCH = "deit-s", 0.7, 8
# Number of requests after which memory must not grow.
SETTLED = 1000


def process_mib(group: int, fields: tuple[str, ...] = ("Pss:",)) -> float:
    """Proportional memory (MiB) of the processes of a group, by `fields` of smaps_rollup; shared pages count once."""
    total = 0
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if int((place / "stat").read_text().rsplit(")", 1)[1].split()[2]) == group:
                lines = (place / "smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith(fields))
        except (OSError, ValueError, IndexError):
            # The process has just ended.
            continue
    return total / 1024


def local_rate(runner: OrtRunner, feed: np.ndarray, seconds: float) -> float:
    """Images per second of batches of 8, by wall time, as for the server."""
    runner.infer(feed)
    started, calls = time.perf_counter(), 0
    while time.perf_counter() < started + seconds:
        runner.infer(feed)
        calls += 1
    return calls * len(feed) / (time.perf_counter() - started)


def in_threads(count: int, work: Callable[[int], None]) -> float:
    """Seconds that `count` threads take for `work`; an exception in a thread is raised here."""
    started = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(work, range(count)))
    return time.perf_counter() - started


def served_rate(address: Address, model: ServedModel, feed: np.ndarray, seconds: float, clients: int) -> float:
    """Images per second of single requests; each client sends the next one after its answer."""
    answered, ends = [0] * clients, time.perf_counter() + seconds

    def ask(number: int) -> None:
        with TritonRunner(address, model.name, model.servable, "grpc") as runner:
            while time.perf_counter() < ends:
                runner.infer(feed[number % len(feed)][None])
                answered[number] += 1
    taken = in_threads(clients, ask)
    return sum(answered) / taken


def long_run(server: Server, address: Address, model: ServedModel, files: list[bytes], requests: int,
             clients: int) -> dict[str, Any]:
    """Errors, rate and memory over `requests` encoded images."""
    lock, sent, errors, memory = threading.Lock(), 0, [], []

    def ask(number: int) -> None:
        nonlocal sent
        with Client(address) as client:
            while True:
                with lock:
                    if sent == requests:
                        return
                    sent += 1
                    mine = sent
                content = np.array([[files[mine % len(files)]]], dtype=object)
                try:
                    logits = client.infer(model.ensemble or model.name, {"encoded": content}, ["logits"])["logits"]
                    if not np.isfinite(logits).all():
                        errors.append("not finite")
                except DyvitError as error:
                    errors.append(str(error))
                if mine % 250 == 0:
                    memory.append({"requests": mine, "server_pss_mib": process_mib(server.pid)})
    seconds = in_threads(clients, ask)
    settled = [m["server_pss_mib"] for m in memory if m["requests"] >= SETTLED]
    growth = max(settled[len(settled) // 2:]) / settled[0] - 1 if settled else None
    return {"requests": requests, "clients": clients, "errors": len(errors), "first_error": (errors or [None])[0],
            "requests_per_sec": requests / seconds, "memory": memory, "memory_growth_after_settled": growth}


def pictures(model: ServedModel) -> tuple[list[bytes], np.ndarray]:
    """Sixteen JPEG files of 500 x 375 pixels, and their pixels after resizing and cropping."""
    rng, files = np.random.default_rng(0), []
    for _ in range(16):
        clouds = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((500, 375), Image.BICUBIC)
        file = io.BytesIO()
        clouds.save(file, "jpeg", quality=90)
        files.append(file.getvalue())
    pixels = [resize_and_crop(decode(io.BytesIO(content)), model.servable.facts.model) for content in files]
    return files, np.stack(pixels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triton", help="as for dyvit serve")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=RESULTS / f"serving-{MODEL}-{RATIO}.json")
    options = parser.parse_args()
    check_target(options.out)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "repository"
        export_repository(random_checkpoint(MODEL, RATIO, Path(name)), folder)
        [model] = read_repository(folder)
        files, pixels = pictures(model)
        with server_for(folder, [model], ServeConfig(triton=options.triton)) as server, \
                OrtRunner(model.servable.path, device="cpu") as local:
            address = Address(f"{LOOPBACK}:{server.ports.http}", f"{LOOPBACK}:{server.ports.grpc}")
            feed = local.prepare(pixels)
            with TritonRunner(address, model.name, model.servable) as remote:
                error = float(np.abs(remote.infer(feed).logits - local.infer(feed).logits).max())
            rounds = []
            for number in range(options.rounds):
                pair = {"local": lambda: local_rate(local, feed[:BATCH], options.seconds),
                        "triton": lambda: served_rate(address, model, feed, options.seconds, BATCH)}
                order = list(pair) if number % 2 == 0 else list(pair)[::-1]
                rounds.append({f"{who}_images_per_sec": pair[who]() for who in order})
                print(json.dumps(rounds[-1]), flush=True)
            stats = address.get(f"/v2/models/{model.name}/stats")["model_stats"][0]
            result = {
                "model": MODEL, "keep_ratio": RATIO, "machine": machine(), "started": now(),
                "versions": library_versions("onnxruntime", "onnxruntime-gpu", "tritonclient", "numpy", "pillow")
                | {"triton": check_version(f"http://{address.http}")}, "stand_in": server.notes(),
                "max_logit_error": error, "clients": BATCH, "rounds": rounds,
                "images_per_execution": stats["inference_count"] / stats["execution_count"],
                "triton_over_local": statistics.median(
                    r["triton_images_per_sec"] / r["local_images_per_sec"] for r in rounds),
                "long_run": long_run(server, address, model, files, options.requests, 32)}
    write_json(options.out, result)
    print(json.dumps({key: result[key] for key in ("max_logit_error", "triton_over_local", "images_per_execution")}
                     | {key: value for key, value in result["long_run"].items() if key != "memory"}))
    print(options.out)


if __name__ == "__main__":
    main()
