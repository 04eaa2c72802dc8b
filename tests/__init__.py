"""Laid out as the code is."""

from pathlib import Path

ROOT = Path(__file__).parent.parent  # of the project
