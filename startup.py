"""Imported first by the commands that compute: no garbage is collected before `done`.

Their modules make a million objects that stay, and looking through them again and again takes a quarter of the start.
"""

import gc

gc.disable()


def done() -> None:
    """All modules are there: collect garbage from now on, but none of what they have made."""
    gc.freeze()
    gc.enable()
