import torch

from dyvit_deploy.model.token_scorer import TokenScorer


def test_scores_rank_like_the_log_probability_of_keeping():
    torch.manual_seed(0)
    predictor, tokens = TokenScorer(32), torch.randn(2, 10, 32)
    log_keep = predictor(tokens, torch.ones(2, 10))[..., 0]
    assert torch.equal(predictor.scores(tokens).argsort(1), log_keep.argsort(1))


def test_scores_are_the_logit_of_the_keep_probability():
    torch.manual_seed(0)
    predictor, tokens = TokenScorer(32), torch.randn(2, 10, 32)
    keep = predictor(tokens, torch.ones(2, 10)).exp()[..., 0]
    assert torch.allclose(predictor.scores(tokens).sigmoid(), keep, atol=1e-6)


def test_scores_do_not_tie_where_the_log_softmax_saturates():
    predictor, tokens = TokenScorer(32), torch.randn(1, 50, 32)
    with torch.no_grad():
        predictor.out_conv[-1].weight.mul_(3000)
        predictor.out_conv[-1].bias.copy_(torch.tensor([500.0, -500.0]))
    log_keep = predictor(tokens, torch.ones(1, 50))[..., 0]
    assert log_keep.unique().numel() < 50 <= predictor.scores(tokens).unique().numel()


def test_dropped_tokens_do_not_change_the_scores_of_others():
    torch.manual_seed(0)
    predictor, tokens = TokenScorer(32), torch.randn(1, 6, 32)
    decision = torch.tensor([[1.0, 1, 0, 1, 0, 1]])
    left = decision[0].bool()
    masked = predictor(tokens, decision)[0, left]
    assert torch.allclose(masked, predictor(tokens[:, left], torch.ones(1, 4))[0], atol=1e-6)
