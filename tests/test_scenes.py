import hashlib
import json
import re

import numpy as np
import pytest

from tips_ray.scenes import (
    CLASS_NAMES,
    COLOURS,
    GROUND,
    SHAPE_WORDS,
    SHAPES,
    SIZES,
    SKY,
    Camera,
    World,
    draw_world,
    place,
    relations,
    render_scene,
    render_scenes,
    render_world,
    synthetic_caption,
    web_caption,
)
from tips_ray.scenes.dice import Dice
from tips_ray.scenes.geometry import shadow_distance

LIGHT = (0.36, 0.8, -0.48)  # of length 1
LEVEL = Camera(height_m=0.85, sine=0.0, cosine=1.0, focal=1.5)
DOWN = Camera(height_m=2.5, sine=0.352, cosine=0.936, focal=1.6)
INDICES = range(40)


def _world(*objects, camera):
    return World(camera, objects, LIGHT, (220, 230, 240), (120, 160, 220), (190, 180, 160), 1.0, 0.1, (0.0, 0.0))


def _rays(camera, size):
    """World direction per metre of depth through each pixel centre, [H, W, 3]."""
    across = ((np.arange(size) + 0.5) * 2 / size - 1) / camera.focal
    right, up = np.meshgrid(across, -across)
    return np.stack([right, up * camera.cosine - camera.sine, up * camera.sine + camera.cosine], -1)


def _points(scene):
    rays = _rays(scene.camera, len(scene.depth_HW))
    return rays * scene.depth_HW[..., None].astype(float) + [0, scene.camera.height_m, 0]


def _outside(thing, points):
    """A function of points: below 0 inside `thing`, 0 on its surface."""
    x, y, z = points[..., 0] - thing.x_m, points[..., 1], points[..., 2] - thing.z_m
    around, radius, height = np.hypot(x, z), thing.radius_m, thing.height_m
    if thing.shape == "sphere":
        return np.sqrt(x**2 + (y - radius) ** 2 + z**2) - radius
    if thing.shape == "cone":
        return np.maximum(around - radius * (1 - y / height), -y)
    if thing.shape == "box":
        angle = 2 * np.arctan(thing.turn)
        turned = x * np.cos(angle) + z * np.sin(angle), z * np.cos(angle) - x * np.sin(angle)
        around, radius = np.maximum(abs(turned[0]), abs(turned[1])), radius
    return np.maximum.reduce([around - radius, y - height, -y])


def _owners(scene):
    """Index of the object each pixel shows, -1 where none; from depth alone."""
    near = np.stack([abs(_outside(thing, _points(scene))) for thing in scene.objects])
    return np.where(scene.labels_HW > GROUND, near.argmin(0), -1), near.min(0)


def test_a_sphere_seen_head_on_has_the_depth_of_the_closed_form():
    scene = render_world(_world(place(LEVEL, "sphere", "red", "large", 0, 5), camera=LEVEL), 15)
    assert scene.depth_HW[7, 7] == pytest.approx(5 - 0.85)
    np.testing.assert_allclose(scene.normals_HWC[7, 7], (0, 0, 1), atol=1e-6)
    assert CLASS_NAMES[scene.labels_HW[7, 7]] == "sphere"


def test_a_sphere_seen_head_on_has_the_outline_of_the_closed_form():
    scene = render_world(_world(place(LEVEL, "sphere", "red", "large", 0, 5), camera=LEVEL), 301)
    radius_px = 0.85 / (5**2 - 0.85**2) ** 0.5 * 1.5 * 301 / 2  # tangent of the angle of a tangent ray
    assert (scene.labels_HW == CLASS_NAMES.index("sphere")).sum() == pytest.approx(np.pi * radius_px**2, rel=0.005)


def test_a_box_seen_head_on_shows_one_square_face():
    scene = render_world(_world(place(LEVEL, "box", "red", "large", 0, 5), camera=LEVEL), 101)
    face = scene.labels_HW == CLASS_NAMES.index("box")
    radius_m = SIZES["large"] * 0.86
    np.testing.assert_allclose(scene.depth_HW[50, 50], 5 - radius_m, rtol=1e-6)
    half_px = radius_m / (5 - radius_m) * 1.5 * 101 / 2
    assert face[50].sum() == 2 * int(half_px) + 1  # the pixel in the middle and whole steps to both sides


def test_ground_pixels_lie_on_the_ground_and_sky_pixels_miss_it():
    for index in INDICES:
        scene = render_scene(1, index, 56)
        is_ground, is_sky = scene.labels_HW == GROUND, scene.labels_HW == SKY
        assert is_ground.any() and is_sky.any()
        np.testing.assert_allclose(_points(scene)[is_ground][:, 1], 0, atol=1e-6)
        far = _rays(scene.camera, 56)[is_sky] * 20 + [0, scene.camera.height_m, 0]
        assert (far[:, 1] > -1e-9).all() and scene.depth_HW.max() <= 20


def test_depth_and_normal_are_zero_exactly_where_the_label_is_sky():
    for index in INDICES:
        scene = render_scene(2, index, 56)
        is_sky = scene.labels_HW == SKY
        np.testing.assert_array_equal(scene.depth_HW == 0, is_sky)
        np.testing.assert_array_equal((scene.normals_HWC == 0).all(-1), is_sky)


def test_object_pixels_lie_on_the_surface_of_their_object_and_have_its_label():
    for index in INDICES:
        scene = render_scene(3, index, 56)
        owner, distance = _owners(scene)
        seen = owner >= 0
        assert distance[seen].max() < 1e-5
        shapes = np.array([CLASS_NAMES.index(thing.shape) for thing in scene.objects])
        np.testing.assert_array_equal(scene.labels_HW[seen], shapes[owner[seen]])


def test_no_ray_passes_through_an_object_before_its_depth():
    steps = np.linspace(0, 1, 300)[:, None, None, None]
    for index in INDICES[:12]:
        scene = render_scene(4, index, 28)
        reach = np.where(scene.labels_HW == SKY, 20, scene.depth_HW - 0.01)
        points = _rays(scene.camera, 28) * reach[..., None] * steps + [0, scene.camera.height_m, 0]
        for thing in scene.objects:
            assert _outside(thing, points).min() > -1e-9, (index, thing.name)


def test_normals_are_unit_and_face_the_camera():
    for index in INDICES:
        scene = render_scene(5, index, 56)
        solid = scene.labels_HW != SKY
        np.testing.assert_allclose(np.linalg.norm(scene.normals_HWC[solid], axis=-1), 1, atol=1e-5)
        across = ((np.arange(56) + 0.5) * 2 / 56 - 1) / scene.camera.focal
        toward = np.stack(np.broadcast_arrays(-across, across[:, None], 1.0), -1)  # from the pixel to the camera
        assert ((scene.normals_HWC * toward).sum(-1)[solid] > -1e-5).all()


def test_normals_are_the_slope_of_the_surface():
    for index in INDICES[:20]:
        scene = render_scene(6, index, 56)
        points, (owner, _) = _points(scene), _owners(scene)
        for i, thing in enumerate(scene.objects):
            at = points[owner == i]
            slope = np.stack([_outside(thing, at + d) - _outside(thing, at - d) for d in np.eye(3) * 1e-4], -1)
            slope /= np.linalg.norm(slope, axis=-1, keepdims=True)
            sine, cosine = scene.camera.sine, scene.camera.cosine
            axes = np.array([[1, 0, 0], [0, cosine, sine], [0, sine, -cosine]])
            agreement = (slope @ axes.T * scene.normals_HWC[owner == i]).sum(-1)
            assert (agreement > 0.999).mean() > 0.9, thing.name  # the rest: difference taken across an edge


def test_the_ground_normal_points_up():
    scene = render_world(_world(place(DOWN, "cone", "red", "small", 0, 5), camera=DOWN), 28)
    np.testing.assert_allclose(scene.normals_HWC[-1, 0], (0, 0.936, 0.352), atol=1e-6)


def test_a_map_is_the_ray_of_the_pixel_centre_at_every_size():
    for index in INDICES[:10]:
        coarse, fine = render_scene(7, index, 42), render_scene(7, index, 126)
        np.testing.assert_array_equal(coarse.labels_HW, fine.labels_HW[1::3, 1::3])
        np.testing.assert_allclose(coarse.depth_HW, fine.depth_HW[1::3, 1::3], rtol=1e-6)
        np.testing.assert_allclose(coarse.normals_HWC, fine.normals_HWC[1::3, 1::3], atol=1e-5)


def test_a_pixel_is_the_mean_light_of_its_area():
    for index in INDICES[:10]:
        coarse, fine = render_scene(8, index, 42), render_scene(8, index, 42 * 5)
        light = np.square(fine.image_HWC / 255.0).reshape(42, 5, 42, 5, 3).mean((1, 3))
        error = abs(np.sqrt(light) * 255 - coarse.image_HWC)
        assert error.mean() < 1.5 and np.percentile(error, 99) < 25


def test_an_object_shows_its_own_colour():
    for colour, value in COLOURS.items():
        scene = render_world(_world(place(DOWN, "box", colour, "large", 0, 5), camera=DOWN), 42)
        mean = np.sqrt(np.square(scene.image_HWC[scene.labels_HW == CLASS_NAMES.index("box")] / 255.0).mean(0)) * 255
        distances = [np.linalg.norm(mean - np.array(other)) for other in COLOURS.values()]
        assert list(COLOURS)[np.argmin(distances)] == colour, (value, mean)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shadow_falls_where_the_way_to_the_light_is_blocked(shape):
    thing = place(DOWN, shape, "red", "large", 0.3, 5, turn=0.2)
    x, z = np.meshgrid(np.linspace(-3, 3, 61), np.linspace(-3, 3, 61))
    ground = np.stack([x + thing.x_m, np.zeros_like(x), z + thing.z_m], -1)
    steps = np.linspace(0.001, 4, 1000)[:, None, None, None]
    blocked = (_outside(thing, ground + steps * LIGHT) < 0).any(0)
    distance = shadow_distance(thing, LIGHT, x, z)
    sure = abs(distance) > 0.03
    np.testing.assert_array_equal((distance < 0)[sure], blocked[sure])
    assert blocked.sum() > 100


def test_the_ground_is_darker_in_a_shadow():
    thing = place(DOWN, "cylinder", "red", "large", 0, 5)
    bare = render_world(_world(camera=DOWN), 56).image_HWC.astype(int)
    scene = render_world(_world(thing, camera=DOWN), 56)
    points = _points(scene)
    distance = shadow_distance(thing, LIGHT, points[..., 0] - thing.x_m, points[..., 2] - thing.z_m)
    dark = (scene.labels_HW == GROUND) & (distance < -0.1)
    assert dark.sum() > 5 and (scene.image_HWC[dark] < 0.85 * bare[dark]).all()
    far = distance > 1
    far[:, 20:36] = False  # where the object stands
    assert far.sum() > 800 and (scene.image_HWC[far] == bare[far]).all()


def test_a_hidden_object_has_no_visible_share():
    front = place(LEVEL, "box", "red", "large", 0, 4)
    behind = place(LEVEL, "sphere", "blue", "small", 0, 6)
    scene = render_world(_world(behind, front, camera=LEVEL), 56)
    alone = render_world(_world(front, camera=LEVEL), 56)
    assert [thing.visible_share for thing in scene.objects] == [0, 1]
    assert scene.objects[1].image_share == (alone.labels_HW == CLASS_NAMES.index("box")).mean()
    np.testing.assert_array_equal(scene.image_HWC[alone.labels_HW == 3], alone.image_HWC[alone.labels_HW == 3])


def test_shares_count_the_pixels_of_each_object():
    for index in INDICES[:20]:
        scene = render_scene(9, index, 56)
        owner, _ = _owners(scene)
        for i, thing in enumerate(scene.objects):
            alone = render_world(_world(thing, camera=scene.camera), 56).labels_HW > GROUND
            assert thing.image_share == (owner == i).mean()
            assert thing.visible_share == (owner == i).sum() / alone.sum()


def test_objects_lie_within_their_bounds_and_bounds_within_the_image():
    for index in INDICES:
        scene = render_scene(10, index, 56)
        owner, _ = _owners(scene)
        for i, thing in enumerate(scene.objects):
            rows, columns = np.nonzero(owner == i)
            left, top, right, bottom = thing.bounds
            assert 0 < left <= (columns.min() + 0.5) / 56 and (columns.max() + 0.5) / 56 <= right < 1
            assert 0 < top <= (rows.min() + 0.5) / 56 and (rows.max() + 0.5) / 56 <= bottom < 1


def test_a_scene_depends_on_seed_and_index_alone():
    one, again, *others = (render_scene(*key, 28) for key in ((5, 6), (5, 6), (5, 7), (6, 6), (6, 5)))
    in_a_row = render_scenes(5, [3, 6], 28)[1]
    for same in (again, in_a_row):
        for name in ("image_HWC", "labels_HW", "depth_HW", "normals_HWC"):
            np.testing.assert_array_equal(getattr(one, name), getattr(same, name))
        assert (one.objects, one.web_caption, one.synthetic_caption) == (
            same.objects,
            same.web_caption,
            same.synthetic_caption,
        )
    assert all((one.image_HWC != other.image_HWC).any() and one.objects != other.objects for other in others)


def test_scenes_are_those_the_captioner_was_trained_on():
    """A change of the world or its look changes the data: make the captioner's weights and this digest again."""
    digest = hashlib.sha256()
    for scene in render_scenes(0, range(8)):
        for array in (scene.image_HWC, scene.labels_HW, scene.depth_HW, scene.normals_HWC):
            digest.update(array.tobytes())
        digest.update(f"{scene.web_caption}\n{scene.synthetic_caption}\n".encode())
    assert digest.hexdigest()[:16] == "94c3c1b9dfcc3566"


@pytest.mark.parametrize("size", [1, 14, 70, 98, 224])
def test_every_size_has_the_same_composition(size):
    scene, usual = render_scene(0, 3, size), render_scene(0, 3)
    assert (scene.image_HWC.shape, scene.image_HWC.dtype) == ((size, size, 3), np.uint8)
    assert (scene.labels_HW.shape, scene.labels_HW.dtype) == ((size, size), np.uint8)
    assert (scene.depth_HW.shape, scene.depth_HW.dtype) == ((size, size), np.float32)
    assert (scene.normals_HWC.shape, scene.normals_HWC.dtype) == ((size, size, 3), np.float32)
    assert scene.synthetic_caption == usual.synthetic_caption and scene.web_caption == usual.web_caption


@pytest.mark.parametrize("size", [0, -14])
def test_a_size_below_1_is_refused(size):
    with pytest.raises(ValueError, match=rf"image_size_px \({size}\) must be at least 1"):
        render_scene(0, 0, size)


@pytest.mark.parametrize("key, name", [((-1, 0), "seed"), ((0, -1), "index"), ((2**64, 0), "seed")])
def test_a_key_outside_64_bits_is_refused(key, name):
    with pytest.raises(ValueError, match=rf"{name} \(-?\d+\) must be in \[0, 2\*\*64\)"):
        render_scene(*key)


def test_a_camera_that_looks_down_steeper_than_a_cone_is_refused():
    with pytest.raises(ValueError, match="cones need less slope"):
        Camera(height_m=2.0, sine=0.8, cosine=0.6, focal=1.5)


def test_an_unknown_kind_of_object_is_refused():
    for kind in (("torus", "red", "small"), ("box", "mauve", "small"), ("box", "red", "huge")):
        with pytest.raises(ValueError, match="must be one of"):
            place(DOWN, *kind, 0, 5)


def test_worlds_hold_two_to_four_objects_of_all_kinds_with_clear_relations():
    worlds = [draw_world(Dice(11, index)) for index in range(400)]
    assert {len(world.objects) for world in worlds} == {2, 3, 4}
    kinds = {(thing.shape, thing.colour, thing.size) for world in worlds for thing in world.objects}
    assert len(kinds) == len(SHAPES) * len(COLOURS) * len(SIZES)
    for world in worlds:
        count = len(world.objects)
        assert len({thing.colour for thing in world.objects}) == count
        assert {(i, j) for i, _, j in relations(world.objects)} == {
            (i, j) for i in range(count) for j in range(count) if i != j
        }


def test_relations_are_those_of_hand_placed_objects():
    near_left = place(DOWN, "sphere", "red", "small", -1, 4)
    far_right = place(DOWN, "box", "blue", "small", 1, 6)
    assert set(relations([near_left, far_right])) == {
        (0, "left of", 1),
        (1, "right of", 0),
        (0, "in front of", 1),
        (1, "behind", 0),
    }


def test_what_is_too_close_to_judge_has_no_relation():
    at = place(DOWN, "sphere", "red", "small", 0, 5)
    assert relations([at, place(DOWN, "box", "blue", "small", 0.3, 5.4)]) == ()
    large = place(DOWN, "sphere", "blue", "large", 1.5, 5.62)  # its centre is farther, its near edge is as near
    assert {name for _, name, _ in relations([at, large])} == {"left of", "right of"}


def test_the_description_of_hand_placed_objects():
    near_left = place(DOWN, "sphere", "red", "large", -1, 4)
    far_right = place(DOWN, "box", "blue", "small", 1, 6)
    beside = place(DOWN, "cone", "green", "small", 0.2, 4.2)
    assert synthetic_caption([far_right, near_left, beside]) == (
        "A small green cone is right of a large red sphere. A small blue box is right of and behind the red sphere."
    )
    close = place(DOWN, "cone", "green", "large", -0.9, 4.1)
    assert synthetic_caption([close]) == "There is a large green cone."
    assert set(synthetic_caption([near_left, close]).rstrip(".").split(". ")) == {
        "There is a large green cone",
        "There is a large red sphere",
    }


def test_descriptions_name_every_object_and_every_relation_in_them_is_true():
    sentence = re.compile(r"^A (.+?) is (.+?) (?:a|the) (.+)$")
    truth = {
        "left of": lambda one, other: one.x_m < other.x_m and one.image_x < other.image_x,
        "right of": lambda one, other: one.x_m > other.x_m and one.image_x > other.image_x,
        "in front of": lambda one, other: one.z_m < other.z_m,
        "behind": lambda one, other: one.z_m > other.z_m,
    }
    for index in range(300):
        objects = draw_world(Dice(12, index)).objects
        caption = synthetic_caption(objects)
        assert len(caption.split()) < 45
        assert all(caption.lower().count(f"a {thing.name}") == 1 for thing in objects)
        by_colour = {thing.colour: thing for thing in objects}
        for one, words, other in (sentence.findall(part)[0] for part in caption.rstrip(".").split(". ")):
            one, other = (by_colour[next(word for word in name.split() if word in COLOURS)] for name in (one, other))
            assert all(truth[word](one, other) for word in words.split(" and ")), caption


def test_a_web_caption_names_exactly_one_object_of_its_scene():
    shape_of = {word: shape for shape, words in SHAPE_WORDS.items() for word in words}
    captions = []
    for index in range(400):
        dice = Dice(13, index)
        objects = draw_world(dice).objects
        caption = web_caption(objects, dice)
        words = re.findall(r"[a-z]+", caption.lower())
        (colour,), (shape,) = ([word for word in words if word in known] for known in (COLOURS, shape_of))
        (thing,) = [thing for thing in objects if thing.colour == colour]
        assert thing.shape == shape_of[shape]
        assert all(word == thing.size for word in words if word in SIZES)
        captions.append(caption)
    assert len(set(captions)) > 250


def test_attributes_are_plain_json():
    scene = render_scene(0, 0, 28)
    back = json.loads(json.dumps(scene.attributes()))
    assert back == scene.attributes()
    assert [entry["colour"] for entry in back] == [thing.colour for thing in scene.objects]
    assert back[0]["x_m"] == scene.objects[0].x_m and back[0]["visible_share"] == scene.objects[0].visible_share
