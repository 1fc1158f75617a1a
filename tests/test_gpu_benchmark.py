"""The GPU benchmark as far as it goes without a GPU: its rehearsal, its refusal, its table."""
import importlib
import json
import os
import runpy
import subprocess
import sys

import pytest
import torch
from helpers import ROOT

BACKENDS = {"PyTorch eager", "PyTorch compiled", "ONNX Runtime", "TensorRT", "TensorRT for RTX"}


@pytest.fixture
def refused(monkeypatch, capsys):
    """Calls the script with arguments that it refuses, in this process; the exit code and what it said."""
    def call(*arguments):
        monkeypatch.syspath_prepend(ROOT / "benchmarks")
        monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
        with pytest.raises(SystemExit) as stopped:
            importlib.import_module("gpu").main()
        code = stopped.value.code
        return (code, capsys.readouterr().err) if isinstance(code, int) else (1, code)   # as Python itself does
    return call


def test_the_rehearsal_times_dense_against_pruned_and_names_what_is_absent(tmp_path):
    path = tmp_path / "trial.json"
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / "gpu.py", "--device", "cpu", "--quick", "-o", path],
                          capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    eager = [row for row in result["rows"] if row["backend"] == "PyTorch eager"]
    assert [row["batch"] for row in eager] == [1, 2]
    for row in result["rows"]:
        dense, pruned = row["dense"], row["pruned"]
        assert row["speedup"] == pytest.approx(pruned["images_per_sec"] / dense["images_per_sec"])
        assert row["ceiling"] == pytest.approx(dense["gmacs"] / pruned["gmacs"]) and row["ceiling"] > 1
        assert row["backend"].startswith("TensorRT") or dense["compute_ms_p50"] is dense["tflops"] is None
    absent = {entry["backend"]: entry["reason"] for entry in result["missing"] + result["refused"]}
    assert {row["backend"] for row in result["rows"]} | set(absent) == BACKENDS
    assert torch.cuda.is_available() or {"TensorRT", "TensorRT for RTX"} <= set(absent)
    assert all(len(reason) > 20 for reason in absent.values())
    assert all(parity["passed"] for parity in result["parity"])
    assert result["failed"] == result["left_out"] == [] and result["finished"] >= result["started"]
    assert done.stderr.count("is the ceiling") == len(result["rows"])
    assert set(result["gpu"].values()) == {None}


def test_a_rehearsal_is_only_written_where_it_is_told_to(refused):
    for arguments in (["--device", "cpu", "--quick"], ["--device", "cpu"], ["--quick"]):
        code, said = refused(*arguments)
        assert code == 2 and "say with -o where to write it" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so_in_one_sentence(refused):
    assert refused() == (1, "No NVIDIA GPU with a driver works here; rehearse with --device cpu --quick -o FILE.")


def row(batch, stable=True, speedup=1.25):
    side = {"images_per_sec": 1000.4, "stable": True}
    return {"backend": "TensorRT", "precision": "float16", "model": "deit-s", "batch": batch, "speedup": speedup,
            "ceiling": 1.5428, "dense": side, "pruned": {"images_per_sec": 1000.4 * speedup, "stable": stable}}


def test_the_table_has_its_batches_and_says_what_is_not_in_it():
    tables = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    text = tables["gpu_rows"]({
        "rows": [row(1, stable=False), row(8), row(256)], "started": "2026-01-02T03:04:05+00:00",
        "machine": {"gpu": "NVIDIA X"}, "versions": {"torch": "2.11", "driver": "580.1", "python": "3.12"},
        "missing": [{"backend": "ONNX Runtime", "reason": "no CUDA"}],
        "refused": [{"backend": "TensorRT for RTX", "reason": "no Hopper"}], "failed": [], "left_out": [{}, {}]})
    lines = text.splitlines()
    assert lines[2:4] == ["| TensorRT | float16 | deit-s | 1 | 1000 | 1250 | ~1.25x | 1.54x |",
                          "| TensorRT | float16 | deit-s | 256 | 1000 | 1250 | 1.25x | 1.54x |"]
    assert lines[-1].startswith("NVIDIA X, driver 580.1, PyTorch 2.11, 2026-01-02. ")
    assert lines[-1].endswith("Not in it: ONNX Runtime is missing; TensorRT for RTX does not run here; "
                              "2 configurations did not fit into the time.")


def test_without_a_result_the_table_says_that_its_rows_are_open(tmp_path):
    tables = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    tables["gpu_table"].__globals__["RESULTS"] = tmp_path
    assert tables["gpu_table"]() == ("No GPU has been at hand yet: these rows are open. `python benchmarks/gpu.py` "
                                     "fills them.")
