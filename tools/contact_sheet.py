"""The README's picture of the drawn products: `python -m tools.contact_sheet data/demo docs/demo.jpg`."""

import sys
from pathlib import Path

from PIL import Image

from sop.demo.photos import photo_paths, read_settings
from sop.demo.shapes import COLOURWAYS, SHAPES, family
from utils.io.atomic import atomic_write


def contact_sheet(folder: Path, path: Path, products: int = 3, tile: int = 80) -> None:
    """Write a picture of a demo set: four blocks, each `products` of one family, a product a row and a view a column.

    Photos are shown at tile x tile pixels. Raises InputError when `folder` is no demo set.
    """
    settings = read_settings(folder)
    num_products, views = settings["num_products"], settings["views"]
    width, height = views * tile, products * tile
    gap = tile // 10
    sheet = Image.new("RGB", (2 * width + gap, (len(SHAPES) + 1) // 2 * (height + gap) - gap), "white")
    for block, shape in enumerate(SHAPES):
        same_family = [p for p in range(num_products) if family(p) == (shape, block % len(COLOURWAYS))][:products]
        left, top = block % 2 * (width + gap), block // 2 * (height + gap)
        for row, product in enumerate(same_family):
            for column, name in enumerate(photo_paths(product, views)):
                with Image.open(folder / name) as photo:
                    sheet.paste(photo.resize((tile, tile)), (left + column * tile, top + row * tile))
    with atomic_write(path) as file:
        sheet.save(file, "JPEG", quality=80)


if __name__ == "__main__":
    contact_sheet(Path(sys.argv[1]), Path(sys.argv[2]))
