import pytest
from PIL import Image

from sop.demo.photos import draw_demo
from tools.contact_sheet import contact_sheet
from utils.errors import InputError


def test_families_stand_side_by_side(tmp_path):
    draw_demo(tmp_path / "sop", num_products=9, views=3, seed=5, size=48, processes=1)
    contact_sheet(tmp_path / "sop", tmp_path / "docs" / "demo.jpg", products=2, tile=40)
    with Image.open(tmp_path / "docs" / "demo.jpg") as sheet:
        assert (sheet.format, sheet.size) == ("JPEG", (2 * 3 * 40 + 4, 2 * 2 * 40 + 4))
    with pytest.raises(InputError, match="holds no demo set"):
        contact_sheet(tmp_path, tmp_path / "demo.jpg")
