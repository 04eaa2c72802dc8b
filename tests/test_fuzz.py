import pytest

from tests.fuzz import READERS, fuzz


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_end_in_a_result_or_a_clear_error(name, tmp_path, capsys):
    outcomes, wrong = fuzz(name, tmp_path, 150)
    assert not wrong
    assert outcomes["good"] + outcomes["clear error"] == 150
    assert outcomes["clear error"] or name in ("features", "Sacred folders")  # made anew, or shown as far as they go
