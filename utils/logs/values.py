"""Values in the JSON of a run: what stands under nested keys, numbers, times and curves, if they can be such."""

from datetime import UTC, datetime

from utils.logs.files import RunFiles

LAST_STEP = 1e9  # far beyond any training's epochs or iterations
DIGITS_OF_A_STEP = 9


def nested(node: object, *keys: str) -> object:
    """The value under nested keys, None where there is no such one."""
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def whole_number(digits: str) -> int | None:
    """The number that decimal digits spell, None where it is no K or epoch that a run could have."""
    return int(digits) if len(digits) <= DIGITS_OF_A_STEP else None


def number(node: object, low: float, high: float) -> float | None:
    """A number from `low` to `high`, plain or as jsonpickle encodes a numpy one; None for anything else."""
    value = nested(node, "value") if isinstance(node, dict) else node
    plain = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    return value if plain else None  # type: ignore[return-value]


def noted_number(files: RunFiles, name: str, node: object, low: float, high: float) -> float | None:
    """`number`; one that is there but cannot be is noted as a problem."""
    value = number(node, low, high)
    if value is None and node is not None:
        files.note(f"{name} is no number from {low:g} to {high:g}")
    return value


def time(files: RunFiles, entry: dict, name: str) -> datetime | None:
    """A time in run.json as Sacred writes it: UTC, without saying so."""
    text = entry.get(name)
    try:
        if text is None:
            return None
        written = datetime.fromisoformat(text)
        return written.astimezone(UTC) if written.tzinfo else written.replace(tzinfo=UTC)
    except (TypeError, ValueError, OverflowError):  # the years end at 9999, also where a zone's hours lead beyond
        files.note(f"run.json: {name} is no time")
        return None


def curve(files: RunFiles, metrics: dict, name: str, low: float, high: float) -> list[tuple[float, float]]:
    """(step, value) of a logged scalar, in order of the steps; points that cannot be are left out and noted."""
    if name not in metrics:
        return []
    steps, values = nested(metrics, name, "steps"), nested(metrics, name, "values")
    if not isinstance(steps, list) or not isinstance(values, list):
        files.note(f"metrics.json: {name} has no steps and values")
        return []
    if len(steps) != len(values):
        files.note(f"metrics.json: {name} has {len(steps)} steps, but {len(values)} values")
    pairs = zip(steps, values, strict=False)
    points = [(number(step, 0, LAST_STEP), number(value, low, high)) for step, value in pairs]
    whole = sorted((step, value) for step, value in points if step is not None and value is not None)
    if len(whole) < len(points):
        files.note(
            f"metrics.json: {len(points) - len(whole)} of {len(points)} points of {name} are left out: they are no "
            "numbers, or out of range"
        )
    return whole
