import pytest
import torch
import torch.nn.functional as F

from dyvit_deploy.training.losses import LossParts, LossWeights, kl_loss, ratio_loss, token_kl, token_mse, total_loss


def test_ratio_loss_is_the_squared_difference_from_the_target():
    on_target = [torch.tensor([[1.0, 1, 0, 0]] * 3), torch.tensor([[1.0, 0, 0, 0]] * 3)]
    assert ratio_loss(on_target, (0.5, 0.25)).item() == 0
    assert ratio_loss([torch.ones(2, 4)], (0.5,)).item() == pytest.approx(0.25)


def test_kl_is_zero_for_equal_logits_and_matches_its_definition():
    student, teacher = torch.randn(3, 7), torch.randn(3, 7)
    p, q = teacher.softmax(1), student.softmax(1)
    assert kl_loss(student, teacher).item() == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-5)
    assert kl_loss(teacher + 3, teacher).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", [token_mse, token_kl])
def test_token_losses_use_only_kept_tokens_and_are_zero_without_any(loss):
    student, teacher = torch.randn(2, 4, 6, requires_grad=True), torch.randn(2, 4, 6)
    decision = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1]])
    value = loss(student, teacher, decision)
    value.backward()
    assert value > 0 and torch.equal(student.grad.abs().sum(2) > 0, decision.bool())
    nothing = loss(student, teacher, torch.zeros(2, 4))
    assert nothing.item() == 0 and torch.autograd.grad(nothing, student)[0].abs().max() == 0


def test_token_mse_averages_over_tokens_and_channels():
    decision = torch.tensor([[1.0, 1, 0]])
    student = torch.tensor([[[1.0, 1], [3, 3], [9, 9]]])
    assert token_mse(student, torch.zeros(1, 3, 2), decision).item() == pytest.approx((1 + 1 + 9 + 9) / 4)


def test_the_total_is_the_weighted_sum_of_the_losses():
    parts = LossParts(*(torch.tensor(v) for v in (1.0, 10.0, 100.0, 1000.0)))
    assert total_loss(parts).item() == pytest.approx(1 + 20 + 50 + 500)
    assert total_loss(parts, LossWeights(ratio=5.0, kl=0, token=0)).item() == pytest.approx(51)


def test_soft_targets_are_accepted_like_labels():
    logits, labels = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    hard, soft = F.cross_entropy(logits, labels), F.cross_entropy(logits, F.one_hot(labels, 5).float())
    assert hard.item() == pytest.approx(soft.item())
