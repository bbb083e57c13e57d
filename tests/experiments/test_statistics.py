"""What seeds say: means, errors, and verdicts that need more than one."""

import pytest

from experiments._statistics import percent, points, standard_error, verdict, with_error


def test_a_mean_has_an_error_where_there_are_seeds_to_have_one_from():
    assert standard_error([1.0, 2.0, 3.0]) == pytest.approx(1 / 3**0.5) and standard_error([1.0]) is None
    assert with_error([1.0, 3.0], ".1f") == "2.0 ± 1.0" and with_error([2.0], ".1f") == "2.0"


def test_differences_have_a_sign_and_shares_are_in_percent():
    assert points([0.5, 1.5]) == "+1.00 ± 0.50"
    assert percent([0.97, 0.99]) == "98.00 ± 1.00" and percent([0.5], ".1f") == "50.0"


@pytest.mark.parametrize(
    ("margins", "said"),
    [
        ((0.9, 1.1), "Holds"),  # 1 ± 0.1
        ((0.4, 1.6), "Undecided"),  # 1 ± 0.6
        ((-0.5, 2.5), "Does not hold"),  # 1 ± 1.5
        ((-0.9, -1.1), "Does not hold"),
        ((0.0, 0.0), "Does not hold"),
        ((5.0,), "One seed tells nothing"),
    ],
)
def test_a_margin_counts_from_two_standard_errors_on(margins, said):
    assert verdict(margins) == said


def test_a_verdict_has_the_words_it_is_given():
    assert [verdict(margins, "Found", "Not found") for margins in ((0.9, 1.1), (-1.0, 1.0))] == ["Found", "Not found"]
