"""Every command as it is typed: what it prints, what it writes, its exit code."""
import ast
import json
import subprocess
import sys

import click
import pytest
import torch
from helpers import ROOT, digit_scenes, dyvit, photo_folder, tiny_checkpoint
from PIL import Image

from dyvit_deploy.cli.main import main
from dyvit_deploy.parity.tolerance import PrecisionTolerance


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint, its export, and two photos, in one folder."""
    folder = tmp_path_factory.mktemp("cli")
    tiny_checkpoint(folder)
    tiny_checkpoint(folder, ratio=None)
    (folder / "photos").mkdir()
    for i in range(2):
        Image.new("RGB", (50, 40), (90 * i, 20, 200)).save(folder / "photos" / f"{i}.png")
    photo_folder(folder / "calib", 6)
    graph = folder / "tiny.onnx"
    result = dyvit("export", folder / "tiny.safetensors", "--format", "onnx", "--with-tokens", "-o", graph)
    assert result.exit_code == 0 and "16 / 8 / 4 / 2" in result.output
    return folder


def test_check_passes_on_photos_and_writes_json(files, tmp_path):
    result = dyvit("check", files / "tiny.safetensors", files / "tiny.onnx", "--data", files / "photos",
                   "--json", tmp_path / "c.json")
    assert result.exit_code == 0 and "same" in result.output
    report = json.loads((tmp_path / "c.json").read_text())
    assert report["passed"] and report["batches"][0]["images"] == 2


def test_check_exits_1_when_artifacts_disagree(files, tmp_path):
    other = tiny_checkpoint(tmp_path, seed=5)
    result = dyvit("check", other, files / "tiny.onnx", "--data", files / "photos")
    assert result.exit_code == 1 and "FAILED batch 1" in result.output and "differs" in result.output


def test_broken_images_are_named_and_counted(files, tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes(b"x")
    result = dyvit("check", files / "tiny.safetensors", files / "tiny.onnx", "--data", tmp_path)
    assert result.exit_code == 0 and "skipped, 1 in all" in result.output and "broken.png" in result.output


def test_bench_prints_speed_up_and_ceiling(files, tmp_path):
    result = dyvit("bench", files / "tiny.onnx", "--batch", "1,2", "--seconds", "0.2", "--json", tmp_path / "b.json")
    assert result.exit_code == 0 and "dense tiny" in result.output and "ceiling" in result.output
    assert "speed-up: over the dense model as torch exports it; rewritten: over the dense model with" in result.output
    report = json.loads((tmp_path / "b.json").read_text())
    assert {t["batch"] for t in report["timings"]} == {1, 2} and report["machine"]["processor"]


def test_inspect_models_and_doctor_answer(files, tmp_path):
    assert "before blocks 1, 2, 3" in dyvit("inspect", files / "tiny.onnx").output
    told = dyvit("models", "digits-s", "--json", tmp_path / "m.json").output
    [entry] = json.loads((tmp_path / "m.json").read_text())["entries"]
    assert entry["patches"] == 64 and "digits-s" in told and f" {entry['patches']} " in told
    doctor = dyvit("doctor")
    assert doctor.exit_code == 0 and "ONNX Runtime" in doctor.output


def test_train_and_eval_on_digits(tmp_path):
    pytest.importorskip("sklearn", reason="the digits need scikit-learn")
    run = tmp_path / "run"
    with digit_scenes(40):
        result = dyvit("train", "--model", "digits-s", "--data", "digits", "-o", run, "--epochs", 1,
                       "--dense-epochs", 1, "--images", 32, "--batch", 16, "--precision", "fp32")
    assert result.exit_code == 0, result.output
    assert (run / "best.safetensors").exists() and (run / "dense" / "best.safetensors").exists()
    result = dyvit("eval", run / "best.safetensors", "--data", "digits", "--images", 40, "--json", tmp_path / "e.json")
    assert result.exit_code == 0 and "by chance" in result.output
    assert json.loads((tmp_path / "e.json").read_text())["images"] == 40


@pytest.fixture
def gentle(monkeypatch):
    """Tiny random models have tiny margins, and nothing here is about time."""
    wide = PrecisionTolerance(0.0, 1.0, 0.0)
    monkeypatch.setattr("dyvit_deploy.parity.compare.TOLERANCES", {"int8": wide})
    monkeypatch.setattr("dyvit_deploy.deploy.pipeline.TIMED_SECONDS", 0.1)


def test_int8_is_calibrated_compared_timed_and_written(files, tmp_path, gentle):
    result = dyvit("export", files / "tiny.safetensors", "--int8", "--calib", files / "calib",
                   "-o", tmp_path / "m.onnx", "--json", tmp_path / "e.json")
    assert result.exit_code == 0, result.output
    for words in ("18 in int8", "the speed of float32", "6 calibration images are few", "Next: dyvit check"):
        assert words in result.output, words
    report = json.loads((tmp_path / "e.json").read_text())
    assert report["passed"] and report["export"]["facts"]["gate"] == "passed"
    assert dyvit("check", files / "tiny.safetensors", tmp_path / "m.onnx", "--data", files / "calib").exit_code == 0
    assert "by mse over 6 images" in dyvit("inspect", tmp_path / "m.onnx").output


def test_a_rejected_artifact_exits_1_with_a_reason_and_what_to_try(files, tmp_path, monkeypatch):
    monkeypatch.setattr("dyvit_deploy.parity.compare.TOLERANCES", {"int8": PrecisionTolerance(1.0, 1e-6, 1.0)})
    result = dyvit("export", files / "tiny.safetensors", "--int8", "--calib", files / "calib",
                   "-o", tmp_path / "m.onnx")
    assert result.exit_code == 1 and [p.name for p in tmp_path.iterdir()] == ["m.rejected.onnx"]
    text = " ".join(result.output.split())
    for words in ("FAILED batch 1: logits are off by", "alone costs", "--max-drop", "m.rejected.onnx", "differs"):
        assert words in text, words


def test_calibrate_and_reuse(files, tmp_path, gentle):
    result = dyvit("calibrate", files / "tiny.onnx", "--data", files / "calib", "--method", "percentile", "--images", 5,
                   "-o", tmp_path / "r.json")
    assert result.exit_code == 0 and "blocks.0.attn.qkv/MatMul" in result.output and "--ranges" in result.output
    result = dyvit("export", files / "tiny.safetensors", "--int8", "--ranges", tmp_path / "r.json",
                   "-o", tmp_path / "m.onnx")
    assert result.exit_code == 0 and "percentile over 5 images" in dyvit("inspect", tmp_path / "m.onnx").output


def test_sensitivity_shows_a_table_and_draws_a_chart(files, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is missing: pip install 'dyvit-deploy[calib]'")
    result = dyvit("sensitivity", files / "tiny.onnx", "--data", files / "calib", "--precision", "int8",
                   "--chart", tmp_path / "c.svg", "--json", tmp_path / "s.json")
    assert result.exit_code == 0 and "blocks.0.mlp.fc1" in result.output
    assert (tmp_path / "c.svg").read_text().startswith("<?xml")
    assert len(json.loads((tmp_path / "s.json").read_text())["layers"]) == 18


BAD = {
    "int8 without images": (["export", "{dir}/tiny.safetensors", "--int8", "-o", "{tmp}/x.onnx"], 2, "pass --calib"),
    "two precisions": (["export", "{dir}/tiny.safetensors", "--int8", "--fp16", "-o", "{tmp}/x.onnx"], 2,
                       "Give one of --fp16, --int8"),
    "fp8 on a cpu": (["export", "{dir}/tiny.safetensors", "--fp8", "--target", "cpu", "--calib", "{dir}/calib",
                      "-o", "{tmp}/x.onnx"], 2, "no float8; use"),
    "fp8 below 8.9": (["export", "{dir}/tiny.safetensors", "--fp8", "--compute-capability", "8.6", "--calib",
                       "{dir}/calib", "-o", "{tmp}/x.onnx"], 2, "needs a GPU of compute capability 8.9"),
    "few calibration images": (["export", "{dir}/tiny.safetensors", "--int8", "--calib", "{dir}/photos",
                                "-o", "{tmp}/x.onnx"], 1, "needs at least 4"),
    "unknown method": (["calibrate", "{dir}/tiny.onnx", "--data", "{dir}/calib", "--method", "maxi",
                        "-o", "{tmp}/r.json"], 2, "Did you mean 'max'"),
    "calibrating a checkpoint": (["calibrate", "{dir}/tiny.safetensors", "--data", "{dir}/calib", "-o", "{tmp}/r.json"],
                                 1, "is a checkpoint; export it first"),
    "ranges that are no json": (["calibrate", "{dir}/tiny.onnx", "--data", "{dir}/calib", "-o", "{tmp}/r.txt"], 2,
                                "written as .json"),
    "json over a model": (["inspect", "{dir}/tiny.onnx", "--json", "{dir}/tiny.safetensors"], 2, "written as .json"),
    "no compute capability": (["export", "{dir}/tiny.safetensors", "--fp8", "--compute-capability", "9", "--calib",
                               "{dir}/calib", "-o", "{tmp}/x.onnx"], 2, "like 8.9 or 89"),
    "forgotten precision": (["export", "{dir}/tiny.safetensors", "--calib", "{dir}/calib", "-o", "{tmp}/x.onnx"], 2,
                            "add --int8"),
    "ranges that are none": (["export", "{dir}/tiny.safetensors", "--int8", "--ranges", "{dir}/tiny.onnx",
                              "-o", "{tmp}/x.onnx"], 1, "holds no ranges"),
    "missing ranges": (["export", "{dir}/tiny.safetensors", "--int8", "--ranges", "{dir}/no.json",
                        "-o", "{tmp}/x.onnx"], 1, "does not exist"),
    "unknown precision": (["sensitivity", "{dir}/tiny.onnx", "--data", "{dir}/calib", "--precision", "int"], 2,
                          "Did you mean 'int8'"),
    "chart as jpg": (["sensitivity", "{dir}/tiny.onnx", "--data", "{dir}/calib", "--chart", "{tmp}/c.jpg"], 2,
                     ".png or .svg"),
    "format against suffix": (["export", "{dir}/tiny.safetensors", "-o", "{tmp}/x.xml"], 2, "change -o or --format"),
    "drop too fine": (["export", "{dir}/tiny.safetensors", "--int8", "--calib", "{dir}/calib", "--max-drop", "0.5",
                       "-o", "{tmp}/x.onnx"], 1, "give at least 200"),
    "missing file": (["inspect", "nowhere.pth"], 1, "nowhere.pth does not exist"),
    "unknown command": (["exprot"], 2, "Did you mean 'export'"),
    "unknown option": (["export", "x", "--keep-ration", "0.7"], 2, "--keep-ratio"),
    "unknown model": (["train", "--model", "diet-s", "--data", "digits", "-o", "{tmp}/r"], 2, "Did you mean 'deit-s'"),
    "unknown format": (["export", "{dir}/tiny.safetensors", "--format", "onxx", "-o", "{tmp}/x"], 2,
                       "Did you mean 'onnx'"),
    "unknown input": (["export", "{dir}/tiny.safetensors", "--input", "uint", "-o", "{tmp}/x"], 2,
                      "Did you mean 'uint8'"),
    "unknown weights": (["export", "{dir}/tiny.safetensors", "--weights", "emas", "-o", "{tmp}/x"], 2,
                        "Did you mean 'ema'"),
    "unknown data": (["eval", "{dir}/tiny.onnx", "--data", "digts"], 1, "Did you mean 'digits'"),
    "unknown split": (["eval", "{dir}/tiny.onnx", "--data", "digits", "--split", "tset"], 1, "Did you mean 'test'"),
    "ratio zero": (["export", "{dir}/tiny.safetensors", "--keep-ratio", "0", "-o", "{tmp}/x"], 2, "above 0"),
    "ratio above one": (["export", "{dir}/tiny.safetensors", "--keep-ratio", "1.5", "-o", "{tmp}/x"], 2, "at most"),
    "increasing ratios": (["export", "{dir}/tiny.safetensors", "--keep-ratios", ".5,.6,.7", "-o", "{tmp}/x"], 2,
                          "must not increase"),
    "no token left": (["export", "{dir}/tiny.safetensors", "--keep-ratio", "0.1", "-o", "{tmp}/x"], 2, "leave 0"),
    "no numbers": (["export", "{dir}/tiny.safetensors", "--keep-ratios", "a,b", "-o", "{tmp}/x"], 2, "list of"),
    "two schedules": (["export", "{dir}/tiny.safetensors", "--keep-ratio", ".5", "--keep-counts", "8,4,2",
                       "-o", "{tmp}/x"], 2, "Give only one of"),
    "stages out of order": (["export", "{dir}/tiny.safetensors", "--stages", "3,2,1", "-o", "{tmp}/x"], 2, "ascend"),
    "stages out of range": (["export", "{dir}/tiny.safetensors", "--stages", "1,2,30", "-o", "{tmp}/x"], 2, "0 to 3"),
    "wrong stage count": (["export", "{dir}/tiny.safetensors", "--keep-ratio", ".5", "--stages", "1,2",
                           "-o", "{tmp}/x"], 1, "3 predictors but 2 stages"),
    "bad image size": (["export", "{dir}/tiny.safetensors", "--image-size", "33", "-o", "{tmp}/x"], 2, "multiple of"),
    "no image size": (["export", "{dir}/tiny.safetensors", "--image-size", "big", "-o", "{tmp}/x"], 2, "not a size"),
    "dense backbone": (["export", "{dir}/tiny-dense.safetensors", "--keep-ratio", "0.7", "-o", "{tmp}/x"], 1,
                       "without predictors"),
    "folder as output": (["export", "{dir}/tiny.safetensors", "-o", "{tmp}"], 1, "is a folder"),
    "output below a file": (["export", "{dir}/tiny.safetensors", "-o", "{dir}/tiny.onnx/x.onnx"], 1,
                            "choose another folder"),
    "empty image folder": (["check", "{dir}/tiny.safetensors", "{dir}/tiny.onnx", "--data", "{tmp}"], 1,
                           "holds no images"),
    "no labels": (["eval", "{dir}/tiny.onnx", "--data", "{dir}/photos"], 1, "has no labels"),
    "batch zero": (["bench", "{dir}/tiny.onnx", "--batch", "0"], 2, "at least 1"),
    "check batch zero": (["check", "{dir}/tiny.safetensors", "{dir}/tiny.onnx", "--batch", "0"], 2, "at least 1"),
    "no images": (["check", "{dir}/tiny.safetensors", "{dir}/tiny.onnx", "--images", "0"], 1, "At least 1 image"),
    "nothing to resume": (["train", "--model", "digits-s", "--data", "digits", "--keep-ratio", "1", "-o", "{tmp}/r",
                           "--resume"], 1, "nothing to resume"),
    "options of a finished graph": (["eval", "{dir}/tiny.onnx", "--data", "digits", "--keep-ratio", "0.5"], 2,
                                    "was fixed when it was exported"),
    "options the other file decides": (["check", "{dir}/tiny.safetensors", "{dir}/tiny.onnx", "--keep-ratio", ".9"],
                                       2, "as the other artifact was exported"),
    "tolerance nan": (["check", "{dir}/tiny.safetensors", "{dir}/tiny.onnx", "--tolerance", "nan"], 2, "finite"),
    "seed below zero": (["train", "--model", "digits-s", "--data", "digits", "-o", "{tmp}/r", "--seed", "-1"], 2,
                        "seed must lie"),
    "no epochs": (["train", "--model", "digits-s", "--data", "digits", "-o", "{tmp}/r", "--dense-epochs", "0"], 2,
                  "positive epochs"),
    "untrainable model": (["train", "--model", "timm:vit_base_patch16_siglip_224", "--data", "digits", "-o", "{tmp}/r"],
                          2, "'map' pooling"),
    "unknown timm tag": (["models", "timm:vit_tiny_patch16_224.nope"], 2, "nope"),
    "device of a checkpoint": (["eval", "{dir}/tiny.safetensors", "--data", "digits", "--device", "cud"], 2,
                               "Did you mean 'cuda'"),
    "unknown device": (["bench", "{dir}/tiny.onnx", "--device", "cud"], 2, "Did you mean 'cuda'"),
}


@pytest.mark.parametrize("arguments, code, words", BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence_and_writes_nothing(files, tmp_path, arguments, code, words):
    result = dyvit(*(a.format(dir=files, tmp=tmp_path) for a in arguments))
    text = " ".join(result.output.split())
    assert result.exit_code == code, result.output
    assert words in text
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_pickle_with_code_is_refused_and_does_not_run(files, tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "it-ran"), "w")
    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    result = dyvit("export", tmp_path / "evil.pth", "--keep-ratio", "0.7", "-o", tmp_path / "x.onnx")
    assert result.exit_code == 1 and "was not run" in result.output
    assert [p.name for p in tmp_path.iterdir()] == ["evil.pth"]


def test_help_is_fast():
    """What its time goes into is imports, and those can be counted on any machine."""
    code = "import sys; from dyvit_deploy.cli.main import main; main(standalone_mode=False); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, check=True, cwd=ROOT, text=True)
    loaded = ast.literal_eval(done.stdout.splitlines()[-1])
    outside = {name.split(".")[0] for name in loaded} - set(sys.stdlib_module_names) - {"__main__", "_distutils_hack"}
    assert "Usage:" in done.stdout and outside <= {"dyvit_deploy", "click", "rich", "numpy", "PIL"}
    assert len(loaded) < 500


@pytest.mark.parametrize("command", main.commands)
def test_every_command_explains_its_options(command):
    assert dyvit(command, "--help").exit_code == 0
    assert all(p.help for p in main.commands[command].params if isinstance(p, click.Option))


def test_training_is_told_what_was_typed(monkeypatch):
    from dyvit_deploy.errors import ConfigError
    from dyvit_deploy.training import command

    def refuse(config, watch):
        raise ConfigError(config.command)
    monkeypatch.setattr(command, "train", refuse)
    assert dyvit("train", "--model", "tiny", "--data", "my data").output.strip() == (
        "dyvit: dyvit train --model tiny --data 'my data'")
