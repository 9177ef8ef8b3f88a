"""Drawn scenes in the layout of Intel Image Classification, for tests and for people without data.

Six classes of outdoor scenes, each drawn from random geometry, colours and light. Skies, seasons and light are
shared between the classes, so shape and texture tell them apart, not the mean colour. They are no photographs:
accuracies on them say nothing about photographs.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from trt_moe.errors import DataError, InputError

SIDE = 150
"""Height and width of a scene in pixels, those of the Intel data set."""

Colour = tuple[int, int, int]
Random = np.random.Generator

_QUALITY = 90


def write_scenes(
    out: Path, train: int, test: int, seed: int = 0, progress: Callable[[str, int, int], None] | None = None
) -> Path:
    """Write `seg_train/<class>/<n>.jpg` and `seg_test/<class>/<n>.jpg`, all or nothing.

    Args:
        out: folder to make; must not exist yet, or be empty.
        train: training images of each class, at least 1.
        test: test images of each class, at least 1.
        seed: another seed gives other scenes; the same seed the same ones (with the same numpy and Pillow).
        progress: called as progress("scenes", done, total).

    Returns:
        `out`.

    Raises:
        InputError: numbers out of range, or `out` holds something.
        DataError: the folder cannot be written.
    """
    if train < 1 or test < 1 or seed < 0:
        raise InputError(f"train is {train}, test {test}, seed {seed}; expected at least 1, 1 and 0")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists already; give a new folder")
    counts = {"seg_train": train, "seg_test": test}
    total, done = (train + test) * len(CLASSES), 0
    made = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        # Inside, since a folder that somebody is in must not be replaced.
        with tempfile.TemporaryDirectory(prefix=".scenes-", dir=out, ignore_cleanup_errors=True) as work:
            for split, count in counts.items():
                for class_name in CLASSES:
                    folder = Path(work, split, class_name)
                    folder.mkdir(parents=True)
                    for index in range(count):
                        scene = Image.fromarray(draw_scene(class_name, _seed(seed, split, class_name, index)))
                        scene.save(folder / f"{index:05d}.jpg", quality=_QUALITY)
                        done += 1
                        if progress is not None:
                            progress("scenes", done, total)
            for split in counts:
                Path(work, split).replace(out / split)
    except BaseException as error:
        for split in counts:
            shutil.rmtree(out / split, ignore_errors=True)
        if made:
            with suppress(OSError):
                out.rmdir()
        if isinstance(error, OSError):
            raise DataError(f"scenes cannot be written to {out}: {error}") from error
        raise
    return out


def draw_scene(class_name: str, seed: int) -> NDArray[np.uint8]:
    """Draw one scene, uint8 [150, 150, 3].

    Raises:
        InputError: no such class.
    """
    if class_name not in _PAINTERS:
        raise InputError(f"no scene is called {class_name!r}; there are {', '.join(CLASSES)}")
    random = np.random.Generator(np.random.PCG64(seed))
    image = _sky(random)
    _PAINTERS[class_name](ImageDraw.Draw(image), random)
    return _photograph(image, random)


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little")


def _sky(random: Random) -> Image.Image:
    """Blue, grey or dusk from top to horizon, sometimes with clouds."""
    tops: list[Colour] = [(70, 120, 200), (150, 160, 170), (60, 60, 110), (200, 140, 110), (120, 170, 220)]
    lows: list[Colour] = [(190, 215, 240), (200, 200, 205), (230, 150, 110), (240, 200, 150), (225, 235, 245)]
    top, low = np.asarray(tops[random.integers(5)]), np.asarray(lows[random.integers(5)])
    share = np.linspace(0, 1, SIDE)[:, None, None]
    pixels = np.broadcast_to(top * (1 - share) + low * share, (SIDE, SIDE, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    for _ in range(random.integers(0, 5)):
        x, y = random.integers(0, SIDE), random.integers(0, SIDE // 3)
        width, height = random.integers(15, 60), random.integers(4, 12)
        draw.ellipse((x - width, y - height, x + width, y + height), fill=_near((225, 225, 230), 20, random))
    return image.filter(ImageFilter.GaussianBlur(3))


def _photograph(image: Image.Image, random: Random) -> NDArray[np.uint8]:
    """Light, tint, mirror, a slightly tilted camera, lens blur and sensor noise."""
    image = image.rotate(float(random.uniform(-4, 4)), Image.Resampling.BILINEAR)
    margin = 8
    image = image.crop((margin, margin, SIDE - margin, SIDE - margin)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    image = image.filter(ImageFilter.GaussianBlur(float(random.uniform(0, 0.9))))
    pixels = np.asarray(image, dtype=np.float64)
    if random.random() < 0.5:
        pixels = pixels[:, ::-1]
    pixels = pixels * random.uniform(0.6, 1.15) * random.uniform(0.88, 1.12, 3)
    pixels = pixels + random.normal(0, random.uniform(1, 6), pixels.shape)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _near(colour: Colour, spread: int, random: Random) -> Colour:
    """Vary a colour; the channels together more than apart."""
    shift = random.integers(-spread, spread + 1) + random.integers(-spread // 3, spread // 3 + 1, 3)
    red, green, blue = (int(value) for value in np.clip(np.asarray(colour) + shift, 0, 255))
    return red, green, blue


def _pick(colours: list[Colour], spread: int, random: Random) -> Colour:
    return _near(colours[random.integers(len(colours))], spread, random)


def _ground(draw: ImageDraw.ImageDraw, top: int, random: Random) -> None:
    """Meadow, sand, snow or gravel from `top` down."""
    colours: list[Colour] = [(95, 130, 70), (180, 160, 120), (225, 230, 235), (120, 115, 110)]
    colour = _pick(colours, 20, random)
    draw.rectangle((0, top, SIDE, SIDE), fill=colour)
    for _ in range(60):
        x, y = int(random.integers(0, SIDE)), int(random.integers(top, SIDE))
        draw.line((x, y, x + int(random.integers(2, 12)), y), fill=_near(colour, 18, random))


def _tree(draw: ImageDraw.ImageDraw, x: int, foot: int, height: int, random: Random) -> None:
    """A conifer or a broad-leaved tree in any season."""
    leaves: list[Colour] = [(40, 80, 40), (70, 110, 50), (150, 110, 40), (200, 205, 210), (90, 80, 60)]
    colour = _pick(leaves, 20, random)
    trunk = max(1, height // 16)
    draw.rectangle((x - trunk, foot - height, x + trunk, foot), fill=_near((80, 60, 45), 20, random))
    if random.random() < 0.5:
        for tier in range(4):
            top, half = foot - height + tier * height // 5, height // 10 + tier * height // 14
            draw.polygon([(x, top), (x - half, top + height // 3), (x + half, top + height // 3)], fill=colour)
    else:
        for _ in range(7):
            cx, cy = x + random.integers(-height // 5, height // 5 + 1), foot - height + random.integers(0, height // 2)
            radius = random.integers(height // 10, height // 5 + 1)
            draw.ellipse((cx - radius, cy - radius, cx + radius, cy + radius), fill=_near(colour, 14, random))


def _ridge(random: Random, base: int, height: int, roughness: float) -> list[tuple[int, int]]:
    """Return a jagged skyline as points from left to right, by midpoint displacement."""
    values = np.array([random.uniform(0, 0.5), random.uniform(0.7, 1.0), random.uniform(0, 0.5)])
    scale = 0.35
    for _ in range(5):
        middle = (values[:-1] + values[1:]) / 2 + random.uniform(-scale, scale, len(values) - 1)
        values = np.append(np.column_stack([values[:-1], middle]).ravel(), values[-1])
        scale *= roughness
    xs = np.linspace(-5, SIDE + 5, len(values))
    return [(int(x), int(base - height * max(0.0, float(v)))) for x, v in zip(xs, values, strict=True)]


def _facade(draw: ImageDraw.ImageDraw, left: int, top: int, right: int, foot: int, random: Random) -> None:
    """A house front: a wall with a grid of windows."""
    walls: list[Colour] = [(150, 140, 130), (170, 110, 90), (200, 190, 170), (110, 125, 145), (90, 90, 95)]
    wall = _pick(walls, 20, random)
    draw.rectangle((left, top, right, foot), fill=wall)
    pane = _pick([(60, 75, 95), (230, 210, 140), (170, 195, 215)], 20, random)
    across, down = int(random.integers(6, 14)), int(random.integers(7, 16))
    for x in range(left + 3, right - across // 2, across):
        for y in range(top + 4, foot - down // 2, down):
            draw.rectangle((x, y, min(right - 1, x + across // 2), y + down // 2), fill=_near(pane, 12, random))


def _buildings(draw: ImageDraw.ImageDraw, random: Random) -> None:
    foot = int(random.integers(125, 150))
    _ground(draw, foot - 5, random)
    left = int(random.integers(-20, 5))
    while left < SIDE:
        width = int(random.integers(25, 70))
        _facade(draw, left, int(random.integers(5, 85)), left + width, foot, random)
        left += width + int(random.integers(-4, 10))
    for _ in range(random.integers(0, 3)):
        _tree(draw, int(random.integers(0, SIDE)), SIDE, int(random.integers(20, 45)), random)


def _forest(draw: ImageDraw.ImageDraw, random: Random) -> None:
    horizon = int(random.integers(50, 100))
    _ground(draw, horizon, random)
    for foot in np.sort(random.integers(horizon, SIDE + 40, random.integers(25, 60))):
        _tree(draw, int(random.integers(-10, SIDE + 10)), int(foot), int(random.integers(45, 110)), random)


def _glacier(draw: ImageDraw.ImageDraw, random: Random) -> None:
    ice = _pick([(215, 230, 240), (190, 215, 235), (170, 180, 190), (235, 225, 215)], 15, random)
    if random.random() < 0.6:
        rock = _pick([(100, 95, 95), (130, 115, 100)], 20, random)
        draw.polygon([*_ridge(random, 80, 60, 0.5), (SIDE + 5, SIDE), (-5, SIDE)], fill=rock)
    top = int(random.integers(55, 85))
    tongue = [(x, top + int(random.integers(-9, 10))) for x in range(-5, SIDE + 20, 15)]
    draw.polygon([*tongue, (SIDE + 5, SIDE), (-5, SIDE)], fill=ice)
    crack = _pick([(110, 160, 195), (130, 140, 150)], 15, random)
    for _ in range(random.integers(18, 40)):
        x, y = int(random.integers(-10, SIDE)), int(random.integers(top + 8, SIDE))
        points = [(x, y)]
        for _ in range(4):
            points.append((points[-1][0] + int(random.integers(4, 14)), points[-1][1] + int(random.integers(-6, 7))))
        draw.line(points, fill=_near(crack, 15, random), width=int(random.integers(1, 4)))
    if random.random() < 0.4:
        draw.rectangle((0, SIDE - 25, SIDE, SIDE), fill=_near((70, 110, 140), 25, random))


def _mountain(draw: ImageDraw.ImageDraw, random: Random) -> None:
    for depth in range(random.integers(1, 4)):
        rock = _pick([(110, 105, 105), (120, 100, 80), (80, 95, 80), (90, 100, 125)], 20, random)
        base, height = 115 + 12 * depth, int(random.integers(70, 105)) - 20 * depth
        ridge = _ridge(random, base, height, 0.55)
        draw.polygon([*ridge, (SIDE + 5, SIDE), (-5, SIDE)], fill=rock)
        for x, y in ridge[1::2]:
            draw.line((x, y, x + int(random.integers(-16, 17)), base), fill=_near(rock, 25, random), width=2)
        if depth == 0 and random.random() < 0.6:
            snow = int(random.integers(10, 30))
            peak = min(ridge, key=lambda point: point[1])
            cap = [point for point in ridge if point[1] < peak[1] + snow]
            if len(cap) > 1:
                draw.polygon([*cap, (peak[0], peak[1] + snow)], fill=_near((235, 238, 242), 12, random))
    _ground(draw, int(random.integers(118, 140)), random)
    for _ in range(random.integers(0, 9)):
        _tree(draw, int(random.integers(0, SIDE)), int(random.integers(130, 155)), int(random.integers(10, 30)), random)


def _sea(draw: ImageDraw.ImageDraw, random: Random) -> None:
    horizon = int(random.integers(45, 95))
    water = _pick([(50, 95, 140), (60, 130, 140), (95, 105, 120), (150, 120, 110)], 20, random)
    draw.rectangle((0, horizon, SIDE, SIDE), fill=water)
    for y in range(horizon + 2, SIDE, 2):
        size = 1 + (y - horizon) // 12
        for _ in range(random.integers(2, 8)):
            x, length = int(random.integers(-10, SIDE)), int(random.integers(3, 9)) * size
            draw.arc((x, y, x + length, y + 2 + size), 180, 360, fill=_near(water, 30, random))
    if random.random() < 0.5:
        x = int(random.integers(15, 135))
        for y in range(horizon, SIDE, 3):
            half = int(random.integers(2, 10))
            draw.line((x - half, y, x + half, y), fill=_near((240, 220, 180), 15, random))
    if random.random() < 0.5:
        beach = int(random.integers(115, 145))
        shore = [(x, beach + int(random.integers(-4, 5))) for x in range(-5, SIDE + 20, 15)]
        draw.polygon([*shore, (SIDE + 5, SIDE), (-5, SIDE)], fill=_near((200, 180, 140), 20, random))
        draw.line(shore, fill=(240, 240, 240), width=2)
    if random.random() < 0.3:
        draw.polygon([*_ridge(random, horizon, 25, 0.5), (SIDE + 5, horizon), (-5, horizon)], fill=(90, 100, 110))


def _street(draw: ImageDraw.ImageDraw, random: Random) -> None:
    horizon, vanish = int(random.integers(55, 85)), int(random.integers(55, 95))
    _ground(draw, horizon, random)
    for side in (-1, 1):
        edge = 0 if side < 0 else SIDE
        for step in range(4):
            near = edge + (vanish - edge) * step // 5
            far = edge + (vanish - edge) * (step + 1) // 5
            left, right = min(near, far), max(near, far)
            foot = SIDE - 12 - (SIDE - 12 - horizon) * step // 4
            if random.random() < 0.85:
                _facade(
                    draw, left, max(0, horizon - int(random.integers(25, 85)) * (4 - step) // 4), right, foot, random
                )
            else:
                _tree(draw, (left + right) // 2, foot, int(random.integers(30, 70)), random)
    asphalt = _pick([(75, 75, 80), (110, 105, 100), (60, 60, 65)], 15, random)
    left, right = int(random.integers(-20, 25)), int(random.integers(125, 170))
    draw.polygon([(vanish - 4, horizon), (vanish + 4, horizon), (right, SIDE), (left, SIDE)], fill=asphalt)
    middle = (left + right) // 2
    for step in range(6):
        start, end = (step / 6) ** 1.5, ((step + 0.5) / 6) ** 1.5
        points = [(vanish + (middle - vanish) * s, horizon + (SIDE - horizon) * s) for s in (start, end)]
        draw.line(points, fill=(230, 225, 200), width=1 + step // 2)
    for _ in range(random.integers(0, 4)):
        share = float(random.uniform(0.3, 0.9))
        lane = (left if random.random() < 0.5 else right) * 0.5 + middle * 0.5
        x, y, size = vanish + (lane - vanish) * share, horizon + (SIDE - horizon) * share, 4 + 18 * share
        paint = _pick([(170, 40, 40), (40, 60, 140), (220, 220, 220), (30, 30, 30)], 20, random)
        draw.rectangle((x - size / 2, y - size * 0.6, x + size / 2, y), fill=paint)
        draw.rectangle(
            (x - size / 3, y - size * 0.9, x + size / 3, y - size * 0.55), fill=_near((60, 70, 85), 15, random)
        )


_PAINTERS: dict[str, Callable[[ImageDraw.ImageDraw, Random], None]] = {
    "buildings": _buildings,
    "forest": _forest,
    "glacier": _glacier,
    "mountain": _mountain,
    "sea": _sea,
    "street": _street,
}
CLASSES = tuple(_PAINTERS)
"""Names of the classes, those of the Intel data set."""
