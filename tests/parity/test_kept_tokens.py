import numpy as np

from dyvit_deploy.parity.kept_tokens import near_cut, stage_overlaps

SCORES = np.array([[5.0, 4.0, 3.0, 2.0]], np.float32)


def kept(*tokens):
    return np.array([tokens])


def test_equal_sets_overlap_fully_in_any_order():
    [stage] = stage_overlaps([kept(0, 1)], [kept(1, 0)], [SCORES], 1e-5)
    assert stage.plain.tolist() == stage.forgiven.tolist() == [1.0]


def test_a_wrong_token_is_counted_and_not_forgiven():
    [stage] = stage_overlaps([kept(0, 1)], [kept(0, 3)], [SCORES], 1e-5)
    assert stage.plain.tolist() == stage.forgiven.tolist() == [0.5]


def test_tokens_that_tie_at_the_cut_are_forgiven():
    scores = np.array([[5.0, 4.0, 4.0 - 1e-6, 2.0]], np.float32)
    [stage] = stage_overlaps([kept(0, 1)], [kept(0, 2)], [scores], 1e-5)
    assert stage.plain.tolist() == [0.5] and stage.forgiven.tolist() == [1.0]


def test_swapping_a_clear_winner_for_a_tied_token_is_not_forgiven():
    scores = np.array([[5.0, 4.0, 4.0, 2.0]], np.float32)
    [stage] = stage_overlaps([kept(0, 1)], [kept(2, 1)], [scores], 1e-5)
    assert stage.forgiven.tolist() == [0.5]


def test_later_differences_are_forgiven_after_a_tie_and_not_after_an_error():
    tie = np.array([[5.0, 4.0, 4.0, 2.0]], np.float32)
    later = np.array([[5.0, 1.0, -np.inf, -np.inf]], np.float32)
    stages = stage_overlaps([kept(0, 1), kept(0)], [kept(0, 2), kept(2)], [tie, later], 1e-5)
    assert [s.forgiven.tolist() for s in stages] == [[1.0], [1.0]]
    stages = stage_overlaps([kept(0, 1), kept(0)], [kept(0, 3), kept(3)], [SCORES, later], 1e-5)
    assert [s.forgiven.tolist() for s in stages] == [[0.5], [0.0]]


def test_without_scores_nothing_is_forgiven():
    [stage] = stage_overlaps([kept(0, 1)], [kept(0, 2)], [], 1e-5)
    assert stage.plain.tolist() == stage.forgiven.tolist() == [0.5]


def test_ties_are_relative_to_large_scores():
    scores = 1e4 * np.array([[5.0, 4.0, 4.0 - 1e-6, 2.0]], np.float32)
    [stage] = stage_overlaps([kept(0, 1)], [kept(0, 2)], [scores], 1e-5)
    assert stage.forgiven.tolist() == [1.0]


def test_near_cut_considers_only_scores_at_the_cut():
    tied_above = np.array([[4.0, 4.0, 3.0, 2.0]], np.float32)
    tied_at_cut = np.array([[5.0, 4.0, 4.0, 2.0]], np.float32)
    assert near_cut([kept(0, 1)], [tied_above], 1e-5).tolist() == [False]
    assert near_cut([kept(0, 1)], [tied_at_cut], 1e-5).tolist() == [True]
    assert near_cut([kept(0, 1, 2, 3)], [np.zeros((1, 4), np.float32)], 1e-5).tolist() == [False]
    nothing_dropped_later = np.array([[0.0, 0.0, -np.inf, -np.inf]], np.float32)
    assert near_cut([kept(0, 1)], [nothing_dropped_later], 1e-5).tolist() == [False]
