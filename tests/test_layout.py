"""Which module may know which: arrows run one way, and what the commands are made of stands without Sacred."""

import ast
from graphlib import TopologicalSorter

from tests import ROOT

BELOW = {
    "utils": {"utils"},
    "models": {"models", "utils"},
    "sop": {"sop", "utils"},
    "rrt": {"rrt", "models", "sop", "utils"},
}
COMMANDS = {"utils.logs.__main__"}  # they stand above all
WITH_SACRED = {"models.ingredient", "sop.ingredient", "utils.experiment"}


def imports(package: str) -> dict[str, set[str]]:
    """What each module of a package imports, at its top or in its functions."""
    found = {}
    for path in (ROOT / package).rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        nodes = list(ast.walk(ast.parse(path.read_text())))
        found[name] = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        for node in nodes:
            if isinstance(node, ast.ImportFrom):
                found[name] |= {f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_arrows_run_one_way():
    for package, allowed in BELOW.items():
        for module, imported in imports(package).items():
            ours = {name.split(".")[0] for name in imported} & {
                "utils",
                "models",
                "sop",
                "rrt",
                "report",
                "benchmarks",
                "tests",
                "docs",
            }
            assert ours <= allowed or module in COMMANDS, module


def test_no_circle():
    graph = {module: imported for package in BELOW for module, imported in imports(package).items()}
    graph |= {module: names & graph.keys() for module, names in graph.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)


def test_sacred_is_for_the_commands():
    for package in BELOW:
        for module, imported in imports(package).items():
            assert module in WITH_SACRED or not any(name.split(".")[0] == "sacred" for name in imported), module
