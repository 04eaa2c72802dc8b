"""`python -m tests.packages`: which packages that the tests need a machine's Python lacks."""

import sys
from importlib.util import find_spec

NEEDED = {  # by the name to import, that of the package
    "torch": "torch",
    "torchvision": "torchvision",
    "faiss": "faiss-gpu or faiss-cpu",
    "numpy": "numpy",
    "PIL": "pillow",
    "simplejpeg": "simplejpeg",
    "sacred": "sacred",
    "pkg_resources": "setuptools<80.9",
    "matplotlib": "matplotlib",
    "tqdm": "tqdm",
    "requests": "requests",
    "filelock": "filelock",
    "huggingface_hub": "huggingface_hub",
    "safetensors": "safetensors",
    "lancedb": "lancedb",
    "pytest": "pytest",
    "hypothesis": "hypothesis",
}

if __name__ == "__main__":
    missing = [package for name, package in NEEDED.items() if find_spec(name) is None]
    if missing:
        sys.exit(f"{sys.executable} lacks {', '.join(missing)}: install them, or put them on PYTHONPATH")
