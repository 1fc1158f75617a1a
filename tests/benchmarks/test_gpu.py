"""The GPU benchmark as far as it goes without a GPU: its rehearsal, its clock, its refusals, its table."""
import importlib
import json
import os
import subprocess
import sys
import time

import pytest
import torch
from helpers import ROOT

PARTS = {"peaks", "parity", "graph", "streams", "profile", "eager", "training", "compiled", "rtx", "trt", "ort"}


@pytest.fixture(scope="module")
def script():
    """Imports a module of benchmarks/, whose scripts import each other by their bare names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module


@pytest.fixture
def typed(script, monkeypatch, capsys):
    """Calls the script with arguments, in this process; the exit code and what it said."""
    def call(*arguments):
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")                     # which the script sets, as the threads
        monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
        monkeypatch.setattr(sys, "argv", ["gpu.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            script("gpu").main()
        code = stopped.value.code
        return (code, capsys.readouterr().err) if isinstance(code, int) else (1, code)   # as Python itself does
    return call


@pytest.fixture
def quick_rows(script, monkeypatch):
    """Rows that cost nothing, for what is about the files that hold them."""
    for part in ("streams", "peaks"):
        monkeypatch.setitem(script("gpu").MEASURES, part, lambda bench, job: {"passed": True})


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """A run of every part on the CPU, in a process of its own, and what it said; no row is cut on a slow machine."""
    path = tmp_path_factory.mktemp("gpu") / "trial.json"
    command = [sys.executable, "-c", "import gpu; gpu.PATIENCE = 1000; gpu.main()", "--device", "cpu", "--quick",
               "--minutes", "600", "-o", path]
    done = subprocess.run(command, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"})
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text()), done.stderr


def of(result, part):
    return [row for row in result["rows"] if row["part"] == part]


@pytest.mark.slow
def test_the_rehearsal_runs_every_part_or_names_it(rehearsal):
    result, said = rehearsal
    absent = {entry["part"]: entry["reason"] for kind in ("missing", "refused") for entry in result[kind]}
    assert {row["part"] for row in result["rows"]} | set(absent) == PARTS
    needs_nothing = {"peaks", "parity", "graph", "streams", "profile", "eager", "compiled"}
    assert {row["part"] for row in result["rows"]} >= needs_nothing
    assert all(len(reason) > 20 for reason in absent.values())
    assert result["failed"] == result["cut"] == result["left_out"] == [] and result["finished"] >= result["started"]
    assert said.count("is the ceiling") == len([row for row in result["rows"] if "speedup" in row])


@pytest.mark.slow
def test_a_pruned_row_has_two_ratios_and_their_ceilings(rehearsal):
    for row in [row for row in rehearsal[0]["rows"] if "speedup" in row]:
        dense, pruned = row["dense"], row["pruned"]
        alike = row.get("dense_rewritten", dense)
        assert row["speedup"] == pytest.approx(pruned["images_per_sec"] / dense["images_per_sec"])
        assert row["ceiling"] == pytest.approx(dense["gmacs"] / pruned["gmacs"])
        assert row["speedup_same_rewrites"] == pytest.approx(pruned["images_per_sec"] / alike["images_per_sec"])
        assert row["ceiling_same_rewrites"] == pytest.approx(alike["gmacs"] / pruned["gmacs"])
        rewritten = row["backend"] != "PyTorch eager"
        assert ("dense_rewritten" in row) == bool(row["forms"]) == rewritten
        assert (row["ceiling"] > row["ceiling_same_rewrites"] > 1) == rewritten


@pytest.mark.slow
def test_what_can_be_right_or_wrong_is_right(rehearsal):
    result = rehearsal[0]
    judged = [row for row in result["rows"] if row.get("passed") is not None]
    assert {row["part"] for row in judged} >= {"parity", "streams"} and all(row["passed"] for row in judged)
    assert [row["captured"] for row in of(result, "streams")] == [True, None]
    assert all(row["wrong"] == 0 and row["profiles_used"] == [0, 1, 2] for row in of(result, "streams"))
    assert all(check["passed"] for row in of(result, "ort") for check in row["parity"])
    assert [row["max_error_against_eager"] for row in of(result, "parity") if row["backend"] == "CUDA graph"] == [0] * 3


def test_engines_and_graphs_are_those_that_ship_for_their_target(script, tmp_path):
    parts = script("gpu_parts")
    bench = parts.Bench("cpu", 0.1, tmp_path, (1,))
    for backend, operator in (("TensorRT for RTX", "GatherElements"), ("ONNX Runtime", "GatherND")):
        job = parts.Job(backend, backend, "float32", "digits-s", 1)
        kinds = {node.op_type for node in parts.load_graph(bench.graph(job, 0.7, True)).graph.node}
        # Both gather positions by elements; only the rows are copied in another way.
        assert operator in kinds and ("GatherND" in kinds) == (operator == "GatherND")


@pytest.mark.parametrize("step", ["_start_upload", "_stage", "_start_download", "launch"])
def test_a_race_in_a_stream_is_seen(script, monkeypatch, tmp_path, step):
    """The check of the streams must fail where a step is late, so that an answer is of another batch."""
    parts, checks = script("gpu_parts"), script("gpu_checks")
    right, calls = getattr(checks.GpuStream, step), []

    def sometimes(stream, *given):
        calls.append(stream)
        if len(calls) % 5:
            right(stream, *given)
    monkeypatch.setattr(checks.GpuStream, step, sometimes)
    row = checks.check_streams(parts.Bench("cpu", 0.1, tmp_path, (1,), quick=True), parts.Job("streams", "CUDA graph"))
    assert row["wrong"] > 0 and not row["passed"]


def test_answers_that_are_no_numbers_are_wrong(script, monkeypatch, tmp_path):
    parts, checks = script("gpu_parts"), script("gpu_checks")
    right = checks.GpuStream.download
    monkeypatch.setattr(checks.GpuStream, "download", lambda stream, names: [
        values * (float("nan") if values.dtype == "float32" else 1) for values in right(stream, names)])
    row = checks.check_streams(parts.Bench("cpu", 0.1, tmp_path, (1,), quick=True), parts.Job("streams", "CUDA graph"))
    assert row["wrong"] == 20 and not row["passed"]


def test_a_row_that_json_cannot_hold_fails_alone(script, monkeypatch, typed, tmp_path):
    gpu, values = script("gpu"), iter([1.0, float("nan"), 2.0, torch.ones(1), 3.0])
    monkeypatch.setitem(gpu.MEASURES, "peaks", lambda bench, job: {"tflops": next(values)})
    assert typed("--device", "cpu", "--quick", "--only", "peaks", "-o", tmp_path / "r.json")[0] == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert [row["tflops"] for row in result["rows"]] == [1.0, 2.0, 3.0] and len(result["failed"]) == 2
    assert all(entry["trace"] for entry in result["failed"])


def test_a_speed_up_with_one_graph_that_was_not_captured_is_marked(script, monkeypatch, tmp_path):
    parts = script("gpu_parts")
    right, calls = parts.HostCuda.capture, []

    def fails_once(self, launch, stream):
        calls.append(stream)
        if len(calls) == 1:
            raise RuntimeError("no capture")
        return right(self, launch, stream)
    monkeypatch.setattr(parts.HostCuda, "capture", fails_once)
    row = parts.time_sides(parts.Bench("cpu", 0.05, tmp_path, (1,), quick=True),
                           parts.Job("graph", "PyTorch CUDA graph", "float32", "digits-s", 1))
    assert row["cuda_graph"] is False and row["capture_error"] == "no capture"


def test_only_names_parts_and_resume_goes_on_with_what_is_missing(typed, quick_rows, tmp_path):
    path = tmp_path / "trial.json"
    words = "--device", "cpu", "--quick"
    assert typed(*words, "--only", "streams", "-o", path)[0] == 0
    first = json.loads(path.read_text())
    assert [row["part"] for row in first["rows"]] == ["streams", "streams"]
    first["rows"] = first["rows"][:1]
    path.write_text(json.dumps(first))
    assert typed(*words, "--only", "streams,peaks", "--resume", path)[0] == 0
    second = json.loads(path.read_text())
    assert second["rows"][0] == first["rows"][0] and second["started"] == first["started"]
    assert [row["part"] for row in second["rows"]] == ["streams", *["peaks"] * 5, "streams"]


def test_a_row_that_does_not_fit_is_not_begun(typed, tmp_path):
    words = "--device", "cpu", "--quick", "--only", "training,streams", "--minutes", "0.01"
    code, _ = typed(*words, "-o", tmp_path / "r.json")
    result = json.loads((tmp_path / "r.json").read_text())
    assert code == 1 and result["rows"] == [] and len(result["left_out"]) == 3
    assert all("were needed" in entry["reason"] for entry in result["left_out"])


def test_a_row_that_overruns_is_cut_and_the_next_one_runs(script, monkeypatch, typed, quick_rows, tmp_path):
    gpu = script("gpu")

    def forever(bench, job):
        while True:
            try:
                time.sleep(0.01)
            except Exception:                                              # a library that goes on after any error
                continue
    monkeypatch.setitem(gpu.MEASURES, "parity", forever)
    monkeypatch.setattr(gpu, "START", 0.0)
    monkeypatch.setitem(gpu.EXPECTED, "parity", 0.05)
    assert typed("--device", "cpu", "--quick", "--only", "parity,streams", "-o", tmp_path / "r.json")[0] == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert {entry["part"] for entry in result["cut"]} == {"parity"}
    assert [row["part"] for row in result["rows"]] == ["streams"] * 2


def test_every_row_is_on_disk_before_the_next_one_begins(script, monkeypatch, typed, tmp_path):
    gpu, path, seen = script("gpu"), tmp_path / "r.json", []

    def look(bench, job):
        seen.append(len(json.loads(path.read_text())["rows"]) if path.exists() else 0)
        return {}
    monkeypatch.setitem(gpu.MEASURES, "peaks", look)
    typed("--device", "cpu", "--quick", "--only", "peaks", "-o", path)
    assert seen == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("arguments, said", [
    (["--device", "cpu", "--quick"], "say with -o where to write it"), (["--device", "cpu"], "say with -o"),
    (["--quick"], "say with -o"), (["--only", "grahp", "-o", "x.json"], "there is no part grahp; choose from peaks"),
    (["--minutes", "0", "-o", "x.json"], "--minutes is a positive number")])
def test_wrong_usage_is_refused(typed, arguments, said):
    code, words = typed(*arguments)
    assert code == 2 and said in words


def test_a_result_of_another_card_is_not_resumed_but_left_as_it_is(typed, quick_rows, tmp_path):
    named = {kind: [] for kind in ("missing", "refused", "failed", "cut", "left_out")}
    old = json.dumps({"device": "cuda", "machine": {"gpu": "NVIDIA X"}, "rows": [], "started": "2026", "versions": {},
                      "config": {"quick": True}, "float16_graph_by": None, **named})
    (tmp_path / "r.json").write_text(old)
    words = "--device", "cpu", "--quick", "--only", "peaks", "--resume", tmp_path / "r.json"
    code, said = typed(*words, "-o", tmp_path / "new.json")
    assert code == 0 and "is of NVIDIA X with" in said and "this is a new result" in said
    assert (tmp_path / "r.json").read_text() == old
    assert len(json.loads((tmp_path / "new.json").read_text())["rows"]) == 5


def test_a_rehearsal_is_not_mixed_into_a_real_result(typed, quick_rows, tmp_path):
    first, words = tmp_path / "quick.json", ("--device", "cpu", "--only", "peaks")
    typed(*words, "--quick", "-o", first)
    code, said = typed(*words, "--resume", first, "-o", tmp_path / "real.json")
    result = json.loads((tmp_path / "real.json").read_text())
    assert code == 0 and "this is a new result" in said and not result["config"]["quick"]
    assert {row["seconds"] for row in result["rows"]}.isdisjoint(
        row["seconds"] for row in json.loads(first.read_text())["rows"])


@pytest.mark.parametrize("change", [{"rows": [{}]}, {"rows": "abc"}, {"rows": None}, {"missing": [{}]}, {"failed": 5},
                                    {"rows": [{"part": [1], "backend": "", "precision": "", "model": "", "batch": 0}]}])
def test_a_damaged_result_is_not_resumed(typed, quick_rows, tmp_path, change):
    path, words = tmp_path / "r.json", ("--device", "cpu", "--quick", "--only", "streams")
    typed(*words, "-o", path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    code, said = typed(*words, "--resume", path)
    assert code == 1 and said == f"{path} is no result of this script; leave out --resume."


def test_an_earlier_result_is_not_written_over(script, tmp_path):
    path = tmp_path / "gpu-x.json"
    assert script("gpu").unused(path) == path
    for name in ("gpu-x.json", "gpu-x-2.json"):
        (tmp_path / name).write_text("{}")
    assert script("gpu").unused(path) == tmp_path / "gpu-x-3.json"


def test_a_damaged_result_is_named_by_the_tables(script, tmp_path, monkeypatch):
    tables = script("tables")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    for content in ("{", "{}", "[]"):
        (tmp_path / "gpu-x.json").write_text(content)
        with pytest.raises(SystemExit, match=r"gpu-x\.json is no result of benchmarks/gpu\.py"):
            tables.gpu_rows()


@pytest.mark.parametrize("content", ["no JSON", "[]", "{}", '{"device": "cpu", "machine": {"gpu": null}}'])
def test_a_file_that_is_no_result_is_not_resumed(typed, tmp_path, content):
    (tmp_path / "r.json").write_text(content)
    code, said = typed("--device", "cpu", "--resume", tmp_path / "r.json")
    assert code == 1 and "is no result of this script" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so_in_one_sentence(typed):
    assert typed() == (1, "No NVIDIA GPU with a driver works here; rehearse with --device cpu --quick -o FILE.")


def timed(batch, part="graph", backend="PyTorch CUDA graph", stable=True, pruned=1250.0):
    side = {"images_per_sec": 1000.4, "stable": True, "tflops": 300.0}
    return {"part": part, "backend": backend, "precision": "float16", "model": "deit-s", "batch": batch, "seconds": 1,
            "speedup": pruned / 1000.4, "ceiling": 1.601, "speedup_same_rewrites": 1.2, "ceiling_same_rewrites": 1.5428,
            "cuda_graph": True, "dense": side, "pruned": {"images_per_sec": pruned, "stable": stable, "tflops": 320.0}}


def measured(rows, card="NVIDIA X", started="2026-01-02T03:04:05+00:00", **named):
    peak = {"part": "peaks", "backend": "PyTorch", "precision": "float16", "model": "", "batch": 0, "tflops": 800.0}
    return {"device": "cuda", "machine": {"gpu": card}, "started": started, "rows": [peak, *rows],
            "config": {"quick": False},
            "versions": {"torch": "2.11", "driver": "580.1", "python": "3.12"},
            "missing": [], "refused": [], "failed": [], "cut": [], "left_out": [], **named}


def job(part, backend, batch=1):
    return {"part": part, "backend": backend, "precision": "float16", "model": "deit-s", "batch": batch, "reason": "so"}


def test_the_table_has_its_batches_and_says_what_is_not_in_it(script):
    text = script("gpu_tables").gpu_table([measured(
        [timed(1, stable=False), timed(8), timed(256)], missing=[job("ort", "ONNX Runtime")],
        refused=[job("rtx", "TensorRT for RTX")], left_out=[job("compiled", "PyTorch compiled", b) for b in (1, 32)])])
    lines = text.splitlines()
    assert lines[2:4] == [
        "| PyTorch CUDA graph | float16 | deit-s | 1 | 1000 | 1250 | ~1.25x (1.60x) | ~1.20x (1.54x) | 40% |",
        "| PyTorch CUDA graph | float16 | deit-s | 256 | 1000 | 1250 | 1.25x (1.60x) | 1.20x (1.54x) | 40% |"]
    assert lines[-1].startswith("NVIDIA X, driver 580.1, PyTorch 2.11, 2026-01-02. ")
    assert "Measured peaks: 800 TFLOP/s in float16." in lines[-1]
    assert lines[-1].endswith("Not in it: ONNX Runtime is missing; TensorRT for RTX does not run here; "
                              "2 rows of PyTorch compiled did not fit into the time.")


def test_two_calls_on_one_card_are_one_table_and_two_cards_are_two(script):
    tables = script("gpu_tables")
    first = measured([timed(1), timed(32, pruned=1111.0)], left_out=[job("ort", "ONNX Runtime")])
    second = measured([timed(32, pruned=1222.0), timed(1, "ort", "ONNX Runtime")], started="2026-01-03T03:04:05+00:00")
    text = tables.gpu_table([second, first])
    assert text.count("| backend") == 1 and "| 1222 |" in text and "1111" not in text and "| ONNX Runtime |" in text
    assert "Not in it" not in text and "2026-01-02 and 2026-01-03" in text
    later = measured([timed(1)], started="2026-01-04T03:04:05+00:00")
    assert "Not in it: ONNX Runtime" not in tables.gpu_table([first, second, later])
    assert "1 row of ONNX Runtime did not fit" in tables.gpu_table([first, later])
    both = tables.gpu_table([first, measured([timed(1)], card="NVIDIA Y")])
    assert both.count("| backend") == 2 and "\nNVIDIA X, driver" in both and "\nNVIDIA Y, driver" in both


def test_a_failed_check_and_a_failed_capture_are_in_the_table(script):
    row = timed(1) | {"cuda_graph": False}
    streams = {"part": "streams", "backend": "CUDA graph", "precision": "", "model": "", "batch": 0, "passed": False}
    text = script("gpu_tables").gpu_table([measured([row, streams])])
    assert "PyTorch CUDA graph, graph not captured |" in text
    assert "Checks on the card: 0 of 1 passed (FAILED: streams CUDA graph)." in text


def test_without_a_result_the_table_says_that_its_rows_are_open(script):
    tables = script("gpu_tables")
    assert tables.gpu_table([]) == tables.OPEN == tables.gpu_table(
        [measured([timed(1)]) | {"device": "cpu"}, measured([timed(1)]) | {"config": {"quick": True}}])
