#!/usr/bin/env python3
"""Writes the README's result tables from benchmarks/results/*.json, between their markers.

    python benchmarks/tables.py            rewrite the README
    python benchmarks/tables.py --check    exit 1 when it would change
"""
from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def read(name: str) -> dict:
    return json.loads((RESULTS / name).read_text())


def speed_table() -> str:
    """Dense and pruned images/s per model and batch size, with the ceiling."""
    lines = ["| model, keep ratio 0.7 | batch | dense images/s | pruned images/s | speed-up | MAC ceiling |",
             "|---|---|---|---|---|---|"]
    for path in sorted(RESULTS.glob("*-0.7-cpu.json")):
        result = json.loads(path.read_text())
        timings = result["bench"]["timings"]
        for dense, pruned in zip(timings[::2], timings[1::2]):
            settled = "" if dense["stable"] and pruned["stable"] else "~"
            lines.append(f"| {result['model']} | {pruned['batch']} | {dense['images_per_sec']:.1f} "
                         f"| {pruned['images_per_sec']:.1f} | {settled}{pruned['speedup']:.2f}x "
                         f"| {pruned['ceiling']:.2f}x |")
    machine, versions = result["bench"]["machine"], result["bench"]["versions"]
    runtime = versions.get("onnxruntime-gpu") or versions["onnxruntime"]
    lines.append(f"\n{machine['processor']}, {machine['logical_cores']} cores, ONNX Runtime {runtime} on the CPU, "
                 "float32. Medians of one run in which dense and pruned take turns (`benchmarks/speed.py`); "
                 "~ did not settle within 2 %.")
    return "\n".join(lines)


def demo_table() -> str:
    """Accuracy of the shipped demo checkpoints."""
    report = read("quickstart.json")
    lines = ["| demo checkpoint | size | top-1, 2,000 held-out scenes | patches kept | digit box covered (chance) |",
             "|---|---|---|---|---|"]
    for row, result in list(zip(report["rows"], report["evals"]))[:2]:
        stages = result["coverage"]
        kept = " / ".join(str(s["kept"]) for s in stages) or "all 64"
        box = " / ".join(f"{s['box_coverage']:.0%} ({s['chance']:.0%})" for s in stages) or "-"
        lines.append(f"| {row['artifact']} | {row['size_mib']:.1f} MiB | {row['top1']:.1%} | {kept} | {box} |")
    return "\n".join(lines)


TABLES = {"speed": speed_table, "demo": demo_table}


def render(text: str) -> str:
    """The README's text with every marked table made anew."""
    for name, make in TABLES.items():
        begin, end = f"<!-- {name} table: python benchmarks/tables.py -->\n", f"\n<!-- end of {name} table -->"
        before, rest = text.split(begin)
        text = before + begin + make() + end + rest.split(end)[1]
    return text


def main() -> None:
    readme = ROOT / "README.md"
    old = readme.read_text()
    new = render(old)
    if "--check" in sys.argv:
        sys.exit(new != old)
    readme.write_text(new)


if __name__ == "__main__":
    main()
