import pytest

from tests.fuzz import READERS, fuzz


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_end_in_a_result_or_a_clear_error(name, tmp_path, capsys):
    outcomes = fuzz(name, tmp_path, 300)
    assert sum(outcomes.values()) >= 300
    assert outcomes["clear error"] or name in ("features", "Sacred folders")  # made anew, or shown as far as they go
