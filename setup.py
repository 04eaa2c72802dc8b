"""The wheel: `rrt` and, below it, the modules of the clone that it imports, so that it owns no other name.

In the clone `rrt` imports `models`, `utils` and `sop`; in the wheel these are `rrt._models`, `rrt._utils`, `rrt._sop`.
An editable installation puts the clone on the path, with these names.
"""

import ast
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
IMPORT = re.compile(r"^(\s*from )(models|utils|sop)\b", re.MULTILINE)


class BuildLibrary(build_py):
    def run(self) -> None:
        if self.editable_mode:
            super().run()
            return
        shutil.rmtree(Path(self.build_lib) / "rrt", ignore_errors=True)  # of a build before
        super().run()
        for source in needed_modules(sorted((ROOT / "rrt").rglob("*.py"))):
            path = source.relative_to(ROOT)
            target = Path(self.build_lib) / (path if path.parts[0] == "rrt" else Path("rrt", f"_{path}"))
            for folder in target.relative_to(self.build_lib).parents[:-2]:
                (Path(self.build_lib) / folder).mkdir(parents=True, exist_ok=True)
                (Path(self.build_lib) / folder / "__init__.py").touch()
            target.write_text(IMPORT.sub(r"\1rrt._\2", source.read_text(encoding="utf-8")), encoding="utf-8")


def needed_modules(sources: list[Path]) -> set[Path]:
    """The files of some modules and of all in the clone that they import, at their top or in their functions."""
    found: set[Path] = set()
    while sources:
        source = sources.pop()
        if source not in found:
            found.add(source)
            sources += imported_modules(source)
    return found


def imported_modules(source: Path) -> Iterator[Path]:
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = ROOT / node.module.replace(".", "/")
            package = module / "__init__"
            for path in (module, package, *(module / alias.name for alias in node.names)):
                if path.with_suffix(".py").is_file():
                    yield path.with_suffix(".py")


setup(cmdclass={"build_py": BuildLibrary})
