"""The shapes and colours of the drawn products; a polygon is an array (n, 2) of its corners.

Lengths are in the product's space: its front is the square |x|, |y| <= 1, with y downwards.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Range = tuple[float, float]
Colour = tuple[int, ...]


class Shape(NamedTuple):
    """The common shape of a super class."""

    outline: np.ndarray  # (n, 2) corners of the body
    parts: list[np.ndarray]  # polygons of the second colour: cap, handle, tape
    depth: float
    front: tuple[float, float, float, float]  # left, top, right, bottom of the area for the prints' centres
    round: bool  # shaded like a cylinder


def radial(radii: Sequence[float] | np.ndarray, squeeze: float = 1.0) -> np.ndarray:
    """The polygon (n, 2) with a corner at each radius, at equal angles, the first one upwards; x is squeezed."""
    angles = 2 * np.pi * np.arange(len(radii)) / len(radii)
    return np.stack([squeeze * np.sin(angles), -np.cos(angles)], 1) * np.asarray(radii)[:, None]


def box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """A rectangle's corners, (4, 2)."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def arch(centre: Range, radii: Range, width: float, start: float, stop: float) -> np.ndarray:
    """A bent strap: part of an ellipse's rim, from angle to angle (degrees, clockwise from the right)."""
    angles = np.radians(np.linspace(start, stop, 16))
    rim = np.stack([np.cos(angles), np.sin(angles)], 1)
    outer, inner = rim * np.array(radii), rim[::-1] * (np.array(radii) - width)
    return np.concatenate([outer, inner]) + np.array(centre)


def turn(angle: float) -> np.ndarray:
    """The rotation (2, 2) by an angle in radians."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def symmetric(*right: Range) -> np.ndarray:
    """A polygon whose left half mirrors the right one, which is given from top to bottom."""
    return np.concatenate([right, np.array(right)[::-1] * (-1, 1)])


SHAPES = {
    "bag": Shape(
        outline=symmetric((0.62, -0.4), (0.85, 0.8), (0.78, 0.9)),
        parts=[arch((0, -0.4), (0.4, 0.52), 0.1, 180, 360), box(-0.63, -0.4, 0.63, -0.3)],
        depth=0.35,
        front=(-0.52, -0.08, 0.52, 0.66),
        round=False,
    ),
    "bottle": Shape(
        outline=symmetric(
            (0.2, -0.7), (0.22, -0.58), (0.48, -0.44), (0.56, -0.36), (0.6, -0.24), (0.6, 0.86), (0.5, 0.95)
        ),
        parts=[box(-0.25, -0.95, 0.25, -0.66), box(-0.6, 0.76, 0.6, 0.84)],
        depth=0.25,
        front=(-0.37, -0.2, 0.37, 0.58),
        round=True,
    ),
    "box": Shape(
        outline=box(-0.72, -0.78, 0.72, 0.78),
        parts=[box(-0.72, -0.78, 0.72, -0.64), box(-0.72, 0.7, 0.72, 0.78)],
        depth=0.6,
        front=(-0.48, -0.42, 0.48, 0.48),
        round=False,
    ),
    "mug": Shape(
        outline=symmetric((0.64, -0.66), (0.64, 0.6), (0.54, 0.74)),
        parts=[arch((0.62, 0.02), (0.37, 0.46), 0.13, -90, 90), box(-0.64, -0.66, 0.64, -0.54)],
        depth=0.3,
        front=(-0.42, -0.3, 0.42, 0.5),
        round=True,
    ),
}
COLOURWAYS: list[tuple[Colour, Colour]] = [  # of the body, and of the parts
    ((176, 58, 46), (238, 220, 190)),
    ((38, 110, 130), (22, 40, 70)),
    ((206, 190, 160), (112, 76, 48)),
    ((74, 78, 88), (196, 160, 60)),
]
INKS: list[Colour] = [
    (245, 245, 240),
    (20, 20, 24),
    (235, 200, 40),
    (40, 90, 200),
    (220, 40, 40),
    (60, 170, 70),
    (240, 130, 180),
]
GLYPHS = {  # within about the unit circle
    "disc": radial([1] * 20),
    "oval": radial([1] * 20, squeeze=0.5),
    "triangle": radial([1.1] * 3),
    "diamond": radial([1.1] * 4),
    "star": radial([1.1, 0.45] * 5),
    "spark": radial([1.2, 0.4] * 4),
    "bar": box(-0.95, -0.35, 0.95, 0.35),
    "arrow": symmetric((0, -0.9), (0.9, 0), (0.4, 0), (0.4, 0.9)),
    "heart": symmetric((0, -0.4), (0.3, -0.8), (0.75, -0.75), (0.95, -0.15), (0, 0.95)),
    "arch": arch((0, 0.4), (1.0, 1.1), 0.5, 180, 360),
}


def family(product: int) -> tuple[str, int]:
    """The shape's name and the colourway's number of a product; products of one family share both."""
    return list(SHAPES)[product % len(SHAPES)], product // len(SHAPES) % len(COLOURWAYS)
