"""Contents of a scene: camera, light, tints and the placing of objects, independent of the image size.

Image positions are fractions of the image side, from its left and top edge.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

from tips_ray.scenes.dice import Dice

SHAPES = ("sphere", "box", "cone", "cylinder")
SIZES = {"small": 0.45, "large": 0.85}  # half the height of a sphere, in metres
COLOURS = {
    "red": (212, 28, 34),
    "orange": (248, 128, 10),
    "yellow": (250, 218, 30),
    "green": (34, 152, 58),
    "blue": (30, 78, 214),
    "purple": (122, 38, 172),
    "pink": (252, 136, 190),
    "black": (40, 40, 44),
}
PROPORTIONS = {"sphere": (1.0, 2.0), "box": (0.86, 1.72), "cone": (1.0, 2.1), "cylinder": (0.78, 2.0)}
"""Radius (half the edge of a box) and height, in units of the size."""
SKIES = (  # colour at the horizon, colour overhead
    ((206, 228, 246), (104, 164, 226)),
    ((236, 238, 240), (168, 190, 214)),
    ((252, 224, 196), (150, 164, 214)),
    ((226, 220, 240), (138, 142, 208)),
    ((214, 238, 232), (112, 186, 206)),
)
GROUNDS = ((200, 184, 152), (182, 184, 186), (168, 186, 150), (206, 176, 156), (160, 172, 190), (214, 206, 188))

NEAREST_M, FARTHEST_M = 3.2, 6.6  # centres of objects
FRAME_MARGIN = 0.02  # fraction of the image side that stays free at each edge
TRIES = 20  # places tried before other kinds of objects are drawn
GAP_M = 0.2  # least distance between the circles around two bases
MOST_OVERLAP = 0.32  # largest overlap, as a fraction of the smaller of two bounds
CLEAR_SIDE_M, CLEAR_SIDE = 0.4, 0.09  # metres, and fraction of the image side
CLEAR_DEPTH_M, CLEAR_EDGE_M = 0.6, 0.25  # between centres, and between near edges

Triple = tuple[float, float, float]
Bounds = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Camera:
    """A pinhole above the ground that looks straight ahead and down."""

    height_m: float
    sine: float
    """Sine of the angle by which the axis points below the horizon."""
    cosine: float
    focal: float
    """Focal length in halves of the image side."""

    def __post_init__(self) -> None:
        lowest_ray = (self.sine + self.cosine / self.focal, self.cosine - self.sine / self.focal)  # down, ahead
        radius, height = PROPORTIONS["cone"]
        if lowest_ray[0] * radius >= lowest_ray[1] * height:
            raise ValueError(
                f"the lowest ray falls {lowest_ray[0]:.2f} m in {lowest_ray[1]:.2f} m; cones need less slope"
            )

    def view(self, x: float, y: float, z: float) -> Triple:
        """World metres to metres right of the axis, above it, and along it."""
        drop = self.height_m - y
        return x, z * self.sine - drop * self.cosine, z * self.cosine + drop * self.sine

    def image_position(self, x: float, y: float, z: float) -> tuple[float, float]:
        right, above, depth = self.view(x, y, z)
        return 0.5 + 0.5 * self.focal * right / depth, 0.5 - 0.5 * self.focal * above / depth

    def image_bounds(self, points: Iterable[Triple]) -> Bounds:
        columns, rows = zip(*(self.image_position(*point) for point in points), strict=True)
        return min(columns), min(rows), max(columns), max(rows)


@dataclass(frozen=True)
class SceneObject:
    """One thing on the ground."""

    shape: str
    colour: str
    size: str
    x_m: float
    z_m: float
    """Centre of the base, ahead of the camera along the ground."""
    radius_m: float
    """Radius of the base or the sphere; half the edge of a box."""
    height_m: float
    turn: float
    """Tangent of half the angle by which a box is turned about its vertical axis."""
    image_x: float
    image_y: float
    """Image position of the object's middle."""
    bounds: Bounds
    """Bounds of the outline; a little too wide for a cone or cylinder, never too narrow."""
    visible_share: float = 1.0
    """Visible pixels over the pixels that it would have alone; set by the rendering."""
    image_share: float = 0.0
    """Visible pixels over all pixels of the image; set by the rendering."""

    @property
    def name(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"

    @property
    def reach_m(self) -> float:
        """Radius of the circle around the base."""
        return self.radius_m * sqrt(2) if self.shape == "box" else self.radius_m

    def attributes(self) -> dict[str, Any]:
        return {**asdict(self), "bounds": list(self.bounds)}


@dataclass(frozen=True)
class World:
    """Everything that a picture shows. Colours are display values in 0..255."""

    camera: Camera
    objects: tuple[SceneObject, ...]
    light: Triple
    """Unit vector toward the light."""
    horizon: Triple
    zenith: Triple
    ground: Triple
    tile_m: float
    contrast: float
    """Contrast of the tiles, 0 to 1."""
    shift: tuple[float, float]
    """Offset of the tiles, in tiles."""


def draw_world(dice: Dice) -> World:
    """A random scene of 2 to 4 objects of different colours; each pair has at least one clear relation."""
    camera = _draw_camera(dice)
    objects = _draw_objects(dice, camera, dice.integer(2, 5))
    horizon, zenith = dice.choice(SKIES)
    brightness = dice.uniform(0.9, 1.08)
    red, green, blue = dice.choice(GROUNDS)
    ground = brightness * red, brightness * green, brightness * blue
    side = dice.choice((-1, 1)) * dice.uniform(0.35, 0.75)
    light = unit((side, 1.0, -dice.uniform(0.25, 0.7)))
    tile_m, contrast = dice.uniform(0.7, 1.4), dice.uniform(0.03, 0.16)
    shift = dice.uniform(0, 2), dice.uniform(0, 2)
    return World(camera, objects, light, horizon, zenith, ground, tile_m, contrast, shift)


def place(camera: Camera, shape: str, colour: str, size: str, x_m: float, z_m: float, turn: float = 0.0) -> SceneObject:
    """The object as `camera` sees it.

    Raises:
        ValueError: shape, colour or size is not one of SHAPES, COLOURS, SIZES.
    """
    for key, value, known in (("shape", shape, SHAPES), ("colour", colour, COLOURS), ("size", size, SIZES)):
        if value not in known:
            raise ValueError(f"{key} ({value}) must be one of {', '.join(known)}")
    radius_m, height_m = (SIZES[size] * part for part in PROPORTIONS[shape])
    image_x, image_y = camera.image_position(x_m, height_m / 2, z_m)
    turn = turn if shape == "box" else 0.0
    bounds = _bounds(camera, shape, x_m, z_m, turn, radius_m, height_m)
    return SceneObject(shape, colour, size, x_m, z_m, radius_m, height_m, turn, image_x, image_y, bounds)


def cosine_and_sine(turn: float) -> tuple[float, float]:
    """Cosine and sine of the angle whose half has the tangent `turn`: rational, so equal on every platform."""
    return (1 - turn * turn) / (1 + turn * turn), 2 * turn / (1 + turn * turn)


def is_clearly_left(one: SceneObject, other: SceneObject) -> bool:
    """Whether `one` is left of `other` both in the world and in the picture, so that perspective leaves no doubt."""
    return other.x_m - one.x_m > CLEAR_SIDE_M and other.image_x - one.image_x > CLEAR_SIDE


def is_clearly_in_front(one: SceneObject, other: SceneObject) -> bool:
    """Whether centre and near edge of `one` are both nearer, so that a difference in size leaves no doubt."""
    edges_m = (other.z_m - other.reach_m) - (one.z_m - one.reach_m)
    return other.z_m - one.z_m > CLEAR_DEPTH_M and edges_m > CLEAR_EDGE_M


def _draw_camera(dice: Dice) -> Camera:
    height_m, focal = dice.uniform(2.2, 3.2), dice.uniform(1.55, 1.8)
    _, down, ahead = unit((0.0, height_m - dice.uniform(0.4, 0.7), 4.8))
    return Camera(height_m, down, ahead, focal)


def _draw_objects(dice: Dice, camera: Camera, count: int) -> tuple[SceneObject, ...]:
    placed: list[SceneObject] = []
    while len(placed) < count:
        placed = _try_objects(dice, camera, count)
    return tuple(placed)


def _try_objects(dice: Dice, camera: Camera, count: int) -> list[SceneObject]:
    """Objects that go together, fewer than `count` if no room was found (four large ones may not fit)."""
    colours = dice.sample(tuple(COLOURS), count)
    kinds = [(dice.choice(SHAPES), colour, dice.choice(tuple(SIZES))) for colour in colours]
    placed: list[SceneObject] = []
    for _ in range(TRIES):
        candidate = _draw_place(dice, camera, kinds[len(placed)])
        if _is_in_frame(candidate) and all(_goes_with(candidate, other) for other in placed):
            placed.append(candidate)
            if len(placed) == count:
                break
    return placed


def _draw_place(dice: Dice, camera: Camera, kind: tuple[str, str, str]) -> SceneObject:
    z_m, slope, turn = dice.uniform(NEAREST_M, FARTHEST_M), dice.uniform(-0.55, 0.55), dice.uniform(-0.4, 0.4)
    return place(camera, *kind, x_m=slope * z_m, z_m=z_m, turn=turn)


def _is_in_frame(candidate: SceneObject) -> bool:
    return min(candidate.bounds) > FRAME_MARGIN and max(candidate.bounds) < 1 - FRAME_MARGIN


def _goes_with(one: SceneObject, other: SceneObject) -> bool:
    """Whether the two stand apart, hide little of each other and have at least one clear relation."""
    room_m = one.reach_m + other.reach_m + GAP_M
    x_m, z_m = one.x_m - other.x_m, one.z_m - other.z_m
    if x_m * x_m + z_m * z_m < room_m * room_m or _overlap(one, other) > MOST_OVERLAP:
        return False
    pairs = ((one, other), (other, one))
    return any(is_clearly_left(*pair) or is_clearly_in_front(*pair) for pair in pairs)


def _overlap(one: SceneObject, other: SceneObject) -> float:
    """Area that both bounds share, as a fraction of the smaller."""
    left, top = max(one.bounds[0], other.bounds[0]), max(one.bounds[1], other.bounds[1])
    right, bottom = min(one.bounds[2], other.bounds[2]), min(one.bounds[3], other.bounds[3])
    return max(right - left, 0) * max(bottom - top, 0) / min(area(one), area(other))


def area(one: SceneObject) -> float:
    """Area of the bounds, as a fraction of the image."""
    left, top, right, bottom = one.bounds
    return (right - left) * (bottom - top)


def _bounds(
    camera: Camera, shape: str, x_m: float, z_m: float, turn: float, radius_m: float, height_m: float
) -> Bounds:
    if shape == "sphere":
        return _sphere_bounds(camera, camera.view(x_m, radius_m, z_m), radius_m)
    cosine, sine = (radius_m * part for part in cosine_and_sine(turn))
    corners = [(cosine * i - sine * j, sine * i + cosine * j) for i in (-1, 1) for j in (-1, 1)]
    base = [(x_m + x, 0.0, z_m + z) for x, z in corners]
    top = [(x_m, height_m, z_m)] if shape == "cone" else [(x, height_m, z) for x, _, z in base]
    return camera.image_bounds(base + top)


def _sphere_bounds(camera: Camera, centre: Triple, radius_m: float) -> Bounds:
    """Bounds from the tangents to the circle in which each axis plane cuts the sphere."""
    right, above, depth = centre
    scale = 0.5 * camera.focal / (depth * depth - radius_m * radius_m)
    reach_x = radius_m * sqrt(right * right + depth * depth - radius_m * radius_m)
    reach_y = radius_m * sqrt(above * above + depth * depth - radius_m * radius_m)
    column, row = 0.5 + scale * right * depth, 0.5 - scale * above * depth
    return column - scale * reach_x, row - scale * reach_y, column + scale * reach_x, row + scale * reach_y


def unit(vector: Triple) -> Triple:
    x, y, z = vector
    length = sqrt(x * x + y * y + z * z)
    return x / length, y / length, z / length
