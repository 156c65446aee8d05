"""PASCAL VOC 2012 and Pascal Context in their owners' folders, with lists of image names. 255 is void."""

from collections import Counter

from tips_ray import storage
from tips_ray.config.evaluation_data import PascalContextConfig, Voc2012Config
from tips_ray.evaluation.datasets.examples import Dataset, Examples
from tips_ray.evaluation.datasets.images import counted_parts
from tips_ray.evaluation.datasets.labels import VOID, LabelRule, labelled

VOC_CLASSES = tuple(
    "background,aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,dining table,dog,horse,motorbike,person,"
    "potted plant,sheep,sofa,train,television".split(",")
)
CONTEXT_CLASSES = tuple(
    "background,aeroplane,bag,bed,bedclothes,bench,bicycle,bird,boat,book,bottle,building,bus,cabinet,car,cat,ceiling,"
    "chair,cloth,computer,cow,cup,curtain,dog,door,fence,floor,flower,food,grass,ground,horse,keyboard,light,motorbike,"
    "mountain,mouse,person,plate,platform,potted plant,road,rock,sheep,shelves,sidewalk,sign,sky,snow,sofa,table,track,"
    "train,tree,truck,television,wall,water,window,wood".split(",")
)
"""The order of mmsegmentation's labels; names of two words are written as such, because texts are made of them."""
AUGMENTED = ("trainaug.txt", "aug.txt")


def voc2012(config: Voc2012Config, size_px: int, with_train: bool) -> Dataset:
    """Read the images that `ImageSets/Segmentation` lists; labels of `SegmentationClass` come first.

    A map of the augmented set is used only for an image without one of VOC, as in mmsegmentation.

    Raises:
        ValueError: a list is missing, no image can be used, or a map has a label other than 0..20 and 255.
    """
    folder = str(config.folder)
    rule = LabelRule(len(VOC_CLASSES), VOID)

    def part(name: str, left_out: Counter[str]) -> Examples:
        names = _augmented(folder) if name == "trainaug.txt" else _listed(folder, "Segmentation", name)
        own = set(storage.list_names(storage.join(folder, "SegmentationClass")))
        pairs = []
        for image in names:
            labels = "SegmentationClass" if f"{image}.png" in own else "SegmentationClassAug"
            pairs.append(_pair(folder, image, labels))
        return labelled(pairs, rule, size_px, folder, left_out)

    train, test, left_out = counted_parts(part, f"{config.train}.txt" if with_train else None, "val.txt")
    return Dataset(test, train, VOC_CLASSES, VOID, left_out=left_out)


def pascal_context(config: PascalContextConfig, size_px: int, with_train: bool) -> Dataset:
    """Read the images that `ImageSets/SegmentationContext` lists, with labels of `SegmentationClassContext`.

    Raises:
        ValueError: a list is missing, no image can be used, or a map has another label.
    """
    folder = str(config.folder)
    rule = LabelRule(config.classes, VOID, zero_is_void=config.classes == 59)

    def part(name: str, left_out: Counter[str]) -> Examples:
        names = _listed(folder, "SegmentationContext", name)
        pairs = [_pair(folder, image, "SegmentationClassContext") for image in names]
        return labelled(pairs, rule, size_px, folder, left_out)

    train, test, left_out = counted_parts(part, "train.txt" if with_train else None, "val.txt")
    return Dataset(test, train, CONTEXT_CLASSES[60 - config.classes :], VOID, left_out=left_out)


def _augmented(folder: str) -> list[str]:
    """Names of VOC's training images and of those that SBD adds; `aug.txt` lists the latter alone."""
    lists = storage.join(folder, "ImageSets", "Segmentation")
    found = [name for name in AUGMENTED if storage.exists(storage.join(lists, name))]
    if not found:
        raise ValueError(
            f"{lists} has neither {' nor '.join(AUGMENTED)}: make the list and SegmentationClassAug with "
            "mmsegmentation's tools/dataset_converters/voc_aug.py, or set train=train"
        )
    names = _listed(folder, "Segmentation", found[0])
    return list(dict.fromkeys([*_listed(folder, "Segmentation", "train.txt"), *names]))


def _listed(folder: str, kind: str, name: str) -> list[str]:
    """Names of images in a list; what follows a name in its line is ignored."""
    lines = storage.read_text(storage.join(folder, "ImageSets", kind, name)).splitlines()
    return [line.split()[0] for line in lines if line.strip()]


def _pair(folder: str, image: str, labels: str) -> tuple[str, str]:
    return storage.join(folder, "JPEGImages", f"{image}.jpg"), storage.join(folder, labels, f"{image}.png")
