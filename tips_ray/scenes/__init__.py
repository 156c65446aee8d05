"""A small rendered world: pictures with exact labels, depth, normals and captions, each a function of (seed, index).

World metres: x right, y up, z ahead of the viewer; the origin lies on the ground below the camera.
Camera coordinates: x right, y up, z toward the viewer.
"""

from tips_ray.scenes.captions import RELATIONS, SHAPE_WORDS, relations, synthetic_caption, web_caption
from tips_ray.scenes.render import CLASS_NAMES, GROUND, SKY, Scene, render_scene, render_scenes, render_world
from tips_ray.scenes.world import COLOURS, SHAPES, SIZES, Camera, SceneObject, World, draw_world, place

__all__ = [
    "CLASS_NAMES",
    "COLOURS",
    "Camera",
    "GROUND",
    "RELATIONS",
    "SHAPES",
    "SHAPE_WORDS",
    "SIZES",
    "SKY",
    "Scene",
    "SceneObject",
    "World",
    "draw_world",
    "place",
    "relations",
    "render_scene",
    "render_scenes",
    "render_world",
    "synthetic_caption",
    "web_caption",
]
