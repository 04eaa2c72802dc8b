import math

import pytest

from models.position_encoding import sine_position_encoding
from tests.reference import assert_answer
from utils.errors import InputError


def test_published():
    assert_answer(sine_position_encoding(128, 7, 7)[None], "position.7x7")


def test_formula_channel_by_channel_on_an_oblong_map():
    channels, height, width = 12, 3, 5
    code = sine_position_encoding(channels, height, width)
    half = channels // 2
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                axis = 2 * (i + 1) / (height + 1e-6) if c < half else 2 * (j + 1) / (width + 1e-6)
                k, odd = divmod(c % half, 2)
                phase = axis / 10000 ** (2 * k / half)
                assert code[c, i, j].item() == pytest.approx(math.cos(phase) if odd else math.sin(phase), abs=1e-6)


def test_channels_must_be_a_multiple_of_4():
    with pytest.raises(InputError, match=r"num_local_features=6: .* multiple of 4"):
        sine_position_encoding(6, 7, 7)
