"""Config of the data sets of an evaluation: rendered scenes, own folders, and the layouts in which owners publish.

Folders are local or s3://. A published layout is read as its owners unpack it; nothing is converted first.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from tips_ray.config.schema import Schema


class ScenesConfig(Schema):
    """Rendered scenes with exact labels, depth and both kinds of captions; made when needed."""

    kind: Literal["scenes"] = "scenes"
    train: PositiveInt = 256
    test: PositiveInt = 128


class LabelledFolderConfig(Schema):
    """`train/images`, `train/labels`, `val/images`, `val/labels`: images, and PNGs with one class per pixel."""

    kind: Literal["labelled_folder"] = "labelled_folder"
    folder: str | None = None
    """Folder of the data; None: its tasks are skipped."""
    class_names: tuple[str, ...]
    """Names of the classes, class 0 first."""
    ignore_index: int | None = None
    """Label of pixels that do not count."""


class GeometryFolderConfig(Schema):
    """`train/images`, `train/depth`, `train/normals`, and the same below `val`; depth or normals may be absent.

    Depth is a 16-bit PNG, or `.npy` in metres; 0 or NaN means none. Normals are `.npy` [height, width, 3] with unit
    vectors; any other vector means none.
    """

    kind: Literal["geometry_folder"] = "geometry_folder"
    folder: str | None = None
    """Folder of the data; None: its tasks are skipped."""
    depth_unit_m: PositiveFloat = 0.001
    """Metres per unit of a depth PNG."""


class CaptionedFolderConfig(Schema):
    """`images` beside `captions.csv`, whose columns are `image` and `caption`; an image may have several lines."""

    kind: Literal["captioned_folder"] = "captioned_folder"
    folder: str | None = None
    """Folder of the data; None: its tasks are skipped."""


class ClassFolderConfig(Schema):
    """`train/CLASS/*.jpg` and `val/CLASS/*.jpg`: the class of an image is its folder. Without `train`: zero-shot."""

    kind: Literal["class_folder"] = "class_folder"
    folder: str | None = None
    """Folder of the data; None: its tasks are skipped."""
    class_names: dict[str, str] = {}
    """Name of a folder's class in texts, such as `n01440764: tench`; default: the folder's name."""


class PublishedConfig(Schema):
    """A data set in its owners' layout."""

    home: ClassVar[str]
    """Name of its folder below `data_root`."""
    folder: str | None = None
    """Folder of the data; None: the folder's usual name below the suite's `data_root`, or its tasks are skipped."""


class Voc2012Config(PublishedConfig):
    """PASCAL VOC 2012 segmentation, `VOCdevkit/VOC2012`; 21 classes, 255 is void and does not count.

    `trainaug` needs the labels of SBD in `SegmentationClassAug` and a list `trainaug.txt` or `aug.txt`, as
    mmsegmentation's `voc_aug.py` writes them. Test images are those of `val.txt`.
    """

    home = "VOCdevkit/VOC2012"
    kind: Literal["voc2012"] = "voc2012"
    train: Literal["train", "trainaug"] = "trainaug"


class PascalContextConfig(PublishedConfig):
    """Pascal Context, `VOCdevkit/VOC2010` with `SegmentationClassContext`, as mmsegmentation converts it.

    With 60 classes, class 0 is the background; with 59, label 0 does not count and labels shift down by one.
    """

    home = "VOCdevkit/VOC2010"
    kind: Literal["pascal_context"] = "pascal_context"
    classes: Literal[59, 60] = 59


class Ade20kConfig(PublishedConfig):
    """ADE20k SceneParsing, `ADEChallengeData2016`; 150 classes, whose names stand in `objectInfo150.txt`.

    Labels of the files are 0..150: 0 does not count, and 1..150 become classes 0..149 (`reduce_zero_label`).
    """

    home = "ADEChallengeData2016"
    kind: Literal["ade20k"] = "ade20k"


class NyuLabelledConfig(PublishedConfig):
    """NYUv2, the 1,449 labelled images: `nyu_depth_v2_labeled.mat` beside `splits.mat` (795 to learn from, 654 test).

    Normals come from `all_normals.pklz` beside them, if it is there.
    """

    home = "nyu_depth_v2_labeled"
    kind: Literal["nyu_labelled"] = "nyu_labelled"
    raw_depth: bool = False
    """Measured depth (`rawDepths`, with holes) instead of the filled one (`depths`)."""
    center_crop_px: PositiveInt | None = None
    """Side of a square crop from the centre; Probe3D has 480."""


class NyuBtsConfig(PublishedConfig):
    """NYUv2 as BTS prepared it, `nyu_depth_v2`: 24,231 images in `sync`, 654 in `official_splits/test`.

    Depth is a 16-bit PNG in millimetres. The lists `nyudepthv2_{train,test}_files_with_gt.txt` lie in the folder or
    in `train_test_inputs` below it.
    """

    home = "nyu_depth_v2"
    kind: Literal["nyu_bts"] = "nyu_bts"
    every: PositiveInt = 1
    """Learn from every n-th image of the list."""


class NyuGeonetConfig(PublishedConfig):
    """Normals of NYUv2 as in Probe3D: the training set of GeoNet in `train` (.mat files), and the labelled 654 images.

    Two training files that Probe3D leaves out as bad (places 6919 and 21181 of the sorted list) are left out of a
    complete list.
    """

    home = "nyu_geonet"
    kind: Literal["nyu_geonet"] = "nyu_geonet"
    center_crop_px: PositiveInt | None = 480
    """Side of a square crop from the centre."""
    every: PositiveInt = 1
    """Learn from every n-th image."""


class NaviConfig(PublishedConfig):
    """NAVI v1, `navi_v1/OBJECT/{multiview-*,wild_set}`, by Probe3D's rules: learn from multiview, test in the wild.

    Objects without both are left out. Images are cropped around the object; depth is in metres; normals are computed
    from depth. Probe3D lists files in the order of the file system; here they are sorted, so that `every` takes the
    same images everywhere.
    """

    home = "navi_v1"
    kind: Literal["navi"] = "navi"
    every: PositiveInt = 4
    """Use every n-th image of both lists."""
    relative_depth: bool = False
    """Scale the depth of each image to [0.01, 1] instead of metres: Probe3D's `navi_reldepth`."""


class ImagenetConfig(PublishedConfig):
    """ImageNet-1k: folders of classes, `val` flat with the devkit, or the Parquet files of the Hugging Face hub.

    Class 0 is the first WordNet id in alphabetical order in all three. Names of folders' classes come from
    `LOC_synset_mapping.txt` or the devkit's `meta.mat`; those of Parquet stand in its metadata.
    """

    home = "imagenet"
    kind: Literal["imagenet"] = "imagenet"


class KarpathyConfig(PublishedConfig):
    """Flickr30k or COCO in Karpathy's splits: `dataset_flickr30k.json` or `dataset_coco.json` beside the images.

    Test images: 1,000 of Flickr30k, 5,000 of COCO's val2014. Images lie in `flickr30k-images` or `val2014`.
    """

    home = "karpathy"
    kind: Literal["karpathy"] = "karpathy"
    name: Literal["flickr30k", "coco"]
    captions_per_image: PositiveInt = 5
    """Captions that count, from the first; some COCO images have six or seven."""


class CocoCaptionsConfig(PublishedConfig):
    """COCO val2017: `annotations/captions_val2017.json` and `val2017`. These are not the images of Karpathy's test."""

    home = "coco"
    kind: Literal["coco_captions"] = "coco_captions"
    captions_per_image: PositiveInt = 5
    """Captions that count, from the first."""


class DocciConfig(PublishedConfig):
    """DOCCI: `docci_descriptions.jsonlines` and `images`; the 5,000 test images, one long description each.

    A description goes to the text encoder whole; its tokenizer keeps the first tokens (64 for TIPS) and drops the
    rest. Sentences are not averaged.
    """

    home = "docci"
    kind: Literal["docci"] = "docci"


UNED_SETS = ("cars", "sop", "inshop", "inat", "met", "gldv2", "food2k", "rp2k")
"""Domains of UnED in the order of its numbers."""


class UnedConfig(PublishedConfig):
    """UnED: `info_files/SET/{test,index}.json` beside `images`, as its repository prepares them.

    Met, GLDv2 and InShop have an index of their own; the queries of the other sets are their index too.
    """

    home = "uned"
    kind: Literal["uned"] = "uned"
    sets: tuple[Literal["cars", "sop", "inshop", "inat", "met", "gldv2", "food2k", "rp2k"], ...] = UNED_SETS
    """Sets to read; the merged index has those alone."""


DatasetConfig = Annotated[
    ScenesConfig
    | LabelledFolderConfig
    | GeometryFolderConfig
    | CaptionedFolderConfig
    | ClassFolderConfig
    | Voc2012Config
    | PascalContextConfig
    | Ade20kConfig
    | NyuLabelledConfig
    | NyuBtsConfig
    | NyuGeonetConfig
    | NaviConfig
    | ImagenetConfig
    | KarpathyConfig
    | CocoCaptionsConfig
    | DocciConfig
    | UnedConfig,
    Field(discriminator="kind"),
]
