import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from helpers import HANGS, ROOT, photo_folder, tiny_checkpoint

from dyvit_deploy.cli.main import main
from dyvit_deploy.cli.terminal import note, show
from dyvit_deploy.errors import BackendError
from dyvit_deploy.machine import processes as distributed
from dyvit_deploy.machine.hardware import Gpu, gpu, machine
from dyvit_deploy.model.catalog import list_models


def test_one_process_is_first_and_gathers_what_it_has():
    assert (distributed.rank(), distributed.world_size(), distributed.is_first()) == (0, 1, True)
    assert distributed.gather_over_ranks("x") == ["x"] and distributed.claim_share() == 0


def test_one_process_broadcasts_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.distributed", None)
    distributed.broadcast_tensors([object()])


@pytest.fixture
def in_group(monkeypatch):
    """As in a process that torchrun started."""
    monkeypatch.setenv(distributed.STARTED_BY_TORCHRUN, "none")


# As in a pod of a training job, after `docker run --env-file`, or under a launcher that sets only some of them.
LEFTOVERS = [{"RANK": "1"}, {"WORLD_SIZE": "2"}, {"RANK": "abc", "WORLD_SIZE": ""},
             {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}]


def set_all(monkeypatch, values):
    for name in (distributed.STARTED_BY_TORCHRUN, *distributed.RANKS):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("leftovers", LEFTOVERS)
def test_ranks_that_torchrun_did_not_set_are_ignored(monkeypatch, tmp_path, leftovers):
    set_all(monkeypatch, leftovers)
    assert (distributed.rank(), distributed.world_size(), distributed.cpu_share()) == (0, 1, os.cpu_count())
    assert distributed.gather_over_ranks("x") == ["x"]
    result = CliRunner().invoke(main, ["models", "deit-s", "--json", str(tmp_path / "x.json")])
    assert result.exit_code == 0 and "deit-s" in result.output and list(tmp_path.iterdir())


@pytest.mark.parametrize("leftovers", LEFTOVERS)
def test_training_alone_ignores_the_ranks_of_another_job(monkeypatch, leftovers):
    pytest.importorskip("lightning_fabric", reason="training needs Fabric")
    from dyvit_deploy.training.recipe import Recipe
    from dyvit_deploy.training.setup import make_fabric
    set_all(monkeypatch, leftovers | {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "1"})
    fabric = make_fabric("cpu", Recipe(epochs=1, lr=1e-3))
    assert (fabric.world_size, fabric.global_rank) == (1, 0)


def test_a_command_that_is_not_distributed_takes_no_part_in_a_group_of_torchrun(monkeypatch, tmp_path, in_group):
    set_all(monkeypatch, LEFTOVERS[-1] | {distributed.STARTED_BY_TORCHRUN: "none"})
    result = CliRunner().invoke(main, ["inspect", "none.onnx"])
    assert result.exit_code == 1 and result.output.startswith("dyvit: none.onnx")
    # Nor do the programs that it starts.
    assert not {distributed.STARTED_BY_TORCHRUN, *distributed.RANKS} & set(os.environ)


@pytest.mark.parametrize("world, local, used", [("1", "0", 0), ("2", "1", 1), ("4", "3", 1)])
def test_the_gpu_of_a_report_is_that_of_this_process(monkeypatch, in_group, world, local, used):
    torch = pytest.importorskip("torch")
    cards = [SimpleNamespace(name=f"GPU {i}", major=8, minor=i) for i in range(2)]
    for name, value in {"is_available": lambda: True, "device_count": lambda: 2,
                        "get_device_properties": cards.__getitem__}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.setenv("LOCAL_RANK", local)
    assert gpu() == Gpu(f"GPU {used}", f"8.{used}") and machine()["gpu"] == f"GPU {used}"


def test_processes_without_a_meeting_point_get_one_sentence(monkeypatch, in_group):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(BackendError, match=r"2 processes cannot connect .* start them with torchrun"):
        distributed.gather_over_ranks(0)


def test_the_process_group_is_destroyed_before_python_ends():
    """Else a thread of gloo outlives the interpreter now and then, and aborts a process that was done."""
    script = """if True:
        import atexit
        from torch import distributed as dist
        atexit.register(lambda: print("initialized:", dist.is_initialized()))  # runs last
        from dyvit_deploy.machine.processes import _group
        with _group():
            print("initialized:", dist.is_initialized())
        """
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    ended = subprocess.run([sys.executable, "-c", script], env=os.environ | alone, cwd=ROOT, capture_output=True,
                           text=True, timeout=HANGS)
    assert ended.stdout.splitlines() == ["initialized: True", "initialized: False"], ended.stderr


def test_only_the_first_process_tells_and_errors_name_the_others(monkeypatch, tmp_path, in_group, capsys):
    monkeypatch.setenv("RANK", "1")
    result = CliRunner().invoke(main, ["eval", "none.onnx", "--data", "digits"])
    assert result.exit_code == 1 and result.output.startswith("dyvit (rank 1): none.onnx")
    show(list_models(("deit-s",)), str(tmp_path / "x.json"))
    note("a note")
    assert capsys.readouterr() == ("", "") and not list(tmp_path.iterdir())


def test_two_processes_evaluate_as_one_does(tmp_path):
    checkpoint, photos = tiny_checkpoint(tmp_path, classes=3), photo_folder(tmp_path / "photos", 11, classes=3)
    (photos / "class1" / "broken.png").touch()
    command = ["eval", str(checkpoint), "--data", str(photos), "--batch", "2", "--json"]
    assert CliRunner().invoke(main, [*command, str(tmp_path / "one.json")]).exit_code == 0
    two = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
                          "-m", "dyvit_deploy", *command, str(tmp_path / "two.json")],
                         capture_output=True, text=True, cwd=ROOT, timeout=HANGS)
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("│ top-1 ") == 1 and two.stderr.count("broken.png") == 1
    alone, shared = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert shared.pop("dyvit")["files"] == alone.pop("dyvit")["files"]  # the commands differ
    assert shared.pop("processes") == 2 and alone.pop("processes") == 1 and alone["images"] == 11
    assert shared.pop("images_per_sec") > 0 and alone.pop("images_per_sec") > 0
    assert shared.pop("calibration_error") == pytest.approx(alone.pop("calibration_error"), abs=2e-6)
    assert shared == alone
