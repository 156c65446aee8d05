"""Words for a scene: relations between its objects, a full description, and a noisy web caption."""

from collections.abc import Sequence

from tips_ray.scenes.dice import Dice
from tips_ray.scenes.world import SceneObject, area, is_clearly_in_front, is_clearly_left

RELATIONS = ("left of", "right of", "in front of", "behind")
SHAPE_WORDS = {"sphere": ("ball", "sphere"), "box": ("cube", "box"), "cone": ("cone",), "cylinder": ("cylinder",)}
"""Words for a shape in web captions; descriptions use the shape's name."""
WEB_TEMPLATES = (
    "IMG_{number:04d} {thing}",
    "DSC{number:05d}.jpg {thing}",
    "buy {thing} online",
    "{thing} - stock photo",
    "{thing} | free shipping",
    "{thing} 3d render",
    "photo of a {thing}",
    "my new {thing}!!",
    "{thing} wallpaper hd",
    "{thing}, item no. {number}",
    "Pinterest: {thing} ideas",
    "{thing}",
)


def relations(objects: Sequence[SceneObject]) -> tuple[tuple[int, str, int], ...]:
    """All clear relations (i, relation, j), each in both directions; a pair too close to judge has none.

    Left and right are as the viewer sees them; in front and behind are by distance from the viewer along the ground.
    """
    found = []
    for i, one in enumerate(objects):
        for j, other in enumerate(objects):
            truths = (
                is_clearly_left(one, other),
                is_clearly_left(other, one),
                is_clearly_in_front(one, other),
                is_clearly_in_front(other, one),
            )
            found += [(i, name, j) for name, is_true in zip(RELATIONS, truths, strict=True) if is_true]
    return tuple(found)


def synthetic_caption(objects: Sequence[SceneObject]) -> str:
    """A description that names every object by size, colour and shape, and relates each to a larger one.

    It follows from the picture alone, so a captioner can learn it. It has at most 43 words for 4 objects. Objects must
    differ in colour, because a second mention names colour and shape only.
    """
    largest_first = sorted(objects, key=area, reverse=True)
    clear = relations(largest_first)
    sentences, named = [], set()
    for i in range(1, len(objects)):
        found = [[name for k, name, m in clear if (k, m) == (i, j)] for j in range(i)]
        anchor = max(range(i), key=lambda j: len(found[j]))
        if found[anchor]:
            other = largest_first[anchor]
            mention = f"the {other.colour} {other.shape}" if anchor in named else f"a {other.name}"
            sentences.append(f"A {largest_first[i].name} is {' and '.join(found[anchor])} {mention}.")
            named |= {i, anchor}
    sentences += [f"There is a {thing.name}." for i, thing in enumerate(largest_first) if i not in named]
    return " ".join(sentences)


def web_caption(objects: Sequence[SceneObject], dice: Dice) -> str:
    """A caption in the manner of alt texts that names exactly one of the objects; objects must differ in colour."""
    chosen = dice.choice(objects)
    words = [chosen.colour, dice.choice(SHAPE_WORDS[chosen.shape])]
    if dice.uniform(0, 1) < 0.4:
        words.insert(0, chosen.size)
    caption = dice.choice(WEB_TEMPLATES).format(thing=" ".join(words), number=dice.integer(0, 10_000))
    return dice.choice((caption, caption, caption.capitalize(), caption.title()))
