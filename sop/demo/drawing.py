"""Photos of made-up products, which are alike within a family except for their small prints.

Everything is drawn at twice the photo's size and halved. A product lives in its own space: its front is the square
|x|, |y| <= 1 at z = 0 with y downwards, its back lies at z = depth, and the camera looks along z.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from sop.demo.shapes import COLOURWAYS, GLYPHS, INKS, SHAPES, Colour, Range, Shape, box, family, radial, turn


class Difficulty(NamedTuple):
    """How hard the products are to tell apart; lengths are in the product's space."""

    prints: tuple[int, int] = (3, 4)  # number on a product, minimum and maximum
    print_size: Range = (0.25, 0.31)  # their radius
    yaw: float = 30.0  # degrees to either side, like the next two
    pitch: float = 16.0
    roll: float = 16.0
    scale: Range = (0.72, 0.92)  # half the photo's width over one unit
    shift: float = 0.1  # of half the photo's width, to either side
    occluders: tuple[int, int] = (0, 1)  # number, minimum and maximum
    occluder_size: Range = (0.22, 0.42)  # their radius
    clutter: tuple[int, int] = (5, 12)  # number of shapes in the background, minimum and maximum
    stray: float = 0.1  # fraction of them that are prints
    blur: float = 0.012  # maximum radius for the background, in photo widths
    exposure: Range = (0.7, 1.2)  # times the light
    falloff: float = 0.3  # maximum loss of light from the photo's centre to its darkest edge
    cast: float = 0.1  # of a colour channel, up or down
    noise: Range = (2.0, 7.0)  # standard deviation, in grey levels of 255


DIFFICULTY = Difficulty()
DISTANCE = 4.5  # from the camera to the product's front, in its units
MIN_CONTRAST = 200  # of a print with its product: the channels' differences, summed
JPEG_QUALITY = (70, 92)


class Product(NamedTuple):
    """One product, ready to be photographed."""

    front: Image.Image  # RGBA, the square |x|, |y| <= 1
    shape: Shape
    colour: Colour


class Album(NamedTuple):
    """The photos of one product to draw: a view of it at each path."""

    paths: list[Path]
    seed: int
    product: int
    size: int  # photos are size x size pixels


def draw_photos(album: Album) -> None:
    """Write the JPEG photos of an album; their folder must exist.

    The product is drawn from random numbers keyed by (seed, product, 0), and view i of it by (seed, product, i + 1).
    """
    canvas = 2 * album.size
    product = _product(np.random.default_rng((album.seed, album.product, 0)), *family(album.product), canvas)
    for view, path in enumerate(album.paths, start=1):
        rng = np.random.default_rng((album.seed, album.product, view))
        _photo(rng, product, canvas).save(path, "JPEG", quality=int(rng.integers(*JPEG_QUALITY)))


def _product(rng: np.random.Generator, shape_name: str, colourway: int, canvas: int) -> Product:
    """A product of a family, with random prints; its front is canvas x canvas pixels."""
    shape, (body, accent) = SHAPES[shape_name], COLOURWAYS[colourway]
    front = Image.new("RGBA", (canvas, canvas), (*body, 0))
    draw = ImageDraw.Draw(front)
    for polygon, colour in [(shape.outline, body), *((part, accent) for part in shape.parts)]:
        _fill(draw, (polygon + 1) * canvas / 2, (*colour, 255))
    inks = [ink for ink in INKS if np.abs(np.subtract(ink, body)).sum() > MIN_CONTRAST]
    left, top, right, bottom = shape.front
    centres = np.empty((0, 2))
    for _ in range(rng.integers(*DIFFICULTY.prints, endpoint=True)):
        candidates = rng.uniform((left, top), (right, bottom), (20, 2))
        gaps = np.linalg.norm(candidates[:, None] - centres, axis=2).min(1, initial=4.0)
        centres = np.append(centres, candidates[[gaps.argmax()]], 0)
        _print(rng, draw, inks, (centres[-1] + 1) * canvas / 2, rng.uniform(*DIFFICULTY.print_size) * canvas / 2)
    across = np.linspace(-1, 1, canvas)
    light = 0.7 + 0.35 * np.sqrt(np.clip(1 - (across / 0.7) ** 2, 0, 1)) if shape.round else 1.0 - 0.06 * across
    pixels = np.asarray(front) * np.stack([*[np.broadcast_to(light, canvas)] * 3, np.ones(canvas)], 1)
    return Product(_image(pixels), shape, body)


def _print(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, inks: list[Colour], centre: np.ndarray, radius: float
) -> None:
    """A print: a glyph, whole or hollow, on a plate of another ink or on the bare product."""
    plate, ink, inner = (inks[i] for i in rng.permutation(len(inks))[:3])
    glyph = list(GLYPHS.values())[rng.integers(len(GLYPHS))] @ turn(np.pi / 4 * rng.integers(8))
    if rng.random() < 0.4:
        corners = radial([1.1] * 20) if rng.random() < 0.5 else box(-1, -1, 1, 1)
        _fill(draw, centre + radius * corners, plate)
        radius *= 0.8
    _fill(draw, centre + radius * glyph, ink)
    if rng.random() < 0.35:
        _fill(draw, centre + 0.45 * radius * glyph, inner)


def _photo(rng: np.random.Generator, product: Product, canvas: int) -> Image.Image:
    """A view of the product on a background, partly hidden and unevenly lit: RGB, half the canvas's size."""
    camera = _camera(rng, canvas)
    scene = _background(rng, canvas)
    _place(scene, product, camera)
    draw = ImageDraw.Draw(scene)
    for _ in range(rng.integers(*DIFFICULTY.occluders, endpoint=True)):
        angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(*DIFFICULTY.occluder_size)
        centre = rng.uniform(0.55, 0.95) * np.array([np.cos(angle), np.sin(angle)])
        _fill(draw, _project(camera, centre + radius * _blob(rng), -0.2), _any_colour(rng))
    return _light(rng, scene.reduce(2))


def _camera(rng: np.random.Generator, canvas: int) -> np.ndarray:
    """The projection (3, 4) of a random viewpoint, from the product's space to the canvas, in pixels."""
    angles = np.radians(rng.uniform(-1, 1, 3) * (DIFFICULTY.yaw, DIFFICULTY.pitch, DIFFICULTY.roll))
    rotation = np.eye(3)
    for plane, angle in zip(([0, 2], [1, 2], [0, 1]), angles, strict=True):
        rotation[plane] = turn(angle) @ rotation[plane]
    centre = (1 + rng.uniform(-1, 1, 2) * DIFFICULTY.shift) * canvas / 2
    focal = rng.uniform(*DIFFICULTY.scale) * DISTANCE * canvas / 2
    lens = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1]])
    return lens @ np.column_stack([rotation, (0, 0, DISTANCE)])


def _project(camera: np.ndarray, points: np.ndarray, z: float) -> np.ndarray:
    """Project points (n, 2) at depth `z` to pixels (n, 2)."""
    seen = np.column_stack([points, np.full(len(points), z), np.ones(len(points))]) @ camera.T
    return seen[:, :2] / seen[:, 2:]


def _place(scene: Image.Image, product: Product, camera: np.ndarray) -> None:
    """Draw the product into the scene: its shadow, its sides from far to near, its front."""
    canvas, (outline, depth) = scene.width, (product.shape.outline, product.shape.depth)
    near, far = _project(camera, outline, 0), _project(camera, outline, depth)
    shadow = Image.new("L", (canvas // 4, canvas // 4))
    _fill(ImageDraw.Draw(shadow), (far + canvas * np.array([0.02, 0.04])) / 4, 150)
    scene.paste((12, 12, 16), mask=shadow.filter(ImageFilter.GaussianBlur(canvas / 100)).resize(scene.size))
    draw = ImageDraw.Draw(scene)
    edges = np.roll(outline, -1, 0) - outline
    for i in np.argsort(-(outline + edges / 2) @ camera[2, :2]):
        facing = edges[i, 0] / np.linalg.norm(edges[i])  # 1 on top, -1 below
        after = (i + 1) % len(outline)
        side = tuple(int((0.62 + 0.25 * facing) * channel) for channel in product.colour)
        _fill(draw, np.stack([near[i], near[after], far[after], far[i]]), side)
    pixel_to_plane = np.array([[2 / canvas, 0, -1], [0, 2 / canvas, -1], [0, 0, 1]])
    back = np.linalg.inv(camera[:, [0, 1, 3]] @ pixel_to_plane)
    coefficients = (back / back[2, 2]).ravel()[:8].tolist()
    front = product.front.transform(scene.size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)
    scene.paste(front, mask=front)


def _background(rng: np.random.Generator, canvas: int) -> Image.Image:
    """A cluttered scene: a blotchy wall, perhaps a striped one, a table, shapes and stray prints."""
    blotches = _any_colour(rng) + rng.normal(0, 9, (7, 7, 3)) + rng.normal(0, 14, (7, 7, 1))
    scene = _image(blotches).resize((canvas, canvas), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(scene)
    if rng.random() < 0.5:
        slope, colour, width = rng.uniform(-1, 1), _any_colour(rng), int(rng.integers(2, 8))
        for x in range(-canvas, 2 * canvas, int(rng.integers(14, 44))):
            draw.line([(x, 0), (x + slope * canvas, canvas)], colour, width)
    if rng.random() < 0.6:
        left, right = rng.uniform(0.45, 0.85, 2) * canvas
        _fill(draw, np.array([(0, left), (canvas, right), (canvas, canvas), (0, canvas)]), _any_colour(rng))
    for _ in range(rng.integers(*DIFFICULTY.clutter, endpoint=True)):
        centre = rng.uniform(0, canvas, 2)
        if rng.random() < DIFFICULTY.stray:
            _print(rng, draw, INKS, centre, rng.uniform(*DIFFICULTY.print_size) * canvas / 2)
        else:
            _fill(draw, centre + _blob(rng) * rng.uniform(0.06, 0.26) * canvas, _any_colour(rng))
    return scene.filter(ImageFilter.BoxBlur(rng.uniform(0, DIFFICULTY.blur) * canvas))


def _light(rng: np.random.Generator, photo: Image.Image) -> Image.Image:
    """The photo under random light (strength, direction, colour) with sensor noise."""
    across = np.linspace(-1, 1, photo.width, dtype=np.float32)
    angle, falloff = rng.uniform(0, 2 * np.pi), rng.uniform(0, DIFFICULTY.falloff)
    slope = 1 + falloff * (np.cos(angle) * across + np.sin(angle) * across[:, None])
    colour = rng.uniform(*DIFFICULTY.exposure) * (1 + DIFFICULTY.cast * rng.uniform(-1, 1, 3))
    pixels = np.asarray(photo) * slope[:, :, None] * colour.astype(np.float32)
    pixels += rng.standard_normal(pixels.shape, np.float32) * np.float32(rng.uniform(*DIFFICULTY.noise))
    return _image(pixels)


def _image(pixels: np.ndarray) -> Image.Image:
    """Grey levels (height, width, channels) as an image."""
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _blob(rng: np.random.Generator) -> np.ndarray:
    """An irregular polygon within the unit circle."""
    return radial(rng.uniform(0.5, 1, rng.integers(4, 12)), squeeze=rng.uniform(0.4, 1)) @ turn(rng.uniform(0, np.pi))


def _any_colour(rng: np.random.Generator) -> Colour:
    """A random colour, more often dull than bright."""
    grey, colour, brightness = rng.integers(30, 226), rng.integers(20, 236, 3), rng.beta(1, 2)
    return tuple((grey + brightness * (colour - grey)).astype(int).tolist())


def _fill(draw: ImageDraw.ImageDraw, polygon: np.ndarray, colour: Colour | int) -> None:
    """Fill a polygon (n, 2), in pixels."""
    draw.polygon([tuple(corner) for corner in polygon.tolist()], fill=colour)
