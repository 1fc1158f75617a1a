#!/usr/bin/env python3
"""Writes the result tables in README.md and docs/, between their markers, from benchmarks/results/*.json.

    python benchmarks/tables.py            rewrites the tables
    python benchmarks/tables.py --check    exits 1 when a table is out of date
"""
from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from gpu_tables import gpu_table
from service_tables import cpp_table, figures_table, serving_table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PEERS, SCALE, CPP = "peers-deit-s-0.7.json", "scale-deit-s-0.7.json", "cpp-deit-s-0.7.json"
FIGURES = "figures-digits-s.json"
SERVING = "serving-deit-s-0.7.json"


def read(name: str) -> dict:
    return json.loads((RESULTS / name).read_text())


def read_if_measured(name: str) -> dict | None:
    return read(name) if (RESULTS / name).exists() else None


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
                 "~ marks timings that did not settle within 2 %.")
    return "\n".join(lines)


def rewrites_table() -> str:
    """What each rewrite gains, added one by one, and the share of predictors and gathers with all of them."""
    found = read("deit-s-0.7-rewrites.json")
    columns = list(dict.fromkeys((row["backend"], row["batch"]) for row in found["rows"]))
    cells = {(row["variant"], row["backend"], row["batch"]): row for row in found["rows"]}
    lines = [f"| {found['model']} at keep ratio {found['keep_ratio']}, against dense | GMACs | "
             + " | ".join(f"{backend}, batch {batch}" for backend, batch in columns) + " |",
             "|---" * (2 + len(columns)) + "|"]
    names = list(dict.fromkeys(row["variant"] for row in found["rows"]))
    for name in names[1:]:
        row = [cells[name, backend, batch] for backend, batch in columns]
        speedups = [f"{'' if cell['stable'] else '~'}{cell['against_dense']:.2f}x" for cell in row]
        label = {"plain": "no rewrite"}.get(name, f"and `{name}`")
        lines.append(f"| {label} | {row[0]['gmacs']:.3f} | {' | '.join(speedups)} |")
    shares = [f"{profile['overhead']:.1%} in {profile['backend'].removesuffix(' cpu')} at batch {profile['batch']}"
              for profile in found["profiles"]]
    plain, aligned = found["align"]
    machine = found["machine"]
    lines.append(f"\nFloat32; each row adds one rewrite to those above it. {machine['processor']}, "
                 f"{machine['logical_cores']} cores, medians of runs in which all rows take turns "
                 f"(`benchmarks/rewrites.py`); ~ marks timings that did not settle within 2 %. "
                 f"Time share of predictors and gathers, with all rewrites but `align`: {', '.join(shares)}. "
                 f"The demo student keeps {_kept(plain)} patches and classifies {plain['top1']:.2%} of the scenes "
                 f"correctly; aligned, {_kept(aligned)} patches and {aligned['top1']:.2%}.")
    return "\n".join(lines)


def _kept(row: dict) -> str:
    return " / ".join(map(str, row["keep_counts"]))


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


def ablation_table() -> str:
    """Selectors, stages and losses compared, and one elastic student against one per keep ratio."""
    found = read("demo-tables34.json")
    lines = ["| demo student | GMACs | top-1, 2,000 scenes, mean of seeds | lowest - highest |", "|---|---|---|---|",
             f"| dense teacher | {found['dense_gmacs']:.4f} | {found['teacher_top1']:.2%} | - |"]
    for case, gmacs in found["gmacs"].items():
        top1 = [row["top1"]["own"] for row in found["rows"] if row["case"] == case]
        lines.append(f"| {case} | {gmacs:.4f} | {sum(top1) / len(top1):.2%} | {min(top1):.2%} - {max(top1):.2%} |")
    seeds = len({row["seed"] for row in found["rows"]})
    lines.append(f"\nThree stages at keep ratio 0.7 unless the row says otherwise; the rows with fewer stages have the "
                 f"keep ratio of equal cost. {seeds} seeds, {found['epochs'] * found['images']:,} scenes each "
                 "(`benchmarks/ablation.py`).\n")
    return "\n".join(lines + elastic_lines())


def untrained_table() -> str:
    """Pruning without training."""
    rows = read("demo-untrained.json")["rows"]
    ratios = sorted({row["keep_ratio"] for row in rows if row["keep_ratio"]}, reverse=True)
    lines = ["| dense demo model, not trained to drop tokens | "
             + " | ".join(f"keep ratio {ratio}" for ratio in ratios) + " |",
             "|---" * (1 + len(ratios)) + "|"]
    for selector, fuse in dict.fromkeys((row["selector"], row["fuse"]) for row in rows if row["keep_ratio"]):
        top1 = {row["keep_ratio"]: row["top1"] for row in rows if (row["selector"], row["fuse"]) == (selector, fuse)}
        cells = (f"{top1[ratio]:.2%}" if ratio in top1 else "-" for ratio in ratios)
        lines.append(f"| `--selector {selector}{' --fuse' if fuse else ''}` | {' | '.join(cells)} |")
    pooled = next(row["top1"] for row in rows if row["selector"] == "structural")
    lines.append(f"\nTop-1 on 2,000 held-out scenes; structural pooling, which keeps a quarter of the patches: "
                 f"{pooled:.2%} (`benchmarks/ablation.py`).")
    return "\n".join(lines)


def training_table() -> str:
    """The time of a training step, and its ratio to the step of the dense backbone."""
    found = read("demo-training.json")
    ms = {(row["precision"], row["step"], row["compiled"]): row["ms_all"] for row in found["timings"]}
    lines = ["| one step, batch 128, demo model | float32 | bfloat16 | float32, --compile | bfloat16, --compile |",
             "|---|---|---|---|---|"]
    kinds = [(precision, compiled) for compiled in (False, True) for precision in ("fp32", "bf16")]
    for step in dict.fromkeys(step for _, step, _ in ms):
        cells = []
        for precision, compiled in kinds:
            rounds = ms[precision, step, compiled]
            ratio = statistics.median(a / b for a, b in zip(rounds, ms[precision, "dense", compiled]))
            against = "" if step == "dense" else f" ({ratio:.2f}x)"
            cells.append(f"{statistics.median(rounds):.0f} ms{against}")
        lines.append(f"| {step} | {' | '.join(cells)} |")
    machine = found["machine"]
    lines.append("\nForward and backward; in brackets, the median over rounds of the ratio to the dense backbone. "
                 f"{machine['processor']}, {machine['logical_cores']} cores (`benchmarks/training.py`). Training "
                 f"deit-s at batch 32 in float32 takes {found['memory']['peak_rss_mib'] / 1024:.1f} GiB.")
    return "\n".join(lines)


def elastic_lines() -> list[str]:
    found = read("demo-elastic.json")
    ratios = sorted({ratio for row in found["rows"] for ratio in row["top1"]})
    lines = ["| demo student | " + " | ".join(f"exported at {ratio}" for ratio in ratios) + " |",
             "|---" * (1 + len(ratios)) + "|"]
    for case in dict.fromkeys(row["case"] for row in found["rows"]):
        cells = []
        for ratio in ratios:
            top1 = [row["top1"][ratio] for row in found["rows"] if row["case"] == case and ratio in row["top1"]]
            cells.append(f"{sum(top1) / len(top1):.2%}" if top1 else "-")
        lines.append(f"| {case} | {' | '.join(cells)} |")
    seeds = len({row["seed"] for row in found["rows"]})
    lines.append(f"\n{seeds} seed{'s' * (seeds > 1)}, {found['epochs'] * found['images']:,} scenes each.")
    return lines


def precision_table() -> str:
    """Every precision of one pruned model, timed in one run with the dense float32 model in ONNX Runtime."""
    result = read("deit-s-0.7-precision.json")
    timings = result["bench"]["timings"]
    batches = sorted({t["batch"] for t in timings})
    lines = [f"| {result['model']} at keep ratio {result['keep_ratio']} | "
             + " | ".join(f"batch {batch}: images/s | against dense float32" for batch in batches) + " |",
             "|---" * (1 + 2 * len(batches)) + "|"]
    for name in dict.fromkeys(t["artifact"] for t in timings):
        rows = [next(t for t in timings if t["artifact"] == name and t["batch"] == batch) for batch in batches]
        first = rows[0]
        kind = "dense" if first["speedup"] is None else "pruned"
        cells = [f"{t['images_per_sec']:.1f} | {_speedup(t)}" for t in rows]
        lines.append(f"| {kind}, {first['precision']}, {first['backend'].removesuffix(' cpu')} | {' | '.join(cells)} |")
    machine, versions, costs = result["bench"]["machine"], result["bench"]["versions"], result["costs"]
    gated, calibration = costs["ort-int8 with its gate"], costs["calibrate, 512 images"]
    lines.append(f"\n{machine['processor']}, {machine['logical_cores']} cores with AVX-512 VNNI and BF16, OpenVINO "
                 f"{versions['openvino'].split('-')[0]}, one run (`benchmarks/precision.py`); "
                 f"OpenVINO's int8 runs all other operations in bfloat16; ~ marks timings that did not settle within "
                 f"2 %. `dyvit export --int8` with 64 images, comparison and timing included, takes "
                 f"{gated['seconds']:.0f} s; `dyvit calibrate` with 512 images takes "
                 f"{calibration['seconds']:.0f} s and {calibration['peak_rss_mib']:.0f} MiB.")
    return "\n".join(lines)


def _speedup(timing: dict) -> str:
    return f"{'' if timing['stable'] else '~'}{timing['speedup']:.2f}x" if timing["speedup"] else "-"


def accuracy_table() -> str:
    """The demo student in every precision against float32, on all held-out scenes."""
    result = read("demo-precision.json")
    count = result["rows"][0]["images"]
    lines = [f"| demo student | size | top-1, {count:,} scenes | same class as float32 | same kept tokens as float32 |",
             "|---|---|---|---|---|",
             f"| float32, PyTorch | - | {result['reference_top1']:.2%} | - | - |"]
    for row in result["rows"]:
        if row["name"].endswith("float32"):
            continue
        runtime, precision = row["name"].split("-")
        where = {"ort": "ONNX Runtime", "openvino": "OpenVINO",
                 "tensorrt": "graph for TensorRT" + ("*" if "emulated" in row["backend"] else "")}[runtime]
        overlap = " / ".join(_at_least(share) for share in row["overlap"])
        lines.append(f"| {precision}, {where} | {row['size_mib']:.1f} MiB | {row['top1']:.2%} | {row['agreement']:.2%} "
                     f"| {overlap} |")
    lines.append("\nGraphs for TensorRT were run by ONNX Runtime on a CPU, not by TensorRT; * marks emulated rounding.")
    return "\n".join(lines)


def _at_least(share: float) -> str:
    """A percentage, rounded down, so that 99.96 % is not shown as 100 %."""
    return f"{math.floor(share * 1000) / 10:.1f}%"


def gpu_rows() -> str:
    """Dense and pruned in every runtime, per GPU that was measured."""
    found = []
    for path in sorted(RESULTS.glob("gpu-*.json")):
        try:
            found.append(json.loads(path.read_text()))
            gpu_table(found[-1:])
        except (ValueError, KeyError, TypeError) as error:
            sys.exit(f"{path} is no result of benchmarks/gpu.py ({type(error).__name__}: {error}); remove it.")
    return gpu_table(found)


def engine_table() -> str:
    """The cost of a build without a GPU, and the precisions and fusions in the built engine."""
    result = read("deit-s-0.7-engines.json")
    lines = [f"| {result['model']} at keep ratio {result['keep_ratio']} | build, whole process | peak memory | plan "
             "| matrix products | attention fused |", "|---|---|---|---|---|---|"]
    for precision, row in result["rows"].items():
        products = ", ".join(f"{count} {kind}" for kind, count in row["products"].items())
        cells = (precision, f"{row['seconds']:.1f} s", f"{row['peak_rss_mib']:.0f} MiB", f"{row['plan_mib']:.0f} MiB",
                 products, f"{row['fused_attention']} of {row['attention']} blocks")
        lines.append(f"| {' | '.join(cells)} |")
    machine = result["machine"]
    lines.append(f"\n{machine['processor']}, {machine['logical_cores']} cores, no GPU, TensorRT for RTX "
                 f"{result['versions']['tensorrt-rtx']} (`benchmarks/engines.py`). Products and fusions are those that "
                 "the builder lists; nothing has been run on a device.")
    return "\n".join(lines)


def peers_table() -> str:
    """The alternatives beside the artifacts of this package."""
    if not (RESULTS / PEERS).exists():
        return "Not measured yet: `python benchmarks/peers.py deit-s` fills this table."
    return peers_rows(read(PEERS)) + picture("peers", "images/s of deit-s, pruned, dense and smaller, per runtime")


def peers_rows(result: dict) -> str:
    """The table of one result of benchmarks/peers.py, and what it could not time."""
    batches = sorted({row["batch"] for row in result["rows"]})
    lines = [f"| keep ratio {result['keep_ratio']} where pruned | GMACs | " + " | ".join(
        f"batch {batch}: images/s | against dense float32 | against dense, same backend"
        for batch in batches) + " |", "|---" * (2 + 3 * len(batches)) + "|"]
    for name in dict.fromkeys(row["name"] for row in result["rows"]):
        rows = {row["batch"]: row for row in result["rows"] if row["name"] == name}
        cells = [f"{rows[batch]['images_per_sec']:.1f} | {_times(rows[batch], 'speedup')} "
                 f"| {_times(rows[batch], 'speedup_same_runtime')}" if batch in rows else "- | - | -"
                 for batch in batches]
        lines.append(f"| {name} | {next(iter(rows.values()))['gmacs']:.2f} | {' | '.join(cells)} |")
    machine, versions = result["machine"], result["versions"]
    used = [f"{name} {versions[key].split('-')[0]}" for key, name in CPU_LIBRARIES.items() if key in versions]
    absent = [f"{entry['name']}: {entry['reason'].rstrip('.')}" for entry in result["missing"] + result["failed"]]
    lines.append(f"\n{machine['processor']}, {machine['logical_cores']} cores, {', '.join(used)}, "
                 f"{result['started'][:10]}. Medians of one run in which all models take turns "
                 "(`benchmarks/peers.py`), random weights. Dense float32 runs in ONNX Runtime; \"same backend\" is the "
                 "dense model in the runtime and precision of the row; ~ marks timings that did not settle within 2 %."
                 + (f" Not in it: {'; '.join(absent)}." if absent else ""))
    return "\n".join(lines)


CPU_LIBRARIES = {"torch": "PyTorch", "timm": "timm", "onnxruntime-gpu": "ONNX Runtime", "onnxruntime": "ONNX Runtime",
                 "openvino": "OpenVINO"}


def _times(row: dict, key: str) -> str:
    """A speed-up; "-" where the row has no baseline or is the baseline."""
    return f"{'' if row['stable'] else '~'}{row[key]:.2f}x" if row[key] not in (None, 1) else "-"


def scale_table() -> str:
    """How cost grows with image size, batch and threads."""
    if not (RESULTS / SCALE).exists():
        return "Not measured yet: `python benchmarks/scale.py deit-s` fills this table."
    return scale_rows(read(SCALE)) + picture("scale", "latency of deit-s against its multiply-accumulates")


def scale_rows(result: dict) -> str:
    """The table of one result of benchmarks/scale.py."""
    lines = [f"| {result['model']} at keep ratio {result['keep_ratio']} | patches | batch | threads | dense GMACs per "
             "call | dense ms | pruned ms | speed-up | MAC ceiling |", "|---" * 9 + "|"]
    for dense, pruned in zip(result["rows"][::2], result["rows"][1::2]):
        settled = "" if dense["stable"] and pruned["stable"] else "~"
        lines.append(f"| {dense['series']}, {dense['size']} px | {dense['patches']} | {dense['batch']} "
                     f"| {dense['threads']} | {dense['gmacs'] * dense['batch']:.1f} | {dense['latency_ms_p50']:.1f} "
                     f"| {pruned['latency_ms_p50']:.1f} | {settled}{pruned['speedup']:.2f}x "
                     f"| {pruned['ceiling']:.2f}x |")
    machine, versions = result["machine"], result["versions"]
    runtime = versions.get("onnxruntime-gpu") or versions["onnxruntime"]
    other = {row["size"]: row["patch_size"] for row in result["rows"] if row["patch_size"] != 16}
    patch = "".join(f" Images of {size} pixels have patches of {side}." for size, side in other.items())
    lines.append(f"\n{machine['processor']}, {machine['logical_cores']} cores, ONNX Runtime {runtime}, float32, "
                 f"{result['started'][:10]}. Medians; the points of a series take turns in one run "
                 f"(`benchmarks/scale.py`), random weights; ~ marks timings that did not settle within 2 %.{patch}")
    return "\n".join(lines)


def picture(name: str, alternative: str) -> str:
    """The chart of a table, once benchmarks/charts.py has drawn it."""
    return f"\n\n![{alternative}](benchmarks/results/{name}.svg)" if (RESULTS / f"{name}.svg").exists() else ""


TABLES = {"speed": speed_table, "rewrites": rewrites_table, "demo": demo_table,
          "precision": precision_table, "gpu": gpu_rows,
          "accuracy": accuracy_table, "engine": engine_table, "training": training_table,
          "ablation": ablation_table, "untrained": untrained_table, "peers": peers_table, "scale": scale_table}
PAGES = {"README.md": TABLES, "docs/cpp.md": {"cpp": lambda: cpp_table(read_if_measured(CPP))},
         "docs/triton.md": {"serving": lambda: serving_table(read_if_measured(SERVING))},
         "docs/visualize.md": {"figures": lambda: figures_table(read_if_measured(FIGURES))}}


def render(text: str, tables: dict[str, Callable[[], str]]) -> str:
    """The text of a page with every marked table regenerated."""
    for name, make in tables.items():
        begin, end = f"<!-- {name} table: python benchmarks/tables.py -->\n", f"\n<!-- end of {name} table -->"
        before, rest = text.split(begin)
        text = before + begin + make() + end + rest.split(end)[1]
    return text


def main() -> None:
    changed = False
    for name, tables in PAGES.items():
        page = ROOT / name
        old = page.read_text()
        new = render(old, tables)
        changed |= new != old
        if "--check" not in sys.argv:
            page.write_text(new)
    sys.exit(changed and "--check" in sys.argv)


if __name__ == "__main__":
    main()
