import dataclasses
import json
import signal
from types import SimpleNamespace

import pytest
import torch
from helpers import tiny_checkpoint, tiny_config, tiny_model, two_classes
from safetensors import safe_open

from dyvit_deploy.config import KeepRequest, LoadConfig
from dyvit_deploy.deploy.pipeline import export_artifact
from dyvit_deploy.errors import ArtifactError, CheckpointError, ConfigError, DataError, DyvitError, TrainingError
from dyvit_deploy.inspect.artifact import inspect_artifact
from dyvit_deploy.model import zoo
from dyvit_deploy.model.checkpoint import load_model, save_checkpoint
from dyvit_deploy.training import step
from dyvit_deploy.training.command import train
from dyvit_deploy.training.loop import Run
from dyvit_deploy.training.plan import TrainConfig
from dyvit_deploy.training.report import EpochReport, Started, Step

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
    """Two classes that differ in brightness, and the tiny model in the zoo."""
    monkeypatch.setitem(zoo.MODELS, "tiny", tiny_config())
    two_classes(tmp_path / "data")
    return tmp_path


def config(data, name="run", **changes) -> TrainConfig:
    base = TrainConfig("tiny", str(data / "data"), data / name, KeepRequest(ratio=0.5), overrides=SHORT, device="cpu",
                       workers=0)
    trains_teacher = "backbone" not in changes and changes.get("keep") != KeepRequest(ratio=1.0)
    return dataclasses.replace(base, **({"dense_epochs": 2 if trains_teacher else None} | changes))


def tensors(path):
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def test_one_command_trains_teacher_and_student_and_records_it(data):
    events = []
    report = train(config(data, command="dyvit train x"), events.append)
    student, facts = load_model(data / "run" / "best.safetensors")
    assert student.keep_counts == (8, 4, 2) and facts.class_names == ("dark", "light") and facts.model.classes == 2
    assert facts.training["recipe"]["epochs"] == 2 and facts.training["parent"]["file"] == "best.safetensors"
    assert load_model(data / "run" / "dense" / "best.safetensors")[1].dense
    assert [e.phase for e in events if isinstance(e, EpochReport)] == ["dense", "dense", "student", "student"]
    steps = [e for e in events if isinstance(e, Step)]
    assert len(steps) == 4 * 3 and all(set(s.parts) == {"classification", "ratio", "kl", "token"} for s in steps)
    saved = json.loads((data / "run" / "train.json").read_text())
    assert 0 <= report.top1 <= 1 and saved["dyvit"]["command"] == "dyvit train x"


def test_training_learns_two_separable_classes(data):
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


def test_a_nan_loss_stops_naming_loss_and_step_and_keeps_the_last_checkpoint(data, monkeypatch):
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


def test_a_run_is_never_overwritten_without_resume(data):
    dense = config(data, keep=KeepRequest(ratio=1.0))
    train(dense)
    before = (data / "run" / "best.safetensors").read_bytes()
    with pytest.raises(TrainingError, match="already contains a run; pass --resume"):
        train(dense)
    assert (data / "run" / "best.safetensors").read_bytes() == before
    # The run is finished, so resuming it does nothing.
    assert train(dataclasses.replace(dense, resume=True)).epochs[-1].epoch == 2


def test_broken_images_are_named_in_the_report(data):
    broken = data / "data" / "train" / "dark" / "broken.png"
    broken.write_bytes(b"x")
    report = train(config(data, keep=KeepRequest(ratio=1.0), overrides=(*SHORT[:2], ("precision", "fp32"))))
    assert len(report.skipped) == 1 and "broken.png" in report.skipped[0]


def test_a_frozen_backbone_does_not_change(data, monkeypatch):
    # The batch norms of this stem must not change either.
    monkeypatch.setitem(zoo.MODELS, "tiny", tiny_config(stem="conv"))
    train(config(data, "dense", keep=KeepRequest(ratio=1.0)))
    teacher = data / "dense" / "best.safetensors"
    train(config(data, backbone=teacher, overrides=(*SHORT, ("freeze_epochs", 9))))
    dense, student = tensors(teacher), tensors(data / "run" / "last.safetensors")
    assert all(torch.equal(dense[name], student[name]) for name in dense if not name.startswith("resume."))
    assert student["score_predictor.0.in_conv.1.weight"].abs().sum() > 0


@pytest.mark.parametrize("change, error, message", [
    (dict(backbone="x"), ArtifactError, "does not exist"),
    (dict(resume=True), TrainingError, "nothing to resume"),
    (dict(overrides=(("epochs", 0),)), ConfigError, "positive epochs"),
    (dict(overrides=(("images", 3), ("batch", 8))), ConfigError, "do not fill one batch"),
    (dict(overrides=(("lrate", 1),)), ConfigError, "no value 'lrate'"),
    (dict(model="tny"), ConfigError, "Did you mean 'tiny'"),
    (dict(keep=KeepRequest(ratio=0.5, stages=(3, 1))), ConfigError, "ascend"),
    (dict(keep=KeepRequest(ratio=1.0), resume=True), TrainingError, "nothing to resume"),
])
def test_options_that_cannot_be_used_are_refused(data, change, error, message):
    with pytest.raises(error, match=message):
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
    with pytest.raises(DataError, match="has no labels"):
        train(dataclasses.replace(config(data), data=str(data / "flat")))


def test_training_never_validates_on_its_own_images(data):
    (data / "data" / "val").rename(data / "elsewhere")
    with pytest.raises(DataError, match="no subfolder val"):
        train(config(data, keep=KeepRequest(ratio=1.0)))


def test_a_moving_average_is_saved_beside_the_weights(data):
    report = train(config(data, keep=KeepRequest(ratio=1.0), overrides=(*SHORT, ("ema", 0.9))))
    raw, average = (tensors(data / "run" / f"{name}.safetensors") for name in ("last", "best-ema"))
    assert not torch.equal(raw["head.weight"], average["head.weight"])
    assert report.epochs[-1].ema_top1 is not None and report.choice in (report.best, report.best_ema)
    assert load_model(report.best_ema)[1].training["recipe"]["ema"] == 0.9
    without = train(config(data, "without", keep=KeepRequest(ratio=1.0), overrides=(*SHORT, ("ema", None))))
    assert without.best_ema is None and not (data / "without" / "best-ema.safetensors").exists()


def test_a_second_training_in_a_folder_is_refused_by_name_and_disturbs_nothing(data):
    refused = []

    def watch(event):
        if isinstance(event, EpochReport):
            with pytest.raises(ConfigError, match=f"Another dyvit is writing {data}/run/last.safetensors"):
                train(config(data, keep=KeepRequest(ratio=1.0), resume=True))
            refused.append(event)
    report = train(config(data, keep=KeepRequest(ratio=1.0)), watch)
    assert len(refused) == len(report.epochs) == 2
    assert not [path.name for path in (data / "run").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("stop", [3, 4], ids=["before validation", "after validation"])
def test_a_run_that_ends_before_its_last_checkpoint_is_resumed_to_the_same_log(data, monkeypatch, stop):
    from dyvit_deploy.training import loop
    save, saved = loop.save_checkpoint, []

    def killed(path, *given, **options):
        saved.append(path.name)
        # Each epoch writes it after its steps, and after its validation.
        if saved.count("last.safetensors") == stop:
            raise KeyboardInterrupt
        save(path, *given, **options)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "save_checkpoint", killed)
        train(config(data, keep=KeepRequest(ratio=1.0)))
    resumed = train(config(data, keep=KeepRequest(ratio=1.0), resume=True))
    undisturbed = train(config(data, "other", keep=KeepRequest(ratio=1.0)))
    assert (data / "run" / "log.csv").read_text() == (data / "other" / "log.csv").read_text()
    assert [epoch.loss for epoch in resumed.epochs] == [epoch.loss for epoch in undisturbed.epochs]


def test_a_run_writes_its_recipe_a_csv_and_curves(data):
    train(config(data, tensorboard=True, keep=KeepRequest(ratio=1.0)))
    lines = (data / "run" / "log.csv").read_text().splitlines()
    assert lines[0].startswith("epoch,train_loss,train_classification") and len(lines) == 3
    assert list((data / "run" / "tensorboard").iterdir())
    again = config(data, "again", keep=KeepRequest(ratio=1.0), recipe_file=data / "run" / "recipe.yaml", overrides=())
    assert train(again).epochs[-1].loss == pytest.approx(float(lines[2].split(",")[1]))


@pytest.mark.parametrize("selector", ["attention", "random", "static", "structural"])
def test_every_selector_trains_and_loads_again(data, selector):
    ratio = None if selector == "structural" else 0.5
    train(config(data, "dense", keep=KeepRequest(ratio=1.0), overrides=(*SHORT[1:], ("epochs", 1))))
    report = train(config(data, keep=KeepRequest(ratio=ratio, selector=selector),
                          backbone=data / "dense" / "best.safetensors"))
    model, facts = load_model(report.last)
    assert facts.prune.selector == selector and facts.training["epoch"] == 2
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 2)


def test_elastic_training_keeps_both_ends_of_the_range_and_ratios_between(data):
    events = []
    report = train(config(data, overrides=(*SHORT, ("elastic", (0.5, 0.9))), keep=KeepRequest(ratio=0.7)),
                   events.append)
    student = [e for e in events if isinstance(e, Step) and e.phase == "student"]
    # Of 8 images 3 keep 0.5, 3 keep 0.9 and 2 a ratio between: int(16 * ratio) patches.
    for event in student:
        assert (3 * 8 + 3 * 14 + 2 * 8) / 128 <= event.kept[0] <= (3 * 8 + 3 * 14 + 2 * 14) / 128
        assert event.parts["ratio"] == 0
    assert load_model(report.best)[1].elastic == (0.5, 0.9)
    assert "keep ratios 0.5 to 0.9" in str(inspect_artifact(report.best).rows()["trained for"])
    for ratio, noted in ((0.5, False), (0.95, True)):
        exported = export_artifact(report.best, data / "model.onnx", load=LoadConfig(keep=KeepRequest(ratio=ratio)))
        assert any("Trained for keep ratios from 0.5 to 0.9" in line for line in exported.notes) == noted
    with pytest.raises(ConfigError, match="is outside the elastic range"):
        train(config(data, "no", overrides=(*SHORT, ("elastic", (0.8, 0.9))), keep=KeepRequest(ratio=0.7)))


def test_eval_only_validates_and_writes_nothing(data):
    train(config(data, "dense", keep=KeepRequest(ratio=1.0)))
    best = data / "dense" / "best.safetensors"
    report = train(config(data, "nowhere", backbone=best, keep=KeepRequest(ratio=1.0), eval_only=True,
                          overrides=(("epochs", 0),)))
    assert report.top1 == load_model(best)[1].training["best_val_top1"]
    assert report.epochs == () and not (data / "nowhere").exists()
    assert report.best is report.last is None and report.measured == str(best)
    again = train(config(data, "dense", keep=KeepRequest(ratio=1.0), eval_only=True, resume=True))
    assert again.top1 == report.top1
    with pytest.raises(ConfigError, match="nothing to measure"):
        train(config(data, "nowhere", eval_only=True))


def test_a_backbone_of_other_classes_and_another_size_is_trained_on_the_data_first(data, monkeypatch):
    monkeypatch.setitem(zoo.MODELS, "tiny", tiny_config(classes=7))
    start = tiny_checkpoint(data, None, classes=7)
    events = []
    train(config(data, backbone=start, image_size=(48, 48)), events.append)
    assert {e.phase for e in events if isinstance(e, EpochReport)} == {"dense", "student"}
    _, facts = load_model(data / "run" / "best.safetensors")
    assert facts.model.classes == 2 and facts.model.image_size == (48, 48) and facts.model.patches == 36
    assert facts.training["parent"]["file"] == "best.safetensors"


def test_a_validation_class_that_training_lacks_is_named(data):
    (data / "data" / "val" / "dark").rename(data / "data" / "val" / "grey")
    with pytest.raises(DyvitError, match="'grey'"):
        train(config(data))


def test_a_resumed_run_reports_where_it_resumes(data):
    with pytest.raises(Stop):
        train(config(data), interrupt("dense", 2, 1))
    events = []
    train(config(data, resume=True), events.append)
    starts = [e for e in events if isinstance(e, Started)]
    assert [(s.phase, s.resumed, s.epoch) for s in starts] == [("dense", True, 1), ("student", False, 0)]


@pytest.mark.parametrize("builder", ["vit", "lvvit"])
def test_the_paper_recipe_trains_with_mixup_stochastic_depth_and_a_frozen_start(data, monkeypatch, builder):
    monkeypatch.setitem(zoo.MODELS, "tiny", tiny_config(builder=builder, classes=2))
    dense = tiny_checkpoint(data, None, builder=builder, classes=2)
    overrides = (*SHORT, ("lr", 1e-2), ("freeze_epochs", 1), ("warmup_epochs", 0), ("drop_path", 0.1))
    report = train(config(data, backbone=dense, recipe="paper", overrides=overrides))
    assert [e.epoch for e in report.epochs] == [1, 2] and report.recipe.mixup == 0.8
    assert all(part > 0 for part in report.epochs[-1].parts.values())
    before, after = tensors(dense), tensors(report.last)
    # Frozen in the first epoch, not in the second.
    assert not torch.equal(before["blocks.0.attn.qkv.weight"], after["blocks.0.attn.qkv.weight"])
    assert after["resume.score_predictor.0.in_conv.1.weight/step"] > after["resume.blocks.0.attn.qkv.weight/step"]


def test_weights_with_nan_logits_never_replace_a_checkpoint(data, monkeypatch):
    dense = dict(keep=KeepRequest(ratio=1.0))
    broken = (*SHORT, ("lr", 1e30), ("warmup_epochs", 0))
    with pytest.raises(TrainingError, match=r"weights give nan after epoch 1, step 1; [^(]*$"):
        train(config(data, overrides=(*broken, ("images", 8)), **dense))
    assert not (data / "run" / "last.safetensors").exists()
    with pytest.raises(Stop):
        train(config(data, "kept", **dense), interrupt("dense", 2, 1))
    before = tensors(data / "kept" / "last.safetensors")
    monkeypatch.setattr(Run, "_train", lambda self, *_: self.model.backbone.norm.weight.data.fill_(torch.nan) is None)
    with pytest.raises(TrainingError, match=r"finished epochs in .* are intact"):
        train(config(data, "kept", resume=True, **dense))
    after = tensors(data / "kept" / "last.safetensors")
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_run_stopped_before_validation_reports_no_best_checkpoint(data):
    with pytest.raises(KeyboardInterrupt):
        train(config(data, keep=KeepRequest(ratio=1.0)),
              lambda event: isinstance(event, Step) and event.step == 1 and signal.raise_signal(signal.SIGTERM))
    saved = json.loads((data / "run" / "train.json").read_text())
    assert (saved["best"], saved["top1"]) == (None, None) and saved["last"].endswith("last.safetensors")


def test_a_refused_run_creates_no_folder(data):
    for changes in (dict(accumulate=3), dict(workers=-1), dict(accumulate=0)):
        with pytest.raises(ConfigError):
            train(config(data, "refused", **changes))
    assert not (data / "refused").exists()


def test_a_run_that_resumes_with_other_data_reports_the_original(data):
    with pytest.raises(Stop):
        train(config(data, keep=KeepRequest(ratio=1.0)), interrupt("dense", 2, 1))
    moved, events = (data / "data").rename(data / "moved"), []
    again = config(data, keep=KeepRequest(ratio=1.0), resume=True)
    train(dataclasses.replace(again, data=str(moved)), events.append)
    assert events[0].other_data == str(data / "data")


def test_repeated_overflow_in_fp16_is_an_error(data, monkeypatch):
    monkeypatch.setattr(Run, "_scaler", SimpleNamespace(get_scale=lambda: 0.5))
    with pytest.raises(TrainingError, match="overflow in fp16"):
        train(config(data))


def test_options_without_effect_are_refused(data):
    for changes, message in ((dict(keep=KeepRequest(ratio=1.0, selector="attention")), "drops no tokens"),
                             (dict(keep=KeepRequest(ratio=1.0), dense_epochs=3), "drops no tokens"),
                             (dict(workers=-1), "must be 0 or more"),
                             (dict(overrides=(*SHORT, ("elastic", (0.1, 0.9)))), "leave 0 tokens")):
        with pytest.raises(ConfigError, match=message):
            train(config(data, "refused", **changes))


def test_a_backbone_with_another_order_of_classes_is_trained_on_the_data_first(data):
    model, facts = tiny_model(None, classes=2)
    save_checkpoint(data / "other.safetensors", model, dataclasses.replace(facts, class_names=("light", "dark")))
    events = []
    train(config(data, backbone=data / "other.safetensors"), events.append)
    assert {e.phase for e in events if isinstance(e, EpochReport)} == {"dense", "student"}
    with pytest.raises(ConfigError, match="does not know the classes"):
        train(config(data, backbone=data / "other.safetensors", eval_only=True))


@pytest.mark.parametrize("names, assumed", [(None, 1), (("dark", "light"), 0)])
def test_the_order_of_classes_is_told_where_the_backbone_has_no_names(data, caplog, names, assumed):
    model, facts = tiny_model(None, classes=2)
    save_checkpoint(data / "other.safetensors", model, dataclasses.replace(facts, class_names=names))
    train(config(data, backbone=data / "other.safetensors", keep=KeepRequest(ratio=1.0), eval_only=True))
    told = [r.getMessage() for r in caplog.records if "has no class names" in r.getMessage()]
    assert len(told) == assumed and all(line.endswith("in this order: dark, light.") for line in told)


def test_a_run_with_the_largest_seed_resumes_after_a_stop_on_the_last_step(data):
    seeded = (*SHORT, ("seed", 2**31 - 1))
    train(config(data, "whole", overrides=seeded))

    def interrupt_last_step(event):
        if isinstance(event, Step) and (event.phase, event.epoch, event.step) == ("student", 1, event.steps - 1):
            signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        train(config(data, "cut", overrides=seeded), interrupt_last_step)
    train(config(data, "cut", overrides=seeded, resume=True))
    whole, cut = (tensors(data / name / "last.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_run_resumes_with_its_own_backbone_only(data):
    for seed in (0, 1):
        model, facts = tiny_model(None, seed, classes=2)
        save_checkpoint(data / f"{seed}.safetensors", model, facts)
    train(config(data, backbone=data / "0.safetensors"))
    with pytest.raises(TrainingError, match="from another backbone"):
        train(config(data, backbone=data / "1.safetensors", resume=True))
    with pytest.raises(TrainingError, match="started from a backbone"):
        train(config(data, resume=True))
    assert not (data / "run" / "dense").exists()
