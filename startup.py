"""Imported first by the commands that compute: no garbage is collected before `done`.

Their modules make a million objects that stay, and looking through them again and again takes a quarter of the start.
torch cannot be imported without a folder for temporary files: that is said here.
"""

import gc
import sys
import tempfile

gc.disable()
try:
    tempfile.gettempdir()
except FileNotFoundError as error:
    sys.exit(f"Error: {error.strerror}: set TMPDIR to a folder that can be written to")


def done() -> None:
    """All modules are there: collect garbage from now on, but none of what they have made."""
    gc.freeze()
    gc.enable()
