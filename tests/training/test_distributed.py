"""Training in several processes started by torchrun, with gloo on the CPU."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import ROOT, tiny_checkpoint, two_classes
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
    output, _ = (process := start(2, folder, script="two_ranks.py")).communicate(timeout=120)
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
        output, _ = process.communicate(timeout=240)
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
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and "this process fails on request" in output
    assert not (data / "losses.json").exists()


def test_sigterm_saves_within_the_epoch_and_the_run_resumes_bit_for_bit(data):
    def command(name, *more):
        options = "--keep-ratio 1.0 --epochs 1 --images 64 --batch 2 --precision fp32 --workers 0 --device cpu"
        return [sys.executable, "-m", "dyvit_deploy", "train", "--model", "digits-s", "--data", "digits", "-o",
                str(data / name), *options.split(), *more]
    pytest.importorskip("sklearn", reason="the digits need scikit-learn")
    process = subprocess.Popen(command("cut"), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    # This line is printed when the first step begins.
    line = process.stderr.readline()
    assert line.startswith("dense: epochs 1, each 32 steps of 2 images"), line
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130 and "add --resume to go on" in rest, rest
    resumed = subprocess.run(command("cut", "--resume"), cwd=ROOT, capture_output=True, text=True, check=True)
    assert " on\n" in resumed.stderr and "step" in resumed.stderr
    subprocess.run(command("whole"), cwd=ROOT, capture_output=True, check=True)
    tensors = []
    for name in ("cut", "whole"):
        with safe_open(data / name / "last.safetensors", "pt") as file:
            tensors.append({key: file.get_tensor(key) for key in file.keys()})
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
