"""What the page says of checkpoints that no other code has read, and of what was assumed when they were read."""
import dataclasses
import json

import pytest
import timm
import torch
from helpers import cached_export, dyvit, photo_folder, tiny_model
from report_page import quick, text_of, verdicts

from dyvit_deploy.model.checkpoint import save_checkpoint

pytest.importorskip("jinja2", reason="Jinja2 is missing: pip install 'dyvit-deploy[report]'")
WEIGHTS = "model.safetensors"
ASSUMED = "tiny by its tensors, with mean 0.5,0.5,0.5"


@pytest.fixture
def hub(tmp_path):
    """A folder that timm wrote, with photos beside it."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=5)
    timm.models._hub.save_for_hf(model, tmp_path / "hub", safe_serialization=True)
    photo_folder(tmp_path / "photos", count=3)
    return tmp_path / "hub"


def compare(hub, *options, data=True):
    photos = ("--data", hub.parent / "photos") if data else ("--images", 3)
    return dyvit("check", hub / WEIGHTS, "--against", "timm:test_vit", *photos, "--json", hub / "opinion.json",
                 *options).exit_code


def parity(hub):
    return verdicts(quick(hub), WEIGHTS)["Parity"]


def test_a_checkpoint_that_only_dyvit_has_read_is_yellow_and_the_command_makes_it_green(hub, monkeypatch):
    found = parity(hub)
    assert found.state == "warn" and "never compared with another reader" in found.lines
    assert "--against timm:test_vit" in found.command
    monkeypatch.chdir(hub)
    assert dyvit(*found.command.replace("IMAGES", "../photos").split()[1:]).exit_code == 0
    found = parity(hub)
    assert found.state == "pass" and found.headline == "read alike elsewhere"
    assert "compared with timm:test_vit: same" in found.lines
    assert found.source == f"{WEIGHTS}.against.json"


def test_another_reader_that_differs_is_red_even_if_only_the_pixels_do(hub):
    assert compare(hub, "--mean", "0.4,0.4,0.4") == 1
    assert parity(hub).state == "fail"
    report = json.loads((hub / "opinion.json").read_text())
    for batch in report["batches"]:
        batch["failures"] = []
    (hub / "opinion.json").write_text(json.dumps(report))
    found = parity(hub)
    assert found.state == "fail" and "prepared differently" in found.lines[0]


def test_the_configuration_of_a_folder_is_no_report_of_another_tool(hub):
    assert (hub / "config.json").is_file() and not any("not a report" in note for note in quick(hub).notes)


def test_random_pixels_are_not_green(hub):
    assert compare(hub, data=False) == 0
    assert parity(hub).state == "warn" and parity(hub).headline.endswith("on noise")


def test_an_opinion_on_an_earlier_file_does_not_count(hub):
    assert compare(hub) == 0
    timm.models._hub.save_for_hf(timm.create_model("test_vit", num_classes=5), hub, safe_serialization=True)
    found = parity(hub)
    assert found.state == "warn" and "has changed since opinion.json" in found.lines[0]


def test_a_checkpoint_that_dyvit_trained_needs_no_other_reader(tmp_path):
    model, facts = tiny_model()
    save_checkpoint(tmp_path / "own.safetensors", model, dataclasses.replace(facts, training={"epochs": 1}))
    assert verdicts(quick(tmp_path), "own.safetensors")["Parity"].state == "info"


def test_assumptions_are_shown_in_yellow_beside_every_artifact_made_with_them_and_said_once(tmp_path):
    model, facts = tiny_model()
    save_checkpoint(tmp_path / "tiny.safetensors", model, dataclasses.replace(facts, assumed=(ASSUMED,)))
    cached_export(tmp_path / "tiny.safetensors", tmp_path / "tiny.onnx")
    result = dyvit("report", tmp_path, "--no-run", "--json", tmp_path / "page.json")
    assert f"Assumed of tiny.onnx, tiny.safetensors: {ASSUMED}." in result.output
    assert result.output.count("by its tensors") == 1 and "with assumptions" in " ".join(result.output.split())
    page = (tmp_path / "report.html").read_text()
    assert page.count(f'<p class="small warn">Assumed, because no file records it: {ASSUMED}.</p>') == 2
    assert page.count(f'<dd class="warn">{ASSUMED}</dd>') == 2
    assert "not known yet with assumptions" in text_of(page)
    artifacts = json.loads((tmp_path / "page.json").read_text())["artifacts"]
    assert [artifact["assumed"] for artifact in artifacts] == [[ASSUMED]] * 2


def test_nothing_is_said_where_nothing_was_assumed(hub):
    report = quick(hub)
    assert not [note for note in report.notes if "Assumed" in note]
    assert "ssumed, because" not in (hub / "report.html").read_text()
