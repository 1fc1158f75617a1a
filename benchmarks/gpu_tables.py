"""The README's GPU table: the results of benchmarks/gpu.py, one table per card."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Batch sizes in the table; the results have more.
BATCHES = (1, 32, 256)
OPEN = ("Not measured yet: no GPU was available. `python benchmarks/gpu.py && python benchmarks/tables.py` "
                "fills this table.")
JOB = ("part", "backend", "precision", "model", "batch")
LIBRARIES = {"driver": "driver", "cuda": "CUDA", "torch": "PyTorch", "onnxruntime-gpu": "ONNX Runtime",
             "tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}
WHY_NOT = {"missing": "is missing", "refused": "does not run here", "failed": "failed", "cut": "took too long",
           "left_out": "did not fit into the time"}
Row = Mapping[str, Any]


def gpu_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Dense and pruned in every runtime: one table per card, with the newest row of each job."""
    real = (result for result in results if result["device"] == "cuda" and not result["config"]["quick"])
    ordered = sorted(real, key=lambda result: result["started"])
    cards: dict[str, list[Mapping[str, Any]]] = {}
    for result in ordered:
        cards.setdefault(result["machine"]["gpu"], []).append(result)
    return "\n\n".join(card_table(card, found) for card, found in cards.items()) or OPEN


def card_table(card: str, results: Sequence[Mapping[str, Any]]) -> str:
    """The rows measured on one card, the checks on it, and what the table lacks."""
    rows = list({tuple(row[field] for field in JOB): row for result in results for row in result["rows"]}.values())
    peaks = {row["precision"]: row["tflops"] for row in rows if row["part"] == "peaks" and "tflops" in row}
    lines = ["| backend, keep ratio 0.7 | precision | model | batch | dense images/s | pruned images/s "
             "| against dense (ceiling) | against dense with the same rewrites (ceiling) | of the product peak |",
             "|---" * 9 + "|"]
    lines += [_timed(row, peaks) for row in rows if "speedup" in row and row["batch"] in BATCHES]
    versions = results[-1]["versions"]
    used = [f"{name} {versions[key]}" for key, name in LIBRARIES.items() if key in versions]
    dates = " and ".join(dict.fromkeys(result["started"][:10] for result in results))
    lines.append(f"\n{card}, {', '.join(used)}, {dates}. Medians of loops in which dense and pruned take turns "
                 "(`benchmarks/gpu.py`), the batch already on the GPU, random weights, float32 without TF32; ~ marks "
                 f"timings that did not settle within 2 %.{_peaks(rows, peaks)}{_checks(rows)}{_training(rows)}"
                 f"{_absent(results, rows)}")
    return "\n".join(lines)


def _timed(row: Row, peaks: Mapping[str, float]) -> str:
    dense, pruned = row["dense"], row["pruned"]
    settled = "" if all(side["stable"] for side in (dense, pruned)) else "~"
    graph = "" if row.get("cuda_graph") is not False else ", graph not captured"
    peak = peaks.get(row["precision"])
    share = f"{pruned['tflops'] / peak:.0%}" if peak and pruned["tflops"] else "-"
    return (f"| {row['backend']}{graph} | {row['precision']} | {row['model']} | {row['batch']} "
            f"| {dense['images_per_sec']:.0f} | {pruned['images_per_sec']:.0f} "
            f"| {settled}{row['speedup']:.2f}x ({row['ceiling']:.2f}x) "
            f"| {settled}{row['speedup_same_rewrites']:.2f}x ({row['ceiling_same_rewrites']:.2f}x) | {share} |")


def _peaks(rows: Iterable[Row], peaks: Mapping[str, float]) -> str:
    copies = [row["copy_gb_per_s"] for row in rows if "copy_gb_per_s" in row]
    texts = [f"{peak:.0f} TFLOP/s in {precision}" for precision, peak in peaks.items()]
    texts += [f"copies at {rate:.0f} GB/s" for rate in copies]
    return f" Measured peaks: {', '.join(texts)}." if texts else ""


def _checks(rows: Iterable[Row]) -> str:
    """How many checks on the card passed, and the names of those that failed."""
    judged = [row for row in rows if row.get("passed") is not None]
    judged += [check for row in rows for check in row.get("parity") or ()]
    wrong = [row for row in judged if not row["passed"]]
    names = ", ".join(f"{row.get('part', 'an artifact')} {row.get('backend', '')}".strip() for row in wrong)
    return f" Checks on the card: {len(judged) - len(wrong)} of {len(judged)} passed" \
        f"{f' (FAILED: {names})' if wrong else ''}." if judged else ""


def _training(rows: Iterable[Row]) -> str:
    found = [f"{row['images_per_sec']:.0f} in {row['precision']}{', compiled' if 'compiled' in row['backend'] else ''}"
             for row in rows if row["part"] == "training"]
    return f" Training of the demo student, images/s: {'; '.join(found)}." if found else ""


def _absent(results: Sequence[Mapping[str, Any]], rows: Iterable[Row]) -> str:
    """What no result of this card has, with the newest reason: whole backends by name, single rows by count."""
    there = {tuple(row[field] for field in JOB) for row in rows}
    newest = {job: (kind, entry["backend"]) for result in results for kind in WHY_NOT for entry in result[kind]
              if (job := tuple(entry[field] for field in JOB)) not in there}
    counts = Counter(newest.values())
    parts = [f"{backend} {WHY_NOT[kind]}" if kind in ("missing", "refused") else
             f"{count} row{'s' * (count > 1)} of {backend} {WHY_NOT[kind]}"
             for (kind, backend), count in sorted(counts.items(), key=lambda item: list(WHY_NOT).index(item[0][0]))]
    return f" Not in it: {'; '.join(parts)}." if parts else ""
