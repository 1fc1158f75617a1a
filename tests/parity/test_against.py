"""A second opinion on a checkpoint: logits that other code computed."""
import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from helpers import SHARED, code_blocks, dyvit, photo_folder, tiny_checkpoint, tiny_images
from PIL import Image

from dyvit_deploy.artifacts.files import sha256
from dyvit_deploy.errors import ArtifactError
from dyvit_deploy.model.checkpoint import load_model
from dyvit_deploy.parity.against import PixelComparison
from dyvit_deploy.parity.reference import read_reference
from dyvit_deploy.settings.preprocessing import Preprocess

NAME = "test_vit"
MODEL = ("--model", f"timm:{NAME}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What someone's own training leaves: a bare state dict of five classes, photos, and what their code computes."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    model = timm.create_model(NAME, num_classes=5).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    torch.save(model.state_dict(), folder / "own.pth")
    photo_folder(folder / "photos", count=4, side=190)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    files = sorted((folder / "photos").iterdir())
    images = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
    with torch.no_grad():
        logits = model(images)
    arrays = dict(images=images.numpy(), logits=logits.numpy(), files=[f"photos/{file.name}" for file in files])
    np.savez(folder / "reference.npz", **arrays)
    np.savez(folder / "no-files.npz", **{name: arrays[name] for name in ("images", "logits")})
    return folder


def against(trained, what, *options, checkpoint="own.pth"):
    return dyvit("check", trained / checkpoint, "--against", what, *MODEL, *options)


def test_logits_made_elsewhere_agree_from_the_photo_on(trained, tmp_path):
    result = against(trained, trained / "reference.npz", "--json", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    assert "Images are prepared alike" in result.output
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["passed"] and report["independent"] and report["pixel_error"] < 1e-5
    assert [(b["batch"], b["images"]) for b in report["batches"]] == [(1, 4), (4, 4)]
    assert report["candidate"] == "own.pth" and report["reference"] == "reference.npz"
    digests = set(report["dyvit"]["files"].values())
    assert digests == {sha256(trained / name) for name in ("own.pth", "reference.npz")}


def test_a_wrong_mean_here_is_found_by_the_pixels_although_the_logits_agree(trained):
    result = against(trained, trained / "reference.npz", "--mean", "0.4,0.4,0.4")
    assert result.exit_code == 1 and "the images are prepared differently" in result.output
    assert "mean 0.4,0.4,0.4" in result.output and "--interpolation" in result.output
    assert "images differ" not in result.output


@pytest.mark.parametrize("option", [("--crop", "0.5"), ("--std", "0.4"), ("--interpolation", "nearest")])
def test_another_preparation_is_found(trained, option):
    assert against(trained, trained / "reference.npz", *option).exit_code == 1


@pytest.mark.parametrize("arguments", ["heads=4", "act_layer=relu"])
def test_wrong_heads_and_activations_are_found_and_the_advice_names_them(trained, arguments):
    result = against(trained, trained / "reference.npz", "--model-args", arguments)
    assert result.exit_code == 1 and "4 of 4 images differ" in result.output
    assert "usually differ by heads, pooling" in result.output and "prepared differently" not in result.output


def test_a_file_without_names_says_that_the_preprocessing_was_not_compared(trained):
    result = against(trained, trained / "no-files.npz", "--images", 3)
    assert result.exit_code == 0 and "the preprocessing was not compared" in result.output
    assert "first 3 of 4 images" in result.output


def test_a_pruned_student_is_compared_with_its_keep_ratio(tmp_path):
    path = tiny_checkpoint(tmp_path, ratio=0.5)
    model, _ = load_model(path)
    images = tiny_images(4)
    with torch.no_grad():
        np.savez(tmp_path / "r.npz", images=images.numpy(), logits=model(images).numpy())
    assert dyvit("check", path, "--against", tmp_path / "r.npz").exit_code == 0
    assert dyvit("check", path, "--against", tmp_path / "r.npz", "--keep-ratio", "0.9").exit_code == 1


def test_a_model_of_one_channel_is_compared_with_its_grey_images(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(NAME, num_classes=5, in_chans=1).eval()
    torch.save(model.state_dict(), tmp_path / "grey.pth")
    images = torch.randn(3, 1, 160, 160)
    with torch.no_grad():
        np.savez(tmp_path / "grey.npz", images=images.numpy(), logits=model(images).numpy())
    result = dyvit("check", tmp_path / "grey.pth", "--against", tmp_path / "grey.npz", *MODEL)
    assert result.exit_code == 0 and "one channel was not compared" in result.output, result.output


GOOD = dict(images=np.ones((2, 3, 160, 160), np.float32), logits=np.eye(2, 5, dtype=np.float32) - 1)
WRONG = {
    "no logits": (dict(logits=None), "no array 'logits'"),
    "uint8": (dict(images=np.ones((2, 160, 160, 3), np.uint8)), "images of .* is uint8"),
    "float64": (dict(logits=np.ones((2, 5))), "logits of .* is float64"),
    "channels last": (dict(images=np.ones((2, 160, 160, 3), np.float32)), "channels first"),
    "one image": (dict(images=GOOD["images"][0]), r"\[3, 160, 160\], not float32 \[n, 3"),
    "no images": (dict(images=GOOD["images"][:0], logits=GOOD["logits"][:0]), r"float32 \[0, 3"),
    "another number": (dict(logits=GOOD["logits"][:1]), "2 images and logits of 1"),
    "NaN": (dict(logits=np.full((2, 5), np.nan, np.float32)), "logits of .* NaN or infinity"),
    "softmax": (dict(logits=np.full((2, 5), 0.2, np.float32)), "before the softmax"),
    "too few names": (dict(files=["a.png"]), "not 2 texts"),
    "numbers as names": (dict(files=[1, 2]), "not 2 texts"),
    "objects as names": (dict(files=np.array(["a.png", None], object)), "not an .npz file of plain arrays"),
    "objects as logits": (dict(logits=np.array([[1], [2, 3]], object)), "not an .npz file of plain arrays"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_file_is_refused_with_one_sentence(kind, tmp_path):
    changes, message = WRONG[kind]
    path = tmp_path / "wrong.npz"
    np.savez(path, **{name: array for name, array in (GOOD | changes).items() if array is not None})
    with pytest.raises(ArtifactError, match=message):
        read_reference(path)


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    np.save(tmp_path / "array.npy", np.ones(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    (tmp_path / "text.npz").write_text("no zip")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    for name in ("array.npz", "text.npz", "cut.npz"):
        with pytest.raises(ArtifactError, match="file of plain arrays"):
            read_reference(tmp_path / name)


def test_damage_anywhere_in_a_file_gives_no_traceback(tmp_path):
    rng = np.random.default_rng(0)
    images, logits = rng.standard_normal((2, 3, 8, 8), np.float32), rng.standard_normal((2, 5), np.float32)
    np.savez_compressed(tmp_path / "r.npz", images=images, logits=logits, files=["a", "b"])
    content, refusals = (tmp_path / "r.npz").read_bytes(), 0
    for place in range(0, len(content), 5):
        (tmp_path / "r.npz").write_bytes(content[:place] + bytes([content[place] ^ 0x5A]) + content[place + 1:])
        try:
            read_reference(tmp_path / "r.npz")
        except ArtifactError:
            refusals += 1
    assert refusals > 100


def refused(result, code, *words):
    assert result.exit_code == code, result.output
    assert all(word in result.output for word in words), result.output
    assert len([line for line in result.output.splitlines() if line.startswith("dyvit: ")]) == 1


def test_images_of_another_size_logits_of_other_classes_and_missing_photos_are_refused(trained, tmp_path):
    np.savez(tmp_path / "size.npz", **(GOOD | dict(images=np.ones((2, 3, 64, 64), np.float32))))
    np.savez(tmp_path / "classes.npz", **(GOOD | dict(logits=-np.ones((2, 7), np.float32))))
    np.savez(tmp_path / "photos.npz", **GOOD, files=["a.png", "b.png"])
    refused(against(trained, tmp_path / "size.npz"), 1, "64x64 pixels", "--image-size 64x64")
    refused(against(trained, tmp_path / "classes.npz"), 1, "7 classes", "has 5")
    refused(against(trained, tmp_path / "photos.npz"), 1, "a.png", "no file in its folder")


def test_wrong_usage_is_refused(trained, tmp_path):
    checkpoint, reference = trained / "own.pth", trained / "reference.npz"
    (tmp_path / "m.onnx").write_bytes(b"\x08\x08 no graph")
    refused(dyvit("check", checkpoint), 2, "Give either a CANDIDATE")
    refused(dyvit("check", checkpoint, checkpoint, "--against", reference), 2, "Give either a CANDIDATE")
    refused(dyvit("check", checkpoint, "--against", "reference.csv"), 2, "timm:NAME or FILE.npz")
    refused(dyvit("check", checkpoint, "--against", reference, "--data", trained / "photos"), 2, "leave out --data")
    refused(dyvit("check", tmp_path / "m.onnx", "--against", reference), 2, "name the checkpoint")
    refused(dyvit("check", tmp_path / "none.pth", "--against", reference), 1, "does not exist")


def with_timm(trained, *options, checkpoint="own.pth", name=f"timm:{NAME}"):
    return against(trained, name, "--data", trained / "photos", *options, checkpoint=checkpoint)


def test_timm_agrees_from_the_photo_on(trained, tmp_path):
    result = with_timm(trained, "--json", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["independent"] and report["pixel_error"] < 1e-5 and report["reference"] == f"timm:{NAME}"
    assert report["batches"][0]["max_error"] < 1e-5
    assert list(report["dyvit"]["files"].values()) == [sha256(trained / "own.pth")]


def test_random_pixels_stand_in_for_photos_and_that_is_said(trained):
    result = against(trained, f"timm:{NAME}", "--images", 3)
    assert result.exit_code == 0 and "random pixels" in result.output and "3 images of noise" in result.output


def test_a_wrong_mean_here_differs_from_timm(trained):
    result = with_timm(trained, "--mean", "0.4,0.4,0.4")
    assert result.exit_code == 1 and "in timm mean 0.5,0.5,0.5" in result.output and "images differ" in result.output
    assert "--mean, --std" in result.output


def test_wrong_heads_here_differ_from_timm(trained):
    result = with_timm(trained, "--model-args", "heads=4")
    assert result.exit_code == 1 and "usually differ by heads" in result.output
    assert "prepared differently" not in result.output


def test_a_model_of_timm_that_the_weights_are_not_of_is_refused(trained):
    refused(with_timm(trained, name="timm:test_vit2"), 1, "timm cannot load", "--against FILE.npz")
    refused(with_timm(trained, name="timm:test_vitt"), 2, "timm has no model")


@pytest.mark.parametrize("size", ["96", "96x192", "192x64"])
def test_another_image_size_is_given_to_both(trained, size):
    result = with_timm(trained, "--image-size", size)
    assert result.exit_code == 0, result.output


def test_positions_of_another_size_are_read_alike(trained, tmp_path):
    torch.manual_seed(1)
    torch.save(timm.create_model(NAME, num_classes=5, img_size=96).state_dict(), tmp_path / "small.pth")
    result = with_timm(trained, checkpoint=tmp_path / "small.pth")
    assert result.exit_code == 0, result.output


def test_timm_reads_the_weights_that_were_chosen_here(trained, tmp_path):
    own = torch.load(trained / "own.pth")
    average = {name: 0.5 * tensor for name, tensor in own.items()}
    torch.save({"state_dict": own, "state_dict_ema": average}, tmp_path / "both.pth")
    for weights in ("model", "ema"):
        result = with_timm(trained, "--weights", weights, checkpoint=tmp_path / "both.pth")
        assert result.exit_code == 0, result.output


def test_a_folder_of_timm_is_compared_with_its_own_configuration(trained, tmp_path):
    model = timm.create_model(NAME, num_classes=5, pretrained_cfg_overlay={"mean": (0.1, 0.2, 0.3), "crop_pct": 0.7})
    timm.models._hub.save_for_hf(model, tmp_path / "hub", safe_serialization=True)
    result = dyvit("check", tmp_path / "hub", "--against", f"timm:{NAME}", "--data", trained / "photos",
                   "--json", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["candidate"] == "model.safetensors"
    assert list(report["dyvit"]["files"].values()) == [sha256(tmp_path / "hub/model.safetensors")]


def test_what_timm_cannot_read_is_refused_with_the_other_way(trained, tmp_path):
    own = torch.load(trained / "own.pth")
    torch.save({"net": {f"backbone.{name}": tensor for name, tensor in own.items()}}, tmp_path / "wrapped.pth")
    student = tiny_checkpoint(tmp_path)
    refused(dyvit("check", student, "--against", f"timm:{NAME}"), 1, "predictors that drop tokens", "FILE.npz")
    refused(with_timm(trained, checkpoint=tmp_path / "wrapped.pth"), 1, "timm cannot load", "--against FILE.npz")


def test_what_cannot_be_compared_with_timm_is_refused(trained):
    refused(dyvit("check", f"timm:{NAME}", "--against", f"timm:{NAME}"), 2, "no second opinion")
    refused(with_timm(trained, "--keep-ratio", "0.7"), 2, "keep all tokens")
    refused(against(trained, f"timm:{NAME}", "--data", "digits"), 1, "pass --data FOLDER")


@pytest.mark.skipif(not (SHARED / "cases").is_dir(), reason="the shared cases are not here")
def test_the_case_of_an_assumed_mean_is_found(tmp_path):
    """vit_s.pth has timm's vit_small_patch16_224, whose tensors have the shapes of deit-s."""
    subprocess.run([sys.executable, SHARED / "cases/augreg-mean/make.py"], cwd=tmp_path, check=True,
                   env=os.environ | {"PHOTOS": str(SHARED / "images")}, capture_output=True)
    arguments = ("check", tmp_path / "vit_s.pth", "--against", "timm:vit_small_patch16_224", "--images", 2)
    assert dyvit(*arguments, "--model", "deit-s").exit_code == 1
    assert dyvit(*arguments, "--model", "timm:vit_small_patch16_224").exit_code == 0


def test_the_lines_of_the_documentation_work_as_they_stand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5)
    torch.save(model.state_dict(), "best.pth")
    photo_folder(tmp_path / "photos", count=2)
    for made, named in (("000.png", "1.jpg"), ("001.png", "2.png")):
        Image.open(tmp_path / "photos" / made).save(tmp_path / "photos" / named)
        (tmp_path / "photos" / made).unlink()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    blocks = [(kind, text) for kind, text in code_blocks("docs/checkpoints.md") if "against" in text or "savez" in text]
    assert [kind for kind, _ in blocks] == ["sh", "python", "sh"]
    for kind, text in blocks:
        if kind == "python":
            exec(text, {"torch": torch, "np": np, "Image": Image, "model": model, "transform": transform})
        else:
            result = dyvit(*shlex.split(text)[1:])
            assert result.exit_code == 0, result.output


def test_images_that_differ_by_one_step_of_a_colour_and_its_rounding_are_prepared_alike():
    half = Preprocess(mean=(0.5,) * 3, std=(0.5,) * 3)
    own = np.full((1, 3, 2, 2), 0.3, np.float32)
    step = np.float32(1 / 255 / 0.5)
    pixels = PixelComparison(half)
    pixels.add(own, own + step * np.float32(1.00001))
    assert not pixels.failure
    pixels.add(own, own + 2 * step)
    pixels.add(own, own)
    assert "prepared differently" in pixels.failure and pixels.error == pytest.approx(2 * step, rel=1e-5)
