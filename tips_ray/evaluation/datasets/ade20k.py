"""ADE20k SceneParsing in its owners' folder, `ADEChallengeData2016`: 150 classes, label 0 does not count."""

from collections import Counter

from tips_ray import storage
from tips_ray.config.evaluation_data import Ade20kConfig
from tips_ray.evaluation.datasets.examples import Dataset, Examples
from tips_ray.evaluation.datasets.images import counted_parts
from tips_ray.evaluation.datasets.labels import VOID, LabelRule, labelled

NAMES, CLASSES = "objectInfo150.txt", 150


def ade20k(config: Ade20kConfig, size_px: int, with_train: bool) -> Dataset:
    """Read `images/{training,validation}` and `annotations/{training,validation}`.

    Raises:
        ValueError: the list of names is wrong, no image can be used, or a map has a label above 150.
    """
    folder = str(config.folder)
    rule = LabelRule(CLASSES, VOID, zero_is_void=True)

    def part(name: str, left_out: Counter[str]) -> Examples:
        images, maps = (storage.join(folder, kind, name) for kind in ("images", "annotations"))
        files = storage.list_names(images)
        pairs = [(storage.join(images, file), storage.join(maps, f"{file.rsplit('.', 1)[0]}.png")) for file in files]
        return labelled(pairs, rule, size_px, images, left_out)

    names = class_names(storage.join(folder, NAMES))
    train, test, left_out = counted_parts(part, "training" if with_train else None, "validation")
    return Dataset(test, train, names, VOID, left_out=left_out)


def class_names(uri: str) -> tuple[str, ...]:
    """First name of each class: `building` of `building, edifice`. The file is a table with tabs.

    Raises:
        ValueError: it has no column `Name`, or other than 150 classes.
    """
    header, *lines = [line.split("\t") for line in storage.read_text(uri).splitlines() if line.strip()]
    titles = [title.strip() for title in header]
    if "Name" not in titles or len(lines) != CLASSES:
        raise ValueError(f"{uri} has {len(lines)} lines below {titles}; take the file of 150 classes from its owners")
    place = titles.index("Name")
    return tuple(line[place].replace(";", ",").split(",")[0].strip() for line in lines)
