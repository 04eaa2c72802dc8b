import os

from utils.text import natural_key, printable, shortened


def test_what_steers_a_terminal_is_escaped():
    assert printable("R@1 ± 漢字") == "R@1 ± 漢字"
    assert printable("\x1b[2J\r\n\ud800\u202e") == r"\x1b[2J\r\n\ud800\u202e"
    assert printable(os.fsdecode(b"caf\xe9")) == r"caf\udce9"
    assert printable({"a": None}) == "{'a': None}"


def test_shortened_in_the_middle():
    assert shortened("abcdefgh", 8) == "abcdefgh"
    assert shortened("abcdefghi", 8) == "abcd…ghi"
    assert shortened("abcdefghi", 7) == "abc…ghi"
    assert shortened("abc", 1) == "…"


def test_numbers_sort_by_their_value():
    names = ["10", "9", "a2b", "a010b", "9" * 5000, "1" + "0" * 5000]
    assert sorted(names, key=natural_key) == ["9", "10", "9" * 5000, "1" + "0" * 5000, "a2b", "a010b"]
