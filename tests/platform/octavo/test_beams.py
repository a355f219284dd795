"""The numbers of a beam search are held within their bounds."""

import numpy as np
import pytest

from octavo.beams import BeamSearch
from octavo.errors import BadRequest


@pytest.mark.parametrize(
    "given",
    [
        {"width": 0},
        {"width": 2, "length_penalty": np.inf},
        {"width": 2, "early_stopping": "maybe"},
        {"width": 2, "early_stopping": 1},
    ],
)
def test_numbers_out_of_range_are_refused(given):
    with pytest.raises(BadRequest, match=r"beam_width|length_penalty|early_stopping"):
        BeamSearch(**given)


def test_a_score_is_the_sum_over_a_power_of_the_length():
    assert BeamSearch(2, length_penalty=2.0).score(-8.0, 4) == -0.5
    assert BeamSearch(2, length_penalty=0.0).score(-8.0, 4) == -8.0
