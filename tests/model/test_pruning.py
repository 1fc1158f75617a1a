import pytest
import torch
from torch.nn.functional import gumbel_softmax, scaled_dot_product_attention

from dyvit_deploy.model.pruning import (
    TokenFuser,
    TokenSelector,
    gumbel_noise,
    masked_attention,
    masked_mean,
    sample_keep,
    sample_top_k,
    select_tokens,
    straight_through,
    top_k_mask,
)


def test_the_best_tokens_are_kept_best_first():
    tokens = torch.arange(12.0).reshape(1, 4, 3)
    kept, indices = select_tokens(tokens, torch.tensor([[0.1, 3.0, -1.0, 2.0]]), 2)
    assert indices.tolist() == [[1, 3]]
    assert torch.equal(kept, tokens[:, [1, 3]])
    assert all(map(torch.equal, TokenSelector()(tokens, torch.tensor([[0.1, 3.0, -1.0, 2.0]]), 2), (kept, indices)))


def test_selection_is_per_image():
    tokens = torch.randn(3, 5, 2)
    scores = torch.eye(5)[:3]
    kept, indices = select_tokens(tokens, scores, 1)
    assert indices.squeeze(1).tolist() == [0, 1, 2]
    assert torch.equal(kept[:, 0], tokens[torch.arange(3), torch.arange(3)])


def test_masked_attention_without_smoothing_is_attention_over_the_kept_tokens():
    query, key, value = torch.randn(3, 2, 4, 9, 8).unbind(0)
    decision = torch.tensor([[1, 1, 0, 1, 0, 0, 1, 1, 1], [1, 0, 0, 0, 1, 1, 1, 0, 1.0]])
    out = masked_attention(query, key, value, decision, 8 ** -0.5, eps=0)
    for image in range(2):
        left = decision[image].bool()
        expected = scaled_dot_product_attention(query[image][:, left], key[image][:, left], value[image][:, left])
        assert torch.allclose(out[image][:, left], expected, atol=1e-5)


def test_a_dropped_token_attends_only_to_itself_and_the_kept_ones():
    query, key, value = torch.randn(3, 1, 1, 3, 4).unbind(0)
    decision = torch.tensor([[1.0, 0.0, 0.0]])
    before = masked_attention(query, key, value, decision, 0.5, eps=0)
    # Changes another dropped token.
    value[0, 0, 2] += 100
    after = masked_attention(query, key, value, decision, 0.5, eps=0)
    assert torch.equal(before[0, 0, :2], after[0, 0, :2])


def test_masked_attention_passes_gradient_to_the_decision():
    query, key, value = torch.randn(3, 1, 2, 5, 4).unbind(0)
    decision = torch.ones(1, 5, requires_grad=True)
    masked_attention(query, key, value, decision, 0.5).square().sum().backward()
    assert decision.grad.abs().min() > 0


def test_masked_mean_of_nothing_is_zero_with_a_finite_gradient():
    tokens = torch.randn(2, 4, 3, requires_grad=True)
    decision = torch.tensor([[0.0, 0, 0, 0], [1, 0, 1, 0]], requires_grad=True)
    mean = masked_mean(tokens, decision)
    assert torch.equal(mean[0], torch.zeros(1, 3))
    assert torch.allclose(mean[1, 0], tokens[1, [0, 2]].mean(0))
    mean.sum().backward()
    assert tokens.grad.isfinite().all() and decision.grad.abs().max() < 100


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other():
    soft = torch.tensor([0.3], requires_grad=True)
    out = straight_through(torch.tensor([1.0]), soft)
    assert out.item() == pytest.approx(1.0)
    out.backward()
    assert soft.grad.item() == 1.0


def test_samples_follow_the_keep_probability():
    torch.manual_seed(0)
    log_probs = torch.tensor([0.8, 0.2]).log().expand(1, 20_000, 2)
    sample = sample_keep(log_probs)
    assert set(sample.unique().tolist()) <= {0.0, 1.0}
    assert sample.mean().item() == pytest.approx(0.8, abs=0.02)


def test_given_noise_samples_the_same_tokens_with_the_same_gradient_as_torch():
    log_probs = torch.randn(2, 50, 2).log_softmax(dim=-1)
    mine, theirs = log_probs.clone().requires_grad_(), log_probs.clone().requires_grad_()
    torch.manual_seed(1)
    noise = gumbel_noise(log_probs.shape)
    torch.manual_seed(1)
    expected = gumbel_softmax(theirs, hard=True, dim=-1)[..., 0]
    sample = sample_keep(mine, noise)
    weights = torch.randn(2, 50)
    (sample * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.allclose(sample, expected) and torch.allclose(mine.grad, theirs.grad, atol=1e-6)


def test_top_k_keeps_exactly_k_per_image_nested_in_the_decision_before():
    log_probs = torch.randn(3, 12, 2).log_softmax(dim=-1).requires_grad_()
    decision = (torch.arange(12) < 9).float().expand(3, -1)
    sample = sample_top_k(log_probs, decision, torch.tensor([1, 5, 9]))
    assert sample.sum(dim=1).tolist() == [1, 5, 9] and (sample <= decision).all()
    (sample * torch.randn_like(sample)).sum().backward()
    gradient = log_probs.grad[..., 0]
    assert (gradient[:2, :9] != 0).all() and (gradient[:, 9:] == 0).all()
    # Adding a constant to all scores changes neither the ranking nor the loss.
    assert gradient.sum(dim=1).abs().max() < 1e-5 < gradient[:2].abs().max()


def test_top_k_keeps_all_remaining_tokens_if_k_is_larger_with_a_finite_gradient():
    log_probs = torch.randn(3, 6, 2).log_softmax(dim=-1).requires_grad_()
    decision = torch.tensor([[1.0] * 6, [1.0, 1, 0, 0, 0, 0], [0.0] * 6])
    sample = sample_top_k(log_probs, decision, torch.tensor([6, 4, 2]))
    assert torch.equal(sample, decision)
    sample.sum().backward()
    assert log_probs.grad.isfinite().all()


def test_top_k_without_noise_keeps_the_likeliest_and_exactly_k_of_equal_scores():
    log_probs = torch.tensor([[0.9, 0.2, 0.6, 0.4]]).log()[..., None] * torch.tensor([1.0, 0.0])
    sample = sample_top_k(log_probs, torch.ones(1, 4), torch.tensor([2]), torch.zeros(1, 4, 2))
    assert sample.tolist() == [[1, 0, 1, 0]]
    assert top_k_mask(torch.zeros(2, 7), torch.ones(2, 7), torch.tensor([3, 5])).sum(dim=1).tolist() == [3, 5]


def test_gumbel_top_k_follows_the_keep_probability():
    torch.manual_seed(0)
    log_probs = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]]).log().expand(5000, 3, 2)
    share = sample_top_k(log_probs, torch.ones(5000, 3), torch.full((5000,), 1)).mean(dim=0)
    assert share[0] > 0.75 and 0.1 < share[1] < 0.2 and share[2] < 0.05


def test_fusing_sums_the_dropped_tokens_by_weight():
    tokens = torch.tensor([[[1.0, 0], [10, 0], [0, 100], [0, 1]]])
    fused = TokenFuser()(tokens, torch.tensor([[0.5, 0.25, 0.125, 0.125]]), torch.tensor([[2, 0]]))
    assert fused.tolist() == [[[2.5, 0.125]]]
