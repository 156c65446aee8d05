import pytest

from tips_ray.scenes import Camera, place, render_scenes, synthetic_caption
from tips_ray.scenes.caption_scores import named_things, score_captions, stated_facts, true_facts

CAMERA = Camera(height_m=2.5, sine=0.352, cosine=0.936, focal=1.6)
RED_BALL = place(CAMERA, "sphere", "red", "large", x_m=-1.0, z_m=3.5)
BLUE_BOX = place(CAMERA, "box", "blue", "small", x_m=1.0, z_m=5.5)
PAIR = (RED_BALL, BLUE_BOX)  # the red one is left of and in front of the blue one
RED, BLUE = ("red", "sphere"), ("blue", "box")


def test_a_thing_named_twice_counts_once():
    caption = "A small blue box is behind a red sphere. The blue box is right of the red sphere. A sphere is red."
    assert named_things(caption) == {RED, BLUE}


def test_a_colour_without_its_shape_names_nothing():
    assert named_things("red and blue, a box, a darkred sphere, a red spherebox") == set()


def test_a_relation_stated_from_either_end_is_one_fact():
    forward = "A large red sphere is left of and in front of a small blue box."
    backward = "The blue box is right of the red sphere. The small blue box is behind the large red sphere."
    assert stated_facts(forward) == stated_facts(backward) == {(RED, "left of", BLUE), (RED, "in front of", BLUE)}


def test_the_facts_of_a_scene_are_its_clear_relations():
    assert true_facts(PAIR) == {(RED, "left of", BLUE), (RED, "in front of", BLUE)}
    beside = place(CAMERA, "box", "blue", "small", x_m=1.0, z_m=3.6)
    assert true_facts((RED_BALL, beside)) == {(RED, "left of", BLUE)}


def test_a_caption_half_right_is_scored_by_hand():
    scores = score_captions(["A small blue box is right of and in front of a large red sphere."], [PAIR])
    assert scores["thing_precision"] == scores["thing_recall"] == 1
    assert scores["side_precision"] == scores["side_recall"] == 1
    assert scores["depth_precision"] == scores["depth_recall"] == 0
    assert scores["exact"] == 0


def test_precision_and_recall_have_their_own_denominators():
    scores = score_captions(["A red sphere is left of a green cone.", "There is a blue box."], [PAIR, PAIR])
    assert scores["thing_precision"] == 2 / 3  # red sphere, blue box of these and green cone
    assert scores["thing_recall"] == 2 / 4
    assert scores["side_precision"] == 0  # nothing is left of a cone that is not there
    assert scores["side_recall"] == 0


def test_the_description_itself_scores_one_everywhere():
    scenes = [scene.objects for scene in render_scenes(seed=3, indices=range(30), image_size_px=16)]
    assert set(score_captions([synthetic_caption(objects) for objects in scenes], scenes).values()) == {1.0}


def test_an_empty_caption_scores_zero_everywhere():
    assert set(score_captions([""], [PAIR]).values()) == {0.0}


def test_captions_without_their_scenes_are_refused():
    with pytest.raises(ValueError, match=r"captions \(2\) and scenes \(1\)"):
        score_captions(["", ""], [PAIR])
    with pytest.raises(ValueError, match=r"captions \(0\)"):
        score_captions([], [])
