"""Checkpoints out of public reports, from the collection of cases that failed; the answers are those that it names."""
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from helpers import PHOTOS, REFERENCE, SHARED, code_blocks, dyvit, needs_photos

from dyvit_deploy.config import KeepRequest, LoadConfig
from dyvit_deploy.model.checkpoint import load_model

CASES = SHARED / "cases"
# The kinds of these faults are tested on tiny models beside this file; these are the inputs themselves.
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CASES.is_dir(), reason=f"the cases are not at {CASES}")]
DENSE = ["--keep-ratio", "1.0"]


def make(case, folder, *before):
    """Makes the input of a case in `folder`; returns what was printed."""
    for command in (*before, [CASES / case / "make.py"]):
        done = subprocess.run([sys.executable, *command], cwd=folder, check=True, text=True, capture_output=True,
                              env=os.environ | {"PHOTOS": str(PHOTOS)})
    return done.stdout


def answer(path, *options):
    """The class and its probability of the first photo, and what was said."""
    result = dyvit("predict", path, PHOTOS / "1.jpg", *DENSE, "--top", "1", *options)
    assert result.exit_code == 0, result.output
    line = next(line for line in result.stdout.splitlines() if line.startswith(str(PHOTOS)))
    *_, name, probability = line.split()
    return name, float(probability), result.stderr


@needs_photos
def test_augreg_mean_is_not_taken_for_deit_and_named_gives_timms_answer(tmp_path):
    right = re.search(r"class (\d+) probability (\S+)", make("augreg-mean", tmp_path))
    refused = dyvit("predict", tmp_path / "vit_s.pth", PHOTOS / "1.jpg", *DENSE)
    assert refused.exit_code == 1 and "timm:vit_small_patch16_224" in refused.stderr and "deit-s" in refused.stderr
    name, probability, said = answer(tmp_path / "vit_s.pth", "--model", "timm:vit_small_patch16_224")
    assert name == right[1] and abs(probability - float(right[2])) < 1e-5
    assert said.count("Assumed") == 1


@needs_photos
def test_ckpt_suffix_is_one_of_all_commands(tmp_path, monkeypatch):
    make("ckpt-suffix", tmp_path)
    monkeypatch.chdir(tmp_path)
    options = ["--model", "timm:test_vit", *DENSE]
    assert dyvit("export", "m.ckpt", *options, "-o", "m").exit_code == 0
    for command in (["check", "m.ckpt", "m", "--images", "2"], ["inspect", "m.ckpt"], ["inspect", "m"],
                    ["predict", "m.ckpt", PHOTOS / "1.jpg", *options]):
        result = dyvit(*command)
        assert result.exit_code == 0, result.output


@needs_photos
def test_hf_layout_is_renamed_and_its_labels_are_used(tmp_path):
    make("hf-layout", tmp_path)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        assert answer(path)[0].isdigit() and "were renamed" in answer(path)[2]
        assert load_model(path)[1].class_names == tuple(f"class {number}" for number in range(10))


@needs_photos
def test_in_chans_of_one_work_and_of_four_are_refused_with_advice(tmp_path):
    make("in-chans", tmp_path)
    model = ["--model", "timm:vit_tiny_patch16_224"]
    assert "luma" in answer(tmp_path / "in1.pth", *model)[2]
    refused = dyvit("export", tmp_path / "in4.pth", *model, *DENSE, "-o", tmp_path / "g.onnx")
    assert refused.exit_code == 1 and "4 channels" in refused.stderr and not (tmp_path / "g.onnx").exists()


def test_nonsquare_positions_that_fit_are_not_interpolated(tmp_path):
    make("nonsquare", tmp_path)
    result = dyvit("export", tmp_path / "line.pth", "--image-size", "448x112", *DENSE, "-o", tmp_path / "line.onnx")
    assert result.exit_code == 0 and "interpolated" not in result.output
    session = onnxruntime.InferenceSession(tmp_path / "line.onnx", providers=["CPUExecutionProvider"])
    [logits] = session.run(["logits"], {"images": np.load(tmp_path / "x.npy")})
    assert np.abs(logits - np.load(tmp_path / "right.npy")).max() < 1e-5


@needs_photos
def test_numpy_scalar_and_paths_are_plain_data(tmp_path):
    make("numpy-scalar", tmp_path)
    for name in ("numpy.pth", "path.pth"):
        number, probability, said = answer(tmp_path / name, "--model", "timm:test_vit")
        assert number.isdigit() and 0.1 < probability < 1 and "Assumed" not in said


def test_parallel_blocks_are_a_dense_model(tmp_path):
    make("parallel-blocks", tmp_path)
    model, facts = load_model(tmp_path / "p.pth", LoadConfig(model="timm:vit_small_patch16_18x2_224"))
    assert facts.dense and facts.model.heads == 6 and model.config.classes == 10
    (tmp_path / "p.pth").unlink()


@needs_photos
def test_timm_folder_says_what_it_is(tmp_path):
    make("timm-folder", tmp_path)
    answers = [answer(tmp_path / path) for path in ("model", "model/model.safetensors")]
    assert answers[0][:2] == answers[1][:2] and answers[0][0] in ("ant", "bee", "cow")
    assert "Assumed" not in answers[0][2]
    facts = load_model(tmp_path / "model")[1]
    assert facts.model.preprocess.mean == (0.5, 0.5, 0.5) and facts.class_names == ("ant", "bee", "cow")


def test_prefixes_give_the_bits_of_the_bare_file(tmp_path):
    make("prefixes", tmp_path, [REFERENCE / "recipe.py", "deit-256", "deit-256.pth"])
    files = sorted(file for suffix in ("pth", "ckpt", "safetensors") for file in tmp_path.glob(f"*.{suffix}"))
    assert len(files) == 9
    images, answers = torch.ones(1, 3, 224, 224), []
    for file in files:
        model, _ = load_model(file, LoadConfig(keep=KeepRequest(ratio=0.7)))
        with torch.no_grad():
            answers.append(model(images))
        file.unlink()
    assert all(torch.equal(found, answers[0]) for found in answers)


@needs_photos
def test_the_lines_of_the_documentation_that_name_a_model_work_as_they_stand(tmp_path, monkeypatch):
    make("augreg-mean", tmp_path)
    monkeypatch.chdir(tmp_path)
    [lines] = [text.splitlines() for kind, text in code_blocks("docs/checkpoints.md") if "vit_s.pth" in text]
    for line in lines:
        result = dyvit(*shlex.split(line)[1:])
        assert result.exit_code == 0, result.output
    assert "Assumed" not in result.output
