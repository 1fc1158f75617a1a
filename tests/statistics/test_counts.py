from fractions import Fraction

from dyvit_deploy.statistics.counts import as_fraction, counted, exact


def test_a_number_is_the_decimal_fraction_that_was_written():
    for text in ("0.9", "0.1", "0.79", "1e-3", "97", "0", "1e-300", "123456.789"):
        assert exact(float(text)) == Fraction(text)
    assert exact(Fraction(1, 3)) == Fraction(1, 3)


def test_a_share_is_the_count_that_it_was_computed_from():
    for n in (*range(1, 300), 5455, 50_000, 10**7):
        for count in {0, 1, n // 3, n - 1, n}:
            assert counted(count / n, n) == count and as_fraction(count / n, n) == Fraction(count, n)
            # As a difference of two shares, and in percent.
            assert as_fraction((count + 1) / n - 1 / n, n) == as_fraction(100 * (count / n) / 100, n)
    # Of other images.
    assert as_fraction(0.99, 10) == Fraction("0.99")
