"""Laid out as the code is: a file for each module, and one for each command."""

from pathlib import Path

ROOT = Path(__file__).parent.parent  # of the project
