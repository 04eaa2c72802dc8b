"""What only some systems have is not asked for by `import rrt`."""

import subprocess
import sys

from tests import ROOT

WITHOUT = """
import signal, sys
import rrt.reranker, torch, torchvision  # which know other systems by themselves
ours = [name for name in sys.modules if name.split(".")[0] in ("rrt", "models", "sop", "utils")]
for name in (*ours, "filelock"):
    sys.modules.pop(name)
for name in ("fcntl", "resource"):
    sys.modules[name] = None
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2"):
    delattr(signal, name)
import rrt.reranker, rrt.index, rrt.__main__
"""


def test_the_library_is_imported_where_posix_is_not():
    done = subprocess.run([sys.executable, "-c", WITHOUT], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
