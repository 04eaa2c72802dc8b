"""Which module may know which: arrows run one way, and what the commands are made of stands without Sacred."""

import ast
from graphlib import TopologicalSorter

from tests import ROOT

# Rooms in order: each may import itself and what stands before it.
ROOMS = [
    "utils.errors",
    "utils.settings",
    "utils.text",
    "utils.runtime",
    "utils.io",
    "utils.distributed",
    "utils.store",
    "utils.retrieval",
    "utils.metrics",
    "utils.evaluation",
    "utils.training",
    "utils.experiment",
]
OF_LOGS = ["utils.errors", "utils.settings", "utils.text", "utils.runtime", "utils.io", "utils.logs"]
ABOVE = {  # packages of the project that each may import; below `utils` the rooms' order holds
    "models": {"models", "utils"},
    "sop": {"sop", "utils"},
    "report": {"report", "models", "sop", "utils"},
    "rrt": {"rrt", "models", "sop", "utils"},
}
OURS = {"utils", "models", "sop", "rrt", "report", "benchmarks", "tests", "docs", "tools"}
WITH_SACRED = {"models.ingredient", "sop.ingredient"}


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


def room_of(module: str, rooms: list[str]) -> str:
    """The room that a module, or a name in one, belongs to; itself where it is in none."""
    return next((room for room in rooms if f"{module}.".startswith(f"{room}.")), module)


def test_rooms_of_utils_know_only_those_before_them():
    for module, imported in imports("utils").items():
        rooms = OF_LOGS if module.startswith("utils.logs") else ROOMS
        if module == "utils":
            continue
        allowed = rooms[: rooms.index(room_of(module, rooms)) + 1]
        ours = {name for name in imported if name.split(".")[0] in OURS and name not in ("utils", "utils.training")}
        assert {room_of(name, rooms) for name in ours} <= set(allowed), module


def test_arrows_run_one_way():
    for package, allowed in ABOVE.items():
        for module, imported in imports(package).items():
            assert {name.split(".")[0] for name in imported} & OURS <= allowed, module


def test_no_circle():
    graph = {module: imported for package in ("utils", *ABOVE) for module, imported in imports(package).items()}
    graph |= {module: names & graph.keys() for module, names in graph.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)


def test_sacred_is_for_the_commands():
    for package in ("utils", *ABOVE):
        for module, imported in imports(package).items():
            with_sacred = any(name.split(".")[0] == "sacred" for name in imported)
            assert not with_sacred or module in WITH_SACRED or module.startswith("utils.experiment"), module
