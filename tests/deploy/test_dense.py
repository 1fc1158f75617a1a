import torch
from helpers import tiny_checkpoint

from dyvit_deploy.bench.baselines import TimedArtifact
from dyvit_deploy.config import LoadConfig
from dyvit_deploy.deploy.dense import make_dense
from dyvit_deploy.runners.open import open_runner


def test_the_dense_baseline_is_the_same_each_time_and_leaves_the_random_state_alone(tmp_path):
    with open_runner(tiny_checkpoint(tmp_path), device="cpu") as runner:
        candidate = TimedArtifact(runner, "tiny.safetensors", None, load=LoadConfig())
        made = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            made.append(make_dense(candidate, tmp_path / str(seed)).read_bytes())
            assert torch.equal(before, torch.get_rng_state())
        assert made[0] == made[1]
