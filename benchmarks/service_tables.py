"""The tables of the pages in docs/; `result` is None until it has been measured."""
from __future__ import annotations

import statistics


def cpp_table(result: dict | None) -> str:
    """The C++ runtime against the Python one."""
    if result is None:
        return "Not measured yet: `python benchmarks/cpp.py build/dyvit-bench` fills this table."
    lines = ["| model, keep ratio 0.7 | batch | threads | C++ ms | Python ms | Python's time over C++'s |",
             "|---" * 6 + "|"]
    for row in result["rows"]:
        lines.append(f"| {row['model']} | {row['batch']} | {row['threads']} | {row['cpp_latency_ms_p50']:.2f} "
                     f"| {row['python_latency_ms_p50']:.2f} | {row['speedup']:.2f} ({row['speedup_min']:.2f} to "
                     f"{row['speedup_max']:.2f}) |")
    machine, versions = result["machine"], result["versions"]
    runtime = versions.get("onnxruntime-gpu") or versions["onnxruntime"]
    lines.append(f"\n{machine['processor']}, {machine['logical_cores']} cores, ONNX Runtime {runtime}, float32, "
                 f"{result['started'][:10]}. Medians of {len(result['rows'][0]['rounds'])} rounds in which both take "
                 "turns; in brackets, the lowest and highest (`benchmarks/cpp.py`).")
    return "\n".join(lines)


def serving_table(result: dict | None) -> str:
    """Triton against the local runner, and the memory of a long run."""
    if result is None:
        return "Not measured yet: `python benchmarks/serving.py` fills this table."
    run, rounds = result["long_run"], result["rounds"]
    local, served = (statistics.median(r[f"{who}_images_per_sec"] for r in rounds) for who in ("local", "triton"))
    memory = sorted(run["memory"], key=lambda m: m["requests"])
    first, last = next(m for m in memory if m["requests"] >= 1000), memory[-1]
    lines = [f"| {result['model']} at keep ratio {result['keep_ratio']} | images/s | |", "|---|---|---|",
             f"| local runner, batches of {result['clients']} | {local:.1f} | |",
             f"| Triton, {result['clients']} clients with single images | {served:.1f} "
             f"| {result['triton_over_local']:.2f} of the local runner; "
             f"{result['images_per_execution']:.1f} images per batch |",
             f"| Triton, {run['clients']} clients with JPEG files, {run['requests']:,} requests | "
             f"{run['requests_per_sec']:.1f} | {run['errors']} errors; {first['server_pss_mib']:.0f} MiB after 1,000 "
             f"requests, {last['server_pss_mib']:.0f} MiB at the end |"]
    machine, versions = result["machine"], result["versions"]
    lines.append(f"\n{machine['processor']}, {machine['logical_cores']} cores, which server and clients share, Triton "
                 f"{versions['triton']} with the stand-in for ONNX Runtime, float32, {result['started'][:10]}. Largest "
                 f"difference of a logit from the local runner: {result['max_logit_error']:.1g}. Medians of "
                 f"{len(rounds)} rounds in which both take turns (`benchmarks/serving.py`).")
    return "\n".join(lines)


def figures_table(result: dict | None) -> str:
    """Time and memory of `dyvit visualize`."""
    if result is None:
        return "Not measured yet: `python benchmarks/figures.py` fills this table."
    lines = ["| digit scenes | seconds | images/s | peak memory, MiB |", "|---|---|---|---|"]
    for images in dict.fromkeys(run["images"] for run in result["rounds"]):
        runs = [run for run in result["rounds"] if run["images"] == images]
        seconds, memory = (max(run[key] for run in runs) for key in ("seconds", "peak_rss_mib"))
        lines.append(f"| {images:,} | {seconds:.0f} | {images / seconds:.0f} | {memory:.0f} |")
    machine = result["machine"]
    lines.append(f"\n{machine['processor']}, {machine['logical_cores']} cores, {result['started'][:10]}; time and "
                 f"memory of the whole command, the slowest of {len(runs)} rounds (`benchmarks/figures.py`).")
    return "\n".join(lines)
