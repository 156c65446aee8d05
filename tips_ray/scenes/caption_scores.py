"""Scores captions against their scenes, by regular expressions.

A thing is a pair of colour and shape; a caption names it wherever `colour shape` stands in it. A relation is read from
sentences such as "A small red cone is left of and behind the blue box."; "left of" and "right of", and likewise
"in front of" and "behind", state the same fact from the other end and count as one.
"""

import re
from collections.abc import Iterable, Sequence

from tips_ray.scenes.captions import RELATIONS, relations, synthetic_caption
from tips_ray.scenes.world import COLOURS, SHAPES, SIZES, SceneObject

Thing = tuple[str, str]
Fact = tuple[Thing, str, Thing]

THING = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")
_NAME = rf"(?:a|the) (?:(?:{'|'.join(SIZES)}) )?((?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)}))"
_RELATION = f"(?:{'|'.join(RELATIONS)})"
SENTENCE = re.compile(rf"\b{_NAME} is ({_RELATION}(?: and {_RELATION})*) {_NAME}\b", re.IGNORECASE)
INVERSE = {"right of": "left of", "behind": "in front of"}


def named_things(caption: str) -> set[Thing]:
    """Each pair of colour and shape once, however often it is named."""
    return {(colour, shape) for colour, shape in THING.findall(caption)}


def stated_facts(caption: str) -> set[Fact]:
    """The relations stated, as "left of" and "in front of"; each fact once."""
    found = set()
    for one, words, other in SENTENCE.findall(caption):
        for relation in words.split(" and "):
            found.add(_fact(_thing(one), relation, _thing(other)))
    return found


def true_facts(objects: Sequence[SceneObject]) -> set[Fact]:
    """The facts that `relations` finds clear; a pair too close to judge has none."""
    kinds = [(thing.colour, thing.shape) for thing in objects]
    return {_fact(kinds[i], relation, kinds[j]) for i, relation, j in relations(objects)}


def score_captions(captions: Sequence[str], scenes: Sequence[Sequence[SceneObject]]) -> dict[str, float]:
    """Shares over all captions together, each in [0, 1]; `scenes` holds the objects of each caption's scene.

    Precision of things is the share of named things that are in the scene; recall is the share of the scene's things
    that are named. Precision of a relation ("side": left, right; "depth": front, behind) is the share of stated facts
    that are true of the scene; a fact about a thing that is not there is wrong. Recall is the share of the facts in the
    scene's description that are stated. `exact` is the share of captions equal to that description.

    Raises:
        ValueError: there are no captions, or not as many as scenes.
    """
    if not captions or len(captions) != len(scenes):
        raise ValueError(f"captions ({len(captions)}) and scenes ({len(scenes)}) must be equally many, at least 1")
    truths = [synthetic_caption(objects) for objects in scenes]
    named, stated = [named_things(text) for text in captions], [stated_facts(text) for text in captions]
    things = [{(thing.colour, thing.shape) for thing in objects} for objects in scenes]
    told = [stated_facts(text) for text in truths]
    true = [true_facts(objects) for objects in scenes]
    scores = {"thing_precision": _share(named, things), "thing_recall": _share(things, named)}
    for axis, relation in (("side", "left of"), ("depth", "in front of")):
        stated_here, told_here = _only(stated, relation), _only(told, relation)
        scores[f"{axis}_precision"] = _share(stated_here, true)
        scores[f"{axis}_recall"] = _share(told_here, stated_here)
    scores["exact"] = sum(text == truth for text, truth in zip(captions, truths, strict=True)) / len(captions)
    return scores


def _thing(words: str) -> Thing:
    colour, shape = words.lower().split()
    return colour, shape


def _fact(one: Thing, relation: str, other: Thing) -> Fact:
    relation = relation.lower()
    return (other, INVERSE[relation], one) if relation in INVERSE else (one, relation, other)


def _only(facts: Iterable[set[Fact]], relation: str) -> list[set[Fact]]:
    return [{fact for fact in some if fact[1] == relation} for some in facts]


def _share(claims: Sequence[set], truths: Sequence[set]) -> float:
    """Share of all claims that are among the truths of the same scene; 0 if nothing is claimed."""
    right = sum(len(claim & truth) for claim, truth in zip(claims, truths, strict=True))
    return right / max(sum(map(len, claims)), 1)
