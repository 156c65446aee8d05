"""Pictures of a world with exact maps.

S samples per pixel (a 3 x 3 grid whose middle one is the pixel centre), H x W the image, h x w a part of it,
C channels. The maps are those of the ray through the pixel centre; only the image is the mean of the samples.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, floor
from operator import index as as_integer
from typing import Any

import numpy as np
from numpy import ndarray

from tips_ray.scenes.captions import synthetic_caption, web_caption
from tips_ray.scenes.dice import Dice
from tips_ray.scenes.geometry import Rays, Surface, shadow_distance, surface
from tips_ray.scenes.world import COLOURS, SHAPES, Bounds, Camera, SceneObject, Triple, World, draw_world, unit

CLASS_NAMES = ("sky", "ground", *SHAPES)
SKY, GROUND = 0, 1
CENTRE = 4  # index of the sample at the pixel centre
GROUND_END_M = 20.0  # depth at which the ground ends and the sky begins; keeps depth bounded
SHADOW_EDGE_M = 0.2
CONTACT = 1.6  # radii around an object within which it darkens the ground
SUN, FILL = 0.72, 0.52  # light from one direction, and from all around


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture with its exact maps, objects and captions."""

    image_HWC: ndarray
    """uint8, RGB."""
    labels_HW: ndarray
    """uint8, index into CLASS_NAMES."""
    depth_HW: ndarray
    """float32 metres along the camera's axis (not along the ray), at most 20; 0 where sky."""
    normals_HWC: ndarray
    """float32 unit vectors in camera coordinates: x right, y up, z toward the viewer; 0 where sky."""
    objects: tuple[SceneObject, ...]
    camera: Camera
    web_caption: str
    """Alt-text-like; names exactly one of the objects."""
    synthetic_caption: str
    """Names all objects and states relations between them."""

    def attributes(self) -> list[dict[str, Any]]:
        """The objects as values that JSON can hold."""
        return [thing.attributes() for thing in self.objects]


@dataclass(frozen=True, eq=False)
class Canvas:
    """The picture painted so far, with its maps."""

    light_CHW: ndarray
    """Linear light, float32."""
    owner_HW: ndarray
    """uint8: SKY, GROUND, or GROUND + 1 + position in the world's objects."""
    depth_HW: ndarray
    normals_HWC: ndarray


def render_scene(seed: int, index: int, image_size_px: int = 112) -> Scene:
    """Scene `index` of the world `seed`. The composition does not depend on the image size.

    Raises:
        ValueError: image_size_px is below 1; seed or index is outside [0, 2**64).
    """
    dice = Dice(seed, index)
    world = draw_world(dice)
    return render_world(world, image_size_px, web_caption(world.objects, dice))


def render_scenes(seed: int, indices: Iterable[int], image_size_px: int = 112) -> list[Scene]:
    """Scenes rendered one by one: the objects' windows differ, so a batch would gain nothing."""
    return [render_scene(seed, index, image_size_px) for index in indices]


def render_world(world: World, image_size_px: int, web_caption: str = "") -> Scene:
    """The picture of `world`, with its maps and description; the circles around its objects' bases must be apart.

    Raises:
        ValueError: image_size_px is below 1.
    """
    if as_integer(image_size_px) < 1:
        raise ValueError(f"image_size_px ({image_size_px}) must be at least 1")
    rays = _rays(world.camera, image_size_px)
    canvas = _background(world, rays)
    own_pixels = {}
    for i in sorted(range(len(world.objects)), key=lambda i: _order(world.objects[i]), reverse=True):
        own_pixels[i] = _paint(canvas, world, i, rays)
    objects = tuple(_seen(thing, canvas.owner_HW, i, own_pixels[i]) for i, thing in enumerate(world.objects))
    classes = [SKY, GROUND] + [CLASS_NAMES.index(thing.shape) for thing in objects]
    labels_HW = np.array(classes, np.uint8)[canvas.owner_HW]
    image_HWC = _display(canvas.light_CHW)
    caption = synthetic_caption(objects)
    return Scene(image_HWC, labels_HW, canvas.depth_HW, canvas.normals_HWC, objects, world.camera, web_caption, caption)


@lru_cache(maxsize=16)
def _offsets(image_size_px: int) -> ndarray:
    """Sample positions across the image, left to right, in halves of the image side from its middle; [3, W]."""
    pixels = np.arange(image_size_px) + 0.5 + np.array([[-1], [0], [1]]) / 3
    return pixels * (2 / image_size_px) - 1


def _rays(camera: Camera, image_size_px: int) -> Rays:
    offsets_3W = _offsets(image_size_px) / camera.focal
    x_S1W = np.tile(offsets_3W, (3, 1))[:, None, :]
    up_SH1 = -np.repeat(offsets_3W, 3, axis=0)[:, :, None]
    return Rays(x_S1W, up_SH1 * camera.cosine - camera.sine, up_SH1 * camera.sine + camera.cosine)


def _order(thing: SceneObject) -> float:
    """Sort key: of two objects whose base circles are apart, the one with the larger value is never in front."""
    return thing.x_m * thing.x_m + thing.z_m * thing.z_m - thing.reach_m * thing.reach_m


def _background(world: World, rays: Rays) -> Canvas:
    camera, size = world.camera, rays.x_S1w.shape[2]
    down_H = -rays.y_Sh1[CENTRE, :, 0]
    is_ground_H = down_H * GROUND_END_M > camera.height_m
    depth_H = np.where(is_ground_H, camera.height_m / np.maximum(down_H, 1e-6), 0).astype(np.float32)
    depth_HW = np.broadcast_to(depth_H[:, None], (size, size)).copy()
    owner_HW = np.broadcast_to(is_ground_H.astype(np.uint8)[:, None], (size, size)).copy()
    normals_HWC = np.zeros((size, size, 3), np.float32)
    normals_HWC[is_ground_H] = (0, camera.cosine, camera.sine)
    return Canvas(_background_light(world, rays), owner_HW, depth_HW, normals_HWC)


def _background_light(world: World, rays: Rays) -> ndarray:
    """Sky over tiled ground; the row that holds both is their mean by area. Linear light [C, H, W]."""
    camera, size = world.camera, rays.x_S1w.shape[2]
    above_H = rays.y_Sh1[CENTRE, :, 0] + camera.height_m / GROUND_END_M
    step = 2 / size / camera.focal * camera.cosine  # change of y from row to row
    sky_H = np.clip(above_H / step + 0.5, 0, 1)
    horizon_C1, zenith_C1 = _linear(world.horizon), _linear(world.zenith)
    sky_CH = (horizon_C1 + (zenith_C1 - horizon_C1) * np.clip(above_H * 2, 0, 1)) * sky_H
    light_CHW = np.empty((3, size, size), np.float32)
    light_CHW[:] = sky_CH[:, :, None]
    rows = slice(int((sky_H == 1).sum()), size)
    down_h1 = np.maximum(-rays.y_Sh1[CENTRE, rows], camera.height_m / GROUND_END_M)
    depth_h1 = (camera.height_m / down_h1).astype(np.float32)
    haze_h = (1 - sky_H[rows]) * np.square(depth_h1[:, 0] / GROUND_END_M) * 0.8
    bare_Ch = (_linear(world.ground) * (1 - sky_H[rows] - haze_h)).astype(np.float32)
    light_CHW[:, rows] += bare_Ch[:, :, None] * _ground_pattern(world, rays, rows, depth_h1)
    light_CHW[:, rows] += (horizon_C1 * haze_h)[:, :, None]
    return light_CHW


def _ground_pattern(world: World, rays: Rays, rows: slice, depth_h1: ndarray) -> ndarray:
    """Brightness of the ground in `rows`, around 1: checker and shadows."""
    size = rays.x_S1w.shape[2]
    rays = rays.window(rows, slice(None)).single()
    x_hW, z_h1 = depth_h1 * rays.x_S1w[CENTRE], depth_h1 * rays.z_Sh1[CENTRE]
    pixel_h1 = depth_h1 * (2 / size / world.camera.focal)  # side of a pixel, and its length along the ground
    length_h1 = pixel_h1 * depth_h1 / world.camera.height_m
    tiles_hW = _stripes(x_hW, pixel_h1, world.tile_m, world.shift[0])
    tiles_hW *= _stripes(z_h1, length_h1, world.tile_m, world.shift[1])
    pattern_hW = 1 + world.contrast * tiles_hW
    pattern_hW *= _sunlit(world, x_hW, z_h1, rows.start)
    return pattern_hW


def _stripes(metres: ndarray, footprint: ndarray, tile_m: float, shift: float) -> ndarray:
    """Stripes of alternating -1 and 1, averaged over a pixel's footprint."""
    middle, half = metres / tile_m + shift, footprint * (0.5 / tile_m)
    return (_triangle_wave(middle + half) - _triangle_wave(middle - half)) / (2 * half)


def _triangle_wave(value: ndarray) -> ndarray:
    """Triangle wave with period 2 and slopes -1 and 1: the integral of the stripes."""
    return np.abs(value - 2 * np.floor(value * 0.5) - 1)


def _sunlit(world: World, x_hW: ndarray, z_h1: ndarray, first_row: int) -> ndarray:
    """Light factor, 1 in the open, less in a shadow and close to an object; [h, W]."""
    lit_hW = np.ones_like(x_hW)
    for thing in world.objects:
        reach_m = CONTACT * thing.reach_m
        rows, columns = _pixels(_shadow_bounds(world, thing), x_hW.shape[1])
        rows = slice(max(rows.start - first_row, 0), max(rows.stop - first_row, 0))
        x_hw, z_hw = x_hW[rows, columns] - thing.x_m, z_h1[rows] - thing.z_m
        inside_hw = np.clip(0.5 - shadow_distance(thing, world.light, x_hw, z_hw) / SHADOW_EDGE_M, 0, 1)
        dark_hw = inside_hw * inside_hw * (1.35 - 0.9 * inside_hw)  # smooth step to 0.45
        near_hw = np.maximum(1 - (x_hw * x_hw + z_hw * z_hw) / (reach_m * reach_m), 0)
        np.minimum(lit_hW[rows, columns], 1 - np.maximum(dark_hw, 0.42 * near_hw), out=lit_hW[rows, columns])
    return lit_hW


def _shadow_bounds(world: World, thing: SceneObject) -> Bounds:
    """Image bounds of the ground that `thing` darkens."""
    reach_m = CONTACT * thing.reach_m
    tip_x, tip_z = (-world.light[axis] / world.light[1] * thing.height_m for axis in (0, 2))
    xs = (thing.x_m + min(tip_x, 0) - reach_m, thing.x_m + max(tip_x, 0) + reach_m)
    zs = (max(thing.z_m + min(tip_z, 0) - reach_m, 0.1), thing.z_m + max(tip_z, 0) + reach_m)
    return world.camera.image_bounds((x, 0.0, z) for x in xs for z in zs)


def _pixels(bounds: Bounds, image_size_px: int) -> tuple[slice, slice]:
    """Rows and columns that hold `bounds`."""
    left, top, right, bottom = (min(max(edge, 0.0), 1.0) * image_size_px for edge in bounds)
    return slice(floor(top), ceil(bottom)), slice(floor(left), ceil(right))


def _paint(canvas: Canvas, world: World, i: int, rays: Rays) -> int:
    """Paint object `i` over what lies behind it; return the number of pixels that it covers."""
    thing = world.objects[i]
    rows, columns = window = _pixels(thing.bounds, canvas.owner_HW.shape[1])
    part = rays.window(rows, columns)
    seen = surface(thing, world.camera.height_m, part)
    _paint_light(canvas.light_CHW[:, rows, columns], seen, world.light, _linear(COLOURS[thing.colour]))
    hit_hw = seen.hit_Shw[CENTRE]
    canvas.owner_HW[window][hit_hw] = GROUND + 1 + i
    np.copyto(canvas.depth_HW[window], seen.depth_Shw[CENTRE], where=hit_hw)
    normal_hwC = _in_camera(world.camera, [component[CENTRE] for component in seen.normal_Shw])
    np.copyto(canvas.normals_HWC[window], normal_hwC, where=hit_hw[:, :, None])
    return int(hit_hw.sum())


def _paint_light(light_Chw: ndarray, seen: Surface, sun: Triple, colour_C1: ndarray) -> None:
    """Blend in place: the share of samples that hit shows the object, the rest what lies behind it."""
    shade_Shw, gloss_Shw = _shade(seen, sun)
    samples = len(shade_Shw)
    hit_Shw = seen.hit_Shw.astype(np.float32)
    light_Chw *= 1 - hit_Shw.sum(0) / samples
    light_Chw += colour_C1[:, :, None] * ((shade_Shw * hit_Shw).sum(0) / samples)
    light_Chw += (gloss_Shw * hit_Shw).sum(0) / samples


def _shade(seen: Surface, sun: Triple) -> tuple[ndarray, ndarray]:
    """Light that the surface scatters per unit of colour, and white light that it mirrors."""
    x, y, z = seen.normal_Shw
    facing = np.maximum(x * sun[0] + y * sun[1] + z * sun[2], 0)
    half = unit((sun[0], sun[1] + 0.35, sun[2] - 0.94))  # between the sun and a viewer straight ahead
    gloss = np.clip(x * half[0] + y * half[1] + z * half[2], 0, 1)
    for _ in range(5):
        gloss *= gloss
    return SUN * facing + (0.3 * FILL * y + 0.7 * FILL), 0.35 * gloss


def _in_camera(camera: Camera, normal: list[ndarray]) -> ndarray:
    x, y, z = normal
    up, toward = y * camera.cosine + z * camera.sine, y * camera.sine - z * camera.cosine
    return np.stack((x, up, toward), axis=-1)


def _seen(thing: SceneObject, owner_HW: ndarray, i: int, own_pixels: int) -> SceneObject:
    pixels = int((owner_HW == GROUND + 1 + i).sum())
    return replace(thing, visible_share=pixels / max(own_pixels, 1), image_share=pixels / owner_HW.size)


def _linear(colour: Triple) -> ndarray:
    """Display value to light by a gamma of 2, whose inverse is exact everywhere: float32 [C, 1]."""
    return np.square(np.array(colour, np.float32)[:, None] / 255)


def _display(light_CHW: ndarray) -> ndarray:
    values_CHW = np.sqrt(np.minimum(light_CHW, 1)) * 255 + 0.5
    return np.ascontiguousarray(values_CHW.astype(np.uint8).transpose(1, 2, 0))
