"""The command `dyvit sweep` on a tiny checkpoint; only tolerances and repeated exports are replaced."""
import json
import os
import shlex

import pytest
from helpers import dyvit, needs_openvino, photo_folder, tiny_checkpoint

from dyvit_deploy.artifacts.files import sha256
from dyvit_deploy.parity.tolerance import PrecisionTolerance


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep-cli")
    photo_folder(folder / "photos", 20, classes=5)
    return tiny_checkpoint(folder), folder / "photos"


@pytest.fixture(autouse=True)
def gentle(monkeypatch, quick_export):
    """Tiny random models have tiny margins."""
    wide = PrecisionTolerance(0.0, 1.0, 0.0)
    monkeypatch.setattr("dyvit_deploy.parity.compare.TOLERANCES", dict.fromkeys(("int8", "float16", "bfloat16"), wide))
    monkeypatch.setattr("dyvit_deploy.deploy.pipeline.TIMED_SECONDS", 0.1)


@needs_openvino
def test_sweep_resume_target_and_the_command_that_makes_the_best(files, tmp_path):
    checkpoint, photos = files
    out = tmp_path / "out"
    result = dyvit("sweep", checkpoint, "--keep-ratios", 0.5, "--precisions", "fp32,int8,fp8", "--backends",
                   "onnx,openvino", "--batch", "1,2", "--data", photos, "--seconds", 0.05, "-o", out, "--json",
                   tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    assert "ONNX Runtime on a CPU has no fp8" in result.output and "keep0.5-int8-openvino.xml" in result.output
    report = json.loads((tmp_path / "r.json").read_text())
    assert len(report["rows"]) == 8 and len(report["skipped"]) == 2
    assert [run["machine"]["logical_cores"] for run in report["runs"]] == [os.cpu_count()]
    assert all(0 <= row["top1"] <= 1 and row["overlap"] > 0 and row["speedup"] for row in report["rows"])
    assert {row["batch"] for row in report["rows"] if row["pareto"]} == {1, 2}
    assert (out / "pareto.png").stat().st_size > 1000 and (out / "pareto.svg").read_text().count("batch") >= 2
    before = (out / "sweep.json").read_bytes()

    result = dyvit("sweep", checkpoint, "-o", out, "--target", "latency_ms_p99<=1e6", "--target", "size_mib<9")
    assert result.exit_code == 0 and (out / "sweep.json").read_bytes() == before
    best, command = result.stdout.strip().splitlines()[-2:]
    assert best.startswith("Best for latency_ms_p99<=1e+06, size_mib<9: ") and command.startswith("dyvit export ")
    # Which one is the fastest is for the machine to say, so every command must make its artifact.
    commands = {row["command"] for row in report["rows"]}
    assert command in commands and len(commands) == 4
    for command in commands:
        words = shlex.split(command)
        again = tmp_path / words[-1].rsplit("/", 1)[-1]
        assert dyvit(*words[1:-1], again).exit_code == 0 and sha256(again) == sha256(out / again.name)

    # The checkpoint is recorded in the folder.
    result = dyvit("sweep", "-o", out, "--target", "latency_ms_p99<=1e-6")
    assert result.exit_code == 1 and "FAILED No artifact meets latency_ms_p99<=1e-06; the closest is" in result.output


def test_wrong_usage_is_2_and_does_nothing(files, tmp_path):
    for options, words in ((("--target", "latency<=3"), "Unknown metric 'latency'"),
                           (("--precisions", "int7"), "Did you mean 'int8'"), (("--backends", "trtx"), "Did you mean"),
                           (("--keep-ratios", "0.5,x"), "not a list of numbers"), (("--batch", "0"), "at least 1")):
        result = dyvit("sweep", files[0], "-o", tmp_path / "out", *options)
        assert result.exit_code == 2 and words in result.output and not (tmp_path / "out").exists(), result.output


def test_a_folder_without_a_sweep_needs_a_checkpoint(tmp_path):
    result = dyvit("sweep", "--target", "latency_ms_p99<=20", "-o", tmp_path / "none")
    assert result.exit_code == 2 and "name the checkpoint" in result.output and not (tmp_path / "none").exists()


def test_known_errors_are_1_and_one_sentence(files, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/sweep.json").write_text("{")
    result = dyvit("sweep", files[0], "-o", tmp_path / "out", "--target", "top1>=0.5")
    assert result.exit_code == 1 and result.output.count("\n") == 1 and "damaged" in result.output
    result = dyvit("sweep", files[0], "-o", tmp_path / "new", "--precisions", "int8", "--backends", "onnx")
    assert result.exit_code == 1 and "int8 is calibrated on images; pass --data" in result.output
    (tmp_path / "file").write_text("x")
    result = dyvit("sweep", files[0], "-o", tmp_path / "file", "--backends", "onnx", "--precisions", "fp32")
    assert result.exit_code == 1 and "choose another folder" in result.output
