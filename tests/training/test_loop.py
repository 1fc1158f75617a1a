import dataclasses

import numpy as np
import pytest
import torch
from helpers import tiny_config
from PIL import Image
from safetensors import safe_open

from dyvit_deploy import zoo
from dyvit_deploy.config import KeepRequest
from dyvit_deploy.errors import ArtifactError, CheckpointError, ConfigError, DataError, TrainingError
from dyvit_deploy.model.checkpoint import load_model
from dyvit_deploy.training import step
from dyvit_deploy.training.loop import TrainConfig, train
from dyvit_deploy.training.report import EpochReport, Step

SHORT = (("epochs", 2), ("batch", 8), ("images", 24), ("precision", "fp32"))


@pytest.fixture(autouse=True)
def one_thread():
    """A model this small only loses time to a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Two classes, told apart by brightness, and the tiny model in the zoo."""
    monkeypatch.setitem(zoo.MODELS, "tiny", tiny_config())
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for label, base in (("dark", 40), ("light", 200)):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = (base + rng.integers(-30, 30, (32, 32, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path


def config(data, name="run", **changes) -> TrainConfig:
    base = TrainConfig("tiny", str(data / "data"), data / name, KeepRequest(ratio=0.5), overrides=SHORT, dense_epochs=2,
                       device="cpu", workers=0)
    return dataclasses.replace(base, **changes)


def tensors(path):
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def test_one_command_trains_teacher_and_student_and_says_what_it_did(data):
    events = []
    report = train(config(data), events.append)
    student, facts = load_model(data / "run" / "best.safetensors")
    assert student.keep_counts == (8, 4, 2) and facts.class_names == ("dark", "light") and facts.model.classes == 2
    assert facts.training["recipe"]["epochs"] == 2 and facts.training["parent"]["file"] == "best.safetensors"
    assert load_model(data / "run" / "dense" / "best.safetensors")[1].dense
    assert [e.phase for e in events if isinstance(e, EpochReport)] == ["dense", "dense", "student", "student"]
    steps = [e for e in events if isinstance(e, Step)]
    assert len(steps) == 4 * 3 and all(set(s.parts) == {"classification", "ratio", "kl", "token"} for s in steps)
    assert 0 <= report.top1 <= 1 and (data / "run" / "train.json").exists()


def test_training_learns_what_can_be_learnt(data):
    overrides = (*SHORT[1:], ("epochs", 8), ("lr", 3e-3))
    report = train(config(data, keep=KeepRequest(ratio=1.0), overrides=overrides))
    assert report.top1 == 1.0
    losses = [epoch.loss for epoch in report.epochs]
    assert losses[-1] < losses[0]


class Stop(KeyboardInterrupt):
    pass


def interrupt(phase, epoch, step):
    def watch(event):
        if isinstance(event, Step) and (event.phase, event.epoch, event.step) == (phase, epoch, step):
            raise Stop
    return watch


@pytest.mark.parametrize("where", [("dense", 2, 2), ("student", 1, 2), ("student", 2, 1)])
def test_an_interrupted_run_resumes_to_the_same_weights(data, where):
    train(config(data, "whole"))
    with pytest.raises(Stop):
        train(config(data, "cut"), interrupt(*where))
    train(config(data, "cut", resume=True))
    whole, cut = (tensors(data / name / "last.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    for name in whole:
        assert torch.equal(whole[name], cut[name]), name


def test_the_same_seed_gives_the_same_weights_and_another_does_not(data):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(config(data, name, overrides=(*SHORT, ("seed", seed))))
    a, b, c = (tensors(data / name / "last.safetensors") for name in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["head.weight"], c["head.weight"])


def test_a_nan_loss_stops_with_part_and_step_and_keeps_the_last_checkpoint(data, monkeypatch):
    real, calls = step.student_losses, []

    def breaks_in_epoch_two(*args, **kwargs):
        parts, kept = real(*args, **kwargs)
        calls.append(1)
        return (parts._replace(kl=parts.kl * float("nan")) if len(calls) == 5 else parts), kept
    monkeypatch.setattr(step, "student_losses", breaks_in_epoch_two)
    with pytest.raises(TrainingError, match="The kl loss became nan at epoch 2, step 2"):
        train(config(data))
    assert load_model(data / "run" / "last.safetensors")[1].training["epoch"] == 1


def test_the_teacher_does_not_change_and_the_predictors_do(data):
    train(config(data, "dense", keep=KeepRequest(ratio=1.0)))
    teacher = data / "dense" / "best.safetensors"
    before = teacher.read_bytes()
    train(config(data, backbone=teacher))
    assert teacher.read_bytes() == before
    assert not (data / "run" / "dense").exists()


def test_a_run_is_not_overwritten_unasked(data):
    dense = config(data, keep=KeepRequest(ratio=1.0))
    train(dense)
    before = (data / "run" / "best.safetensors").read_bytes()
    with pytest.raises(TrainingError, match="holds a run already; pass --resume"):
        train(dense)
    assert (data / "run" / "best.safetensors").read_bytes() == before
    assert train(dataclasses.replace(dense, resume=True)).epochs[-1].epoch == 2    # finished: nothing left to do


def test_broken_images_are_named_in_the_report(data):
    broken = data / "data" / "train" / "dark" / "broken.png"
    broken.write_bytes(b"x")
    report = train(config(data, keep=KeepRequest(ratio=1.0), overrides=(*SHORT[:2], ("precision", "fp32"))))
    assert len(report.skipped) == 1 and "broken.png" in report.skipped[0]


def test_a_frozen_backbone_stays_where_it_was(data, monkeypatch):
    monkeypatch.setitem(zoo.MODELS, "tiny", tiny_config(stem="conv"))              # its batch norms must stand still
    train(config(data, "dense", keep=KeepRequest(ratio=1.0)))
    teacher = data / "dense" / "best.safetensors"
    train(config(data, backbone=teacher, overrides=(*SHORT, ("freeze_epochs", 9))))
    dense, student = tensors(teacher), tensors(data / "run" / "last.safetensors")
    assert all(torch.equal(dense[name], student[name]) for name in dense if not name.startswith("resume."))
    assert student["score_predictor.0.in_conv.1.weight"].abs().sum() > 0


@pytest.mark.parametrize("change, error, words", [
    (dict(backbone="x"), ArtifactError, "does not exist"),
    (dict(resume=True), TrainingError, "nothing to resume"),
    (dict(overrides=(("epochs", 0),)), ConfigError, "positive epochs"),
    (dict(overrides=(("images", 3), ("batch", 8))), ConfigError, "do not fill one batch"),
    (dict(overrides=(("lrate", 1),)), ConfigError, "no value 'lrate'"),
    (dict(model="tny"), ConfigError, "Did you mean 'tiny'"),
    (dict(keep=KeepRequest(ratio=0.5, stages=(3, 1))), ConfigError, "ascend"),
    (dict(keep=KeepRequest(ratio=1.0), resume=True), TrainingError, "nothing to resume"),
])
def test_requests_that_cannot_be_met_are_refused(data, change, error, words):
    with pytest.raises(error, match=words):
        train(config(data, **change))


def test_resuming_with_other_options_is_refused_by_name(data):
    dense = config(data, keep=KeepRequest(ratio=1.0))
    train(dense)
    with pytest.raises(TrainingError, match="other values for lr"):
        train(dataclasses.replace(dense, resume=True, overrides=(*SHORT, ("lr", 0.5))))


def test_a_backbone_of_another_model_is_refused(data, monkeypatch):
    train(config(data, "dense", keep=KeepRequest(ratio=1.0)))
    monkeypatch.setitem(zoo.MODELS, "wide", tiny_config(name="wide", width=64))
    with pytest.raises(CheckpointError, match="is a tiny, not a wide"):
        train(config(data, model="wide", backbone=data / "dense" / "best.safetensors"))


def test_data_without_splits_or_labels_are_refused(data):
    with pytest.raises(DataError, match="no subfolder train"):
        train(dataclasses.replace(config(data), data=str(data / "data" / "train")))
    (data / "flat" / "train").mkdir(parents=True)
    (data / "data" / "train" / "dark" / "0.png").rename(data / "flat" / "train" / "0.png")
    with pytest.raises(ConfigError, match="has no labels"):
        train(dataclasses.replace(config(data), data=str(data / "flat")))


def test_training_never_validates_on_its_own_images(data):
    (data / "data" / "val").rename(data / "elsewhere")
    with pytest.raises(DataError, match="no subfolder val"):
        train(config(data, keep=KeepRequest(ratio=1.0)))
