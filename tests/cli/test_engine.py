"""The commands for engines, as they are typed."""
import json

import pytest
from click.testing import CliRunner
from helpers import needs_rtx, tiny_checkpoint, tiny_graph

from dyvit_deploy.cli.main import main
from dyvit_deploy.machine.hardware import gpu

pytestmark = needs_rtx
without_gpu = pytest.mark.skipif(gpu() is not None, reason="a GPU is here, and these are about machines without one")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    graph = tiny_graph(folder)
    result = type_(f"build {graph} --format rtx --batch 1:2:4 -o {folder / 'e.plan'} --json {folder / 'e.json'}")
    assert result.exit_code == 0, result.output
    return folder, result


def type_(line):
    return CliRunner().invoke(main, line.split())


def test_build_shows_what_it_built_and_what_to_type_next(made):
    folder, result = made
    for words in ("TensorRT for RTX", "batch 1 to 4, tuned for 2", "kept_2 int64 [batch, 2]", "in float32"):
        assert words in result.output
    assert f"dyvit bench {folder / 'e.plan'}" in result.output
    assert json.loads((folder / "e.json").read_text())["facts"]["profiles"] == [
        {"min": 1, "opt": 2, "max": 4, "name": "default"}]


def test_inspect_shows_builder_profiles_and_every_block(made):
    output = type_(f"inspect {made[0] / 'e.plan'}").output
    for words in ("engine plan", "batch 1 to 4", "block 3", "attn.qkv float32", "predictor 2", "tiny.safetensors",
                  "rebuild"):
        assert words in output


@without_gpu
def test_doctor_says_why_an_engine_does_not_load_and_what_to_do(made):
    result = type_(f"doctor --target {made[0] / 'e.plan'}")
    assert result.exit_code == 1 and "will NOT load here" in result.output
    assert "take it to a machine with an NVIDIA GPU" in result.output


@without_gpu
@pytest.mark.parametrize("command", ["bench", "eval --data digits", "check {graph}"])
def test_commands_that_run_an_engine_say_that_there_is_no_gpu(made, command):
    folder, _ = made
    result = type_(f"{command.format(graph=folder / 'tiny.onnx')} {folder / 'e.plan'}")
    assert result.exit_code == 1 and "no NVIDIA GPU with a driver works here" in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_a_dry_run_prints_commands_that_can_be_copied_and_writes_nothing(made, tmp_path):
    line = (f"export {tiny_checkpoint(tmp_path)} --format trt --int8 --calib digits --profile a=1:1:1 "
            f"--profile b=8:16:32 --dry-run -o {tmp_path / 'e.plan'}")
    result = type_(line)
    assert result.exit_code == 0 and "16 / 8 / 4 / 2" in " ".join(result.output.replace("│", " ").split())
    lines = result.output.splitlines()
    assert any(text.startswith("dyvit export ") and "--target tensorrt" in text for text in lines)
    assert any(text.startswith("trtexec --onnx=") and text.endswith("--profilingVerbosity=detailed") for text in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.safetensors"]


@pytest.mark.parametrize("line, code, words", [
    ("export {plan} -o {out}/x.onnx", 1, "is an engine plan; name the checkpoint"),
    ("calibrate {plan} --data digits -o {out}/r.json", 1, "is an engine plan; name the ONNX file"),
    ("build {plan} --format rtx -o {out}/x.plan", 1, "is an engine plan; name the ONNX file"),
    ("bench {graph} --cuda-graph", 2, "is for engine plans, and for checkpoints on a GPU; leave it out"),
    ("bench {graph} --streams 2 --transfers", 2, "--streams is for engine plans; leave it out"),
])
def test_plans_and_their_options_in_the_wrong_place_are_named(made, tmp_path, line, code, words):
    result = type_(line.format(plan=made[0] / "e.plan", graph=made[0] / "tiny.onnx", out=tmp_path))
    *steps, error = result.output.strip().splitlines()
    assert result.exit_code == code and error.startswith("dyvit: ") and words in error
    assert all(step.endswith(" ...") for step in steps) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options, words", [
    ("--format rtx -o e.onnx", "--format rtx writes .plan files, not e.onnx"),
    ("--format rtx --batch 8:1:2 -o e.plan", "MIN:OPT:MAX"),
    ("--format rtx --profile a -o e.plan", "NAME=MIN:OPT:MAX"),
    ("--format rtx --opt-level 9 -o e.plan", "0 to 5"),
    ("--format rtx --compute-capability 1 -o e.plan", "like 8.9 or 89"),
    ("--format rtx --version-compatible -o e.plan", "lean runtime"),
    ("--format trt --compute-capability 8.9 -o e.plan", "TensorRT builds for the GPU at hand"),
    ("--format onnx --batch 1:2:4 -o e.onnx", "--batch is for engines; add --format trt"),
    ("--format onnx --strip-weights -o e.onnx", "--strip-weights is for engines"),
    ("--format onnx --allow-precision-fallback -o e.onnx", "--allow-precision-fallback is for engines"),
])
def test_wrong_usage_of_engine_options_exits_with_2_in_one_sentence(tmp_path, options, words):
    result = type_(f"export {tiny_checkpoint(tmp_path)} {options.replace('-o ', f'-o {tmp_path}/')}")
    assert result.exit_code == 2 and words in result.output
    assert len(result.output.strip().splitlines()) == 1 and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_in_a_temporary_folder_is_one_sentence(tmp_path, monkeypatch):
    from dyvit_deploy.deploy import pipeline

    def full(*_):
        raise OSError(28, "No space left on device", "/tmp/x")
    monkeypatch.setattr(pipeline, "export_onnx", full)
    result = type_(f"export {tiny_checkpoint(tmp_path)} --format rtx -o {tmp_path / 'e.plan'}")
    assert result.exit_code == 1 and "The disk is full (/tmp/x); free space" in result.output
