"""Training in several processes started by torchrun, with gloo on the CPU."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import HANGS, ROOT, tiny_checkpoint, two_classes
from safetensors import safe_open

from dyvit_deploy.machine.hardware import machine

HERE = Path(__file__).parent


def start(processes: int, *arguments, script="share_a_run.py", **environment) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"} | environment
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), HERE / script, *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of `two_ranks.py` from each of its two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    output, _ = (process := start(2, folder, script="two_ranks.py")).communicate(timeout=HANGS)
    assert process.returncode == 0, output
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_a_broadcast_overwrites_tensors_in_place_with_those_of_the_first_process(results):
    assert [rank["broadcast"] for rank in results] == [[[[0.5] * 3] * 2, [True], 7]] * 2


def test_all_processes_validate_with_the_batch_norms_of_the_first(results):
    expected = {"running_mean": [pytest.approx(1.0)] * 2, "running_var": [pytest.approx(0.9)] * 2,
                "num_batches_tracked": 1}
    assert [rank["validate"] for rank in results] == [[expected] * 2] * 2


def test_each_process_reports_its_own_gpu_and_training_those_of_all(results):
    assert [rank["gpus"] for rank in results] == [[f"GPU {rank}", ["GPU 0", "GPU 1"]] for rank in range(2)]


# The command line, with few scenes to validate on.
DYVIT = """
from dyvit_deploy.cli.main import main
from dyvit_deploy.data import digits
digits.COUNTS = dict.fromkeys(digits.COUNTS, 50)
main()
"""
# A training that is sent SIGTERM at the end of its third step.
STOPPED = """
import os, signal
from dyvit_deploy.training.loop import Run
was = Run._event
def event(self, values):
    if self.step == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    return was(self, values)
Run._event = event
""" + DYVIT


@pytest.fixture
def data(tmp_path):
    two_classes(tmp_path / "data")
    tiny_checkpoint(tmp_path / "data", None, classes=2)
    return tmp_path


def test_processes_and_micro_batches_give_the_loss_curve_of_one_process(data):
    curves, runs = {}, {"one": (1, "1"), "accumulated": (1, "2"), "two": (2, "1")}
    started = {name: start(processes, data / "data", data / name, data / f"{name}.json", ACCUMULATE=accumulate)
               for name, (processes, accumulate) in runs.items()}
    for name, process in started.items():
        output, _ = process.communicate(timeout=HANGS)
        assert process.returncode == 0, output
        curves[name] = json.loads((data / f"{name}.json").read_text())
    assert len(curves["one"]) >= 20 and curves["one"][-1] < curves["one"][0]
    for name in ("accumulated", "two"):
        assert curves[name] == pytest.approx(curves["one"], abs=1e-3)
    devices = {name: json.loads((data / name / "train.json").read_text())["devices"] for name in runs}
    assert devices == {"one": [machine()["processor"]], "accumulated": devices["one"], "two": devices["one"] * 2}
    # Not only the losses are equal, but also the weights.
    with safe_open(data / "one" / "last.safetensors", "pt") as one, safe_open(data / "two" / "last.safetensors",
                                                                             "pt") as two:
        name = "score_predictor.0.in_conv.1.weight"
        assert torch.allclose(one.get_tensor(name), two.get_tensor(name), atol=1e-3)


def test_one_process_that_fails_ends_all_with_its_error(data):
    process = start(2, data / "data", data / "run", data / "losses.json", "1")
    output, _ = process.communicate(timeout=HANGS)
    assert process.returncode != 0 and "this process fails on request" in output
    assert not (data / "losses.json").exists()


def test_sigterm_saves_within_the_epoch_and_the_run_resumes_bit_for_bit(data):
    def run(script, name, *more):
        options = "--keep-ratio 1.0 --epochs 1 --images 16 --batch 2 --precision fp32 --workers 0 --device cpu"
        command = [sys.executable, "-c", script, "train", "--model", "digits-s", "--data", "digits", "-o", data / name,
                   *options.split(), *more]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANGS)
    pytest.importorskip("sklearn", reason="the digits need scikit-learn")
    cut = run(STOPPED, "cut")
    assert cut.stderr.startswith("dense: epochs 1, each 8 steps of 2 images"), cut.stderr
    assert cut.returncode == 130 and "add --resume to go on" in cut.stderr, cut.stderr
    resumed = run(DYVIT, "cut", "--resume")
    assert resumed.returncode == 0 and "from epoch 1, step 5 on\n" in resumed.stderr, resumed.stderr
    assert run(DYVIT, "whole").returncode == 0
    tensors = []
    for name in ("cut", "whole"):
        with safe_open(data / name / "last.safetensors", "pt") as file:
            tensors.append({key: file.get_tensor(key) for key in file.keys()})
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
