"""The table of what backbones cost."""

import sys

from tools import families


def test_rows(monkeypatch, capsys):
    monkeypatch.setattr(families, "pairs_a_second", lambda network, maps, scorer: 1234 if scorer == "matcher" else 7.4)
    monkeypatch.setattr(sys, "argv", ["families", "test_vit", "resnet18"])
    families.main()
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head.count("|") == 9
    assert rows == [
        "| test_vit | 160 | 10 x 10 | 49 | 64 | 12.5 kB | 1,200 | 7 |",
        "| resnet18 | 224 | 7 x 7 | 49 | 512 | 100 kB | 1,200 | 7 |",
    ]
