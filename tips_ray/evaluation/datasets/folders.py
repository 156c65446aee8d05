"""Data sets in folders, local or s3://. Unusable images are counted and left out."""

from collections import Counter
from collections.abc import Iterable, Sequence

from torch import Tensor

from tips_ray import storage
from tips_ray.config.evaluation_data import CaptionedFolderConfig, LabelledFolderConfig
from tips_ray.data.sources.folder import table_header, table_lines
from tips_ray.data.sources.texts import NoCaptionError, texts
from tips_ray.errors import listed
from tips_ray.evaluation.datasets.examples import Dataset, Examples
from tips_ray.evaluation.datasets.images import ImageStack, by_stem, read_images, read_parts
from tips_ray.evaluation.datasets.labels import LabelRule, labelled

TABLE = "captions.csv"
OWN_CURE = (
    "there are {{}} class_names: name it, or say which label does not count (ignore_index is {}); a mask of 0 and 255 "
    "must be written as 0 and 1"
)


def labelled_folder(config: LabelledFolderConfig, size_px: int, with_train: bool) -> Dataset:
    """Read `train` and `val`, each with `images/NAME.jpg` and `labels/NAME.png`.

    Raises:
        ValueError: a folder is missing or has no usable image, or a label map is no map of these classes.
    """
    assert config.folder is not None

    rule = LabelRule(len(config.class_names), config.ignore_index, OWN_CURE.format(config.ignore_index))

    def part(uri: str, left_out: Counter[str]) -> Examples:
        labels, names = by_stem(storage.join(uri, "labels")), storage.list_names(storage.join(uri, "images"))
        pairs = [(storage.join(uri, "images", name), labels.get(name.rsplit(".", 1)[0])) for name in names]
        found = labelled(pairs, rule, size_px, uri, left_out)
        _require_foreground(uri, found.labels, config)
        return found

    train, test, left_out = read_parts(config.folder, part, with_train)
    return Dataset(test, train, config.class_names, config.ignore_index, left_out=left_out)


def captioned_folder(config: CaptionedFolderConfig, size_px: int, with_train: bool = False) -> Dataset:
    """Read `images` and `captions.csv`; images without a caption are counted but not read.

    Raises:
        ValueError: the table is missing or has other columns, or there is no usable image.
    """
    assert config.folder is not None
    named = _captions(storage.join(config.folder, TABLE))
    uncaptioned = set(storage.list_names(storage.join(config.folder, "images"))) - named.keys()
    left_out = +Counter({"no caption": len(uncaptioned)})
    pairs = [(storage.join(config.folder, "images", name), texts_) for name, texts_ in named.items()]
    return Dataset(captioned(pairs, size_px, config.folder, left_out), left_out=left_out)


def captioned(
    pairs: Iterable[tuple[str, Sequence[str]]], size_px: int, folder: str, left_out: Counter[str]
) -> Examples:
    """Read images with their captions, given as pairs of a URI and texts.

    Raises:
        ValueError: no image can be used; the message names `folder`.
    """
    pairs, images, captions = list(pairs), ImageStack(size_px), []
    found = read_images((uri for uri, _ in pairs), size_px, left_out)
    for image, (_, its_captions) in zip(found, pairs, strict=True):
        if image is not None:
            images.append(image.pixels_SS3)
            captions.append(its_captions)
    return Examples(images.images(folder, left_out), captions={"caption": captions})


def _require_foreground(folder: str, labels: Sequence[Tensor], config: LabelledFolderConfig) -> None:
    """Require that the ignored label is not all that there is beside one class, as in masks of 0 and 255.

    Raises:
        ValueError: it is, and several classes have names.
    """
    found = {label for labels_HW in labels for label in labels_HW.unique().tolist()}
    if config.ignore_index in found and len(found) == 2 and len(config.class_names) > 1:
        (counted,) = found - {config.ignore_index}
        raise ValueError(
            f"{folder}/labels: every pixel is {counted} or {config.ignore_index}, and ignore_index "
            f"({config.ignore_index}) does not count, so that one class alone would be left; write masks with the "
            "number of a class instead of it, or leave ignore_index out and give each label a name"
        )


def _captions(uri: str) -> dict[str, list[str]]:
    """Captions by image, in the order of the table; empty ones are ignored."""
    columns = table_header(uri)
    if not {"image", "caption"} <= set(columns):
        raise ValueError(f"{uri} has the columns {listed(columns)}; it needs image and caption")
    captions: dict[str, list[str]] = {}
    for line in table_lines(uri):
        name = str(line["image"] or "").strip()
        try:
            found = texts(line["caption"])
        except NoCaptionError as error:
            raise ValueError(f"{uri}: {name}: {error}; correct it") from None
        if name and found:
            captions.setdefault(name, []).extend(found)
    return captions
