import json
import re

import pytest

from report.document import as_json, document


def test_data_stays_in_its_element_and_means_the_same():
    data = {"a": "</script><!--<script>&\u2028\u2029", "b": ["'\"", "\ud800", "ü漢", None, 1.5]}
    text = as_json(data)
    assert not re.search("[<>&\u2028\u2029]", text) and text.isascii()
    assert json.loads(text) == data


def test_numbers_that_json_lacks_are_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        as_json([float("nan")])


def test_the_page_loads_nothing():
    page = document({"a": "{{script}}"})
    assert "default-src 'none'; img-src data:; style-src 'sha256-" in page
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    assert "innerHTML" not in page and "{{style}}" not in page
