"""Where rays meet the four shapes, and where their shadows fall. All arithmetic is +, -, *, / and square root in
float64, so the result does not depend on the platform; float32 would lose 0.2 mm where a ray grazes a round side.

S samples per pixel, h x w pixels of a part of the image. A ray's parameter is depth in metres along the camera's axis.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy import ndarray

from tips_ray.scenes.world import SceneObject, Triple, cosine_and_sine


@dataclass(frozen=True, eq=False)
class Rays:
    """World direction of each ray per metre of depth. The camera has no roll, so columns and rows separate."""

    x_S1w: ndarray
    y_Sh1: ndarray
    z_Sh1: ndarray

    def window(self, rows: slice, columns: slice) -> "Rays":
        return Rays(self.x_S1w[:, :, columns], self.y_Sh1[:, rows], self.z_Sh1[:, rows])

    def single(self) -> "Rays":
        """The same rays in float32."""
        return Rays(*(part.astype(np.float32) for part in (self.x_S1w, self.y_Sh1, self.z_Sh1)))


@dataclass(frozen=True, eq=False)
class Surface:
    """What rays see of one object, float32; where `hit_Shw` is False the rest is meaningless but finite."""

    hit_Shw: ndarray
    depth_Shw: ndarray
    normal_Shw: tuple[ndarray, ndarray, ndarray]
    """World components of the outward unit normal."""


def surface(thing: SceneObject, camera_height_m: float, rays: Rays) -> Surface:
    """First hit of each ray on `thing`, which must lie wholly ahead of the camera."""
    origin = (-thing.x_m, camera_height_m, -thing.z_m)
    shape = {"sphere": _sphere, "box": _box, "cone": _cone, "cylinder": _cylinder}[thing.shape]
    return shape(thing, origin, rays)


def shadow_distance(thing: SceneObject, light: Triple, x_hw: ndarray, z_hw: ndarray) -> ndarray:
    """Metres from ground points to the edge of the shadow of `thing`, negative inside; x and z from its base centre."""
    if thing.shape == "sphere":
        return _sphere_shadow(thing.radius_m, light, x_hw, z_hw)
    tip = (-light[0] / light[1] * thing.height_m, -light[2] / light[1] * thing.height_m)
    if thing.shape == "box":
        return _box_shadow(thing, tip, x_hw, z_hw)
    length = max(sqrt(tip[0] * tip[0] + tip[1] * tip[1]), 1e-6)
    along_hw = (x_hw * tip[0] + z_hw * tip[1]) / length
    across_hw = np.abs(x_hw * tip[1] - z_hw * tip[0]) / length
    if thing.shape == "cone":
        return _cone_shadow(thing.radius_m, length, along_hw, across_hw)
    beyond_hw = along_hw - np.clip(along_hw, 0, length)
    return np.sqrt(beyond_hw * beyond_hw + across_hw * across_hw) - thing.radius_m


def _sphere(thing: SceneObject, origin: Triple, rays: Rays) -> Surface:
    radius = thing.radius_m
    x, y, z = origin[0], origin[1] - radius, origin[2]
    a = rays.x_S1w**2 + (rays.y_Sh1**2 + rays.z_Sh1**2)
    b = x * rays.x_S1w + (y * rays.y_Sh1 + z * rays.z_Sh1)
    enter, _, hit = _roots(a, b, x * x + y * y + z * z - radius * radius)
    enter, single = enter.astype(np.float32), rays.single()
    out = (x + enter * single.x_S1w, y + enter * single.y_Sh1, z + enter * single.z_Sh1)
    scale = 1 / np.sqrt(out[0] * out[0] + out[1] * out[1] + out[2] * out[2])
    return Surface(hit, enter, (out[0] * scale, out[1] * scale, out[2] * scale))


def _box(thing: SceneObject, origin: Triple, rays: Rays) -> Surface:
    cosine, sine = cosine_and_sine(thing.turn)
    x, z = cosine * origin[0] + sine * origin[2], cosine * origin[2] - sine * origin[0]
    enter_x, leave_x = _slab(x, cosine * rays.x_S1w + sine * rays.z_Sh1, -thing.radius_m, thing.radius_m)
    enter_z, leave_z = _slab(z, cosine * rays.z_Sh1 - sine * rays.x_S1w, -thing.radius_m, thing.radius_m)
    enter_y, leave_y = _slab(origin[1], rays.y_Sh1, 0, thing.height_m)
    enter_side, leave = np.maximum(enter_x, enter_z), np.minimum(np.minimum(leave_x, leave_z), leave_y)
    enter = np.maximum(enter_side, enter_y)
    hit = enter < leave
    on_top = enter_y > enter_side
    on_x = (enter_x > enter_z) & ~on_top
    toward_x, toward_z = np.copysign(1, x), np.copysign(1, z)  # a face is seen from the camera's side of it
    normal_x = np.where(on_x, cosine * toward_x, -sine * toward_z)
    normal_z = np.where(on_x, sine * toward_x, cosine * toward_z)
    side = (~on_top).astype(np.float32)
    normal = (side * normal_x.astype(np.float32), 1 - side, side * normal_z.astype(np.float32))
    return Surface(hit, np.where(hit, enter, 0).astype(np.float32), normal)


def _cylinder(thing: SceneObject, origin: Triple, rays: Rays) -> Surface:
    x, y, z = origin
    a = rays.x_S1w**2 + rays.z_Sh1**2
    b = x * rays.x_S1w + z * rays.z_Sh1
    enter_side, leave_side, meets = _roots(a, b, x * x + z * z - thing.radius_m * thing.radius_m)
    enter_y, leave_y = _slab(y, rays.y_Sh1, 0, thing.height_m)
    enter = np.maximum(enter_side, enter_y)
    hit = meets & (enter < np.minimum(leave_side, leave_y))
    depth = np.where(hit, enter, 0).astype(np.float32)
    side = (enter_side > enter_y).astype(np.float32)
    single = rays.single()
    out_x, out_z = x + depth * single.x_S1w, z + depth * single.z_Sh1
    scale = side / np.sqrt(out_x * out_x + out_z * out_z + 1e-12)
    return Surface(hit, depth, (out_x * scale, 1 - side, out_z * scale))


def _cone(thing: SceneObject, origin: Triple, rays: Rays) -> Surface:
    """Hits on a cone. No ray of these cameras is steeper than the slant, so rays meet only half of the double cone."""
    x, y, z = origin[0], origin[1] - thing.height_m, origin[2]
    slope = thing.radius_m / thing.height_m
    a = rays.x_S1w**2 + (rays.z_Sh1**2 - (slope * rays.y_Sh1) ** 2)
    b = x * rays.x_S1w + (z * rays.z_Sh1 - slope * slope * y * rays.y_Sh1)
    enter_side, leave_side, meets = _roots(a, b, x * x + z * z - slope * slope * y * y)
    enter_y, leave_y = _slab(origin[1], rays.y_Sh1, 0, thing.height_m)
    enter = np.maximum(enter_side, enter_y)
    hit = meets & (enter < np.minimum(leave_side, leave_y))
    depth = np.where(hit, enter, 0).astype(np.float32)
    single = rays.single()
    out_x, out_z = x + depth * single.x_S1w, z + depth * single.z_Sh1
    slant = sqrt(1 + slope * slope)
    scale = 1 / (slant * np.sqrt(out_x * out_x + out_z * out_z + 1e-12))
    return Surface(hit, depth, (out_x * scale, np.full_like(depth, slope / slant), out_z * scale))


def _roots(a: ndarray, b: ndarray, c: float) -> tuple[ndarray, ndarray, ndarray]:
    """Roots of a t^2 + 2 b t + c for a > 0: the smaller, the larger, and whether they exist."""
    quarter = b * b - a * c
    root = np.sqrt(np.maximum(quarter, 0))
    return (-b - root) / a, (root - b) / a, quarter > 0


def _slab(origin: float, direction: ndarray, low: float, high: float) -> tuple[ndarray, ndarray]:
    """Where a ray enters and leaves the space between two parallel planes; infinite for a parallel ray."""
    with np.errstate(divide="ignore"):
        one, other = (low - origin) / direction, (high - origin) / direction
    return np.minimum(one, other), np.maximum(one, other)


def _sphere_shadow(radius: float, light: Triple, x_hw: ndarray, z_hw: ndarray) -> ndarray:
    """Distance at which the line from a point to the light passes the centre, minus the radius."""
    along_hw = radius * light[1] - x_hw * light[0] - z_hw * light[2]
    squared_hw = x_hw * x_hw + z_hw * z_hw + radius * radius - along_hw * along_hw
    return np.sqrt(np.maximum(squared_hw, 0)) - radius


def _box_shadow(thing: SceneObject, tip: tuple[float, float], x_hw: ndarray, z_hw: ndarray) -> ndarray:
    """The shadow is the base swept to `tip`: a hexagon, three pairs of parallel sides."""
    cosine, sine = cosine_and_sine(thing.turn)
    length = max(sqrt(tip[0] * tip[0] + tip[1] * tip[1]), 1e-6)
    distances = []
    for x, z in ((cosine, sine), (-sine, cosine), (tip[1] / length, -tip[0] / length)):
        reach = thing.radius_m * (abs(x * cosine + z * sine) + abs(z * cosine - x * sine))
        sweep = x * tip[0] + z * tip[1]
        across_hw = x * x_hw + z * z_hw - sweep / 2
        distances.append(np.abs(across_hw) - (reach + abs(sweep) / 2))
    return np.maximum(np.maximum(distances[0], distances[1]), distances[2])


def _cone_shadow(radius: float, length: float, along_hw: ndarray, across_hw: ndarray) -> ndarray:
    """Distance to the outline: the base disc and the two tangents to it from the shadow of the tip."""
    sine = min(radius / length, 1.0)
    cosine = sqrt(1 - sine * sine)
    disc_hw = np.sqrt(along_hw * along_hw + across_hw * across_hw) - radius
    tangent_hw = across_hw * cosine - (length - along_hw) * sine
    return np.where(along_hw * cosine > across_hw * sine, tangent_hw, disc_hw)
