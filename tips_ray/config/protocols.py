"""Published protocols of evaluation as named presets: `TASK@WHOSE`.

A preset gives the keys of a task and of its data set. What a task of a suite sets itself wins, and results.json keeps
the whole task. A data set must be as its protocol says, because two protocols may not read the same images differently.
`differs` says what of a protocol cannot be done on features that are computed once.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from tips_ray.errors import listed

Tree = dict[str, Any]
ONCE = "images are squashed whole and encoded once: no crops, flips or colours in training"
NO_SLIDING = "no sliding windows: each image is squashed whole"


class Protocol(NamedTuple):
    """A preset."""

    source: str
    """Where the protocol is published."""
    task: Tree
    """Keys of the task."""
    data: Tree
    """Keys of its data set."""
    differs: tuple[str, ...] = ()
    """What differs here from the publication."""


_DINOV2, _DINOV3 = "DINOv2, arXiv:2304.07193, and its code", "DINOv3's dinov3/eval, July 2026"
_TIPS, _PROBE3D = "TIPS, arXiv:2410.16512; TIPSv2, arXiv:2604.12012", "Probe3D, arXiv:2404.08636, and its code"
_LINEAR: Tree = {"steps": 40_000, "batch_images": 16, "learning_rates": [1e-3], "weight_decay": 1e-4, "warmup": 0.0375}
_SEGMENTATION: Tree = {"kind": "segmentation", "train_size_px": 512, "probe": _LINEAR}
_DEPTH_PROBE: Tree = {"steps": 38_400, "batch_images": 16, "weight_decay": 0.01, "warmup": 1 / 3}
_NYU: Tree = {"kind": "nyu_bts"}
_DEPTH: Tree = {"kind": "depth", "train_size_px": 448, "eval_crop": "eigen", "max_depth_m": 10.0, "flip": True}
_DPT: Tree = {"hidden": 512, "learning_rate": 5e-4, "epochs": 10, "warmup": 0.15, "batch_images": 8}
_PROBE3D_LOSS = "the loss of depth is DINOv2's; Probe3D has other weights"
_UNSURE_RATE = "learning rate: ours (1e-3 as in segmentation)"
_NEIGHBOURS: Tree = {"kind": "neighbours", "neighbours": [10, 20, 100, 200], "temperature": 0.07}
_CLASSIFICATION: Tree = {
    "optimizer": "sgd",
    "weight_decay": 0.0,
    "warmup": 0.0,
    "steps": 12_500,
    "batch_images": 1024,
    "learning_rates": [1e-4, 1e-3, 1e-2, 1e-1, 1.0],
}
_TRUNCATED = "a description is cut after the text encoder's last token (64 for TIPS); TIPS does not say what it did"

PROTOCOLS: Mapping[str, Protocol] = {
    "voc@dinov2": Protocol(_DINOV2, _SEGMENTATION, {"kind": "voc2012", "train": "trainaug"}, (ONCE, NO_SLIDING)),
    "ade20k@dinov2": Protocol(_DINOV2, _SEGMENTATION, {"kind": "ade20k"}, (ONCE, NO_SLIDING)),
    "ade20k@dinov3": Protocol(
        _DINOV3,
        {**_SEGMENTATION, "probe": {**_LINEAR, "weight_decay": 1e-2}},
        {"kind": "ade20k"},
        (ONCE, NO_SLIDING, "the rate rises and falls linearly, and not by one cycle; no dropout"),
    ),
    "nyu_depth@dinov2": Protocol(
        _DINOV2,
        {**_DEPTH, "with_cls": True, "probe": {**_DEPTH_PROBE, "learning_rates": [1e-3]}},
        _NYU,
        (ONCE, _UNSURE_RATE),
    ),
    "nyu_depth@tips": Protocol(
        _TIPS,
        {**_DEPTH, "with_cls": True, "probe": {**_DEPTH_PROBE, "learning_rates": [1e-3, 1e-2, 3e-2]}},
        _NYU,
        (ONCE, "TIPS names DINOv2's probe and not its settings: the rate is the best of three on held-out images"),
    ),
    "nyu_depth@dinov3": Protocol(
        _DINOV3, {**_DEPTH, "with_cls": False, "probe": {**_DEPTH_PROBE, "learning_rates": [3e-4]}}, _NYU, (ONCE,)
    ),
    "nyu_depth@probe3d": Protocol(
        _PROBE3D,
        {"kind": "dpt_depth", "train_size_px": 480, "max_depth_m": 10.0, "eval_crop": "none", "decoder": _DPT},
        {"kind": "nyu_geonet", "center_crop_px": 480},
        (ONCE, _PROBE3D_LOSS),
    ),
    "nyu_normals@probe3d": Protocol(
        _PROBE3D,
        {"kind": "normals", "train_size_px": 480, "decoder": _DPT},
        {"kind": "nyu_geonet", "center_crop_px": 480},
        (ONCE, "the loss is 1 - cosine; Probe3D also learns its uncertainty"),
    ),
    "navi@probe3d": Protocol(
        _PROBE3D,
        {"kind": "dpt_depth", "train_size_px": 512, "max_depth_m": 1.0, "decoder": _DPT},
        {"kind": "navi", "every": 4, "relative_depth": False},
        (ONCE, _PROBE3D_LOSS, "files are sorted, Probe3D takes them as the file system lists them"),
    ),
    "navi_reldepth@probe3d": Protocol(
        _PROBE3D,
        {"kind": "dpt_depth", "train_size_px": 512, "max_depth_m": 1.0, "decoder": _DPT},
        {"kind": "navi", "every": 4, "relative_depth": True},
        (ONCE, _PROBE3D_LOSS, "files are sorted, Probe3D takes them as the file system lists them"),
    ),
    "navi_normals@probe3d": Protocol(
        _PROBE3D,
        {"kind": "normals", "train_size_px": 512, "decoder": _DPT},
        {"kind": "navi", "every": 4},
        (ONCE, "the loss is 1 - cosine; Probe3D also learns its uncertainty"),
    ),
    "imagenet_knn@dinov2": Protocol(_DINOV2, _NEIGHBOURS, {"kind": "imagenet"}),
    "imagenet_linear@dinov2": Protocol(
        _DINOV2,
        {"kind": "classification", "probe": _CLASSIFICATION},
        {"kind": "imagenet"},
        (ONCE, "one layer's CLS; DINOv2 also tries four layers and the mean of patches"),
    ),
    "imagenet_zero_shot@tips": Protocol(
        _TIPS,
        {"kind": "zero_shot_classification"},
        {"kind": "imagenet"},
        ("TIPS does not list its templates: four of CLIP's", "names are the first synonyms of WordNet"),
    ),
    "flickr30k@karpathy": Protocol(
        "Karpathy's splits: 1,000 test images, five captions each, any of an image's captions is a hit",
        {"kind": "retrieval"},
        {"kind": "karpathy", "name": "flickr30k", "captions_per_image": 5},
    ),
    "coco@karpathy": Protocol(
        "Karpathy's splits: 5,000 images of val2014, the first five captions, any of an image's captions is a hit",
        {"kind": "retrieval"},
        {"kind": "karpathy", "name": "coco", "captions_per_image": 5},
    ),
    "docci@tips": Protocol(_TIPS, {"kind": "retrieval"}, {"kind": "docci"}, (_TRUNCATED,)),
    "uned@merged": Protocol(
        "UnED, ICCV 2023: its standard, the index of all eight sets",
        {"kind": "instance_retrieval", "index": ["merged"], "mmp_at": 5},
        {"kind": "uned"},
        ("a query never finds itself; the authors' code drops its first hit",),
    ),
    "uned@separate": Protocol(
        "UnED, ICCV 2023: each set searched in its own index",
        {"kind": "instance_retrieval", "index": ["separate"], "mmp_at": 5},
        {"kind": "uned"},
        ("a query never finds itself; the authors' code drops its first hit",),
    ),
    "voc21@tipsv2": Protocol(_TIPS, {"kind": "zero_shot_segmentation"}, {"kind": "voc2012"}),
    "ade150@tipsv2": Protocol(_TIPS, {"kind": "zero_shot_segmentation"}, {"kind": "ade20k"}),
    "context59@tipsv2": Protocol(_TIPS, {"kind": "zero_shot_segmentation"}, {"kind": "pascal_context", "classes": 59}),
    "context60@tipsv2": Protocol(_TIPS, {"kind": "zero_shot_segmentation"}, {"kind": "pascal_context", "classes": 60}),
}


def with_protocols(suite: Tree) -> Tree:
    """The keys of a suite with those that its protocols add.

    Raises:
        ValueError: there is no such protocol, or a data set is not as its protocol says.
    """
    tasks, data = dict(suite.get("tasks") or {}), dict(suite.get("data") or {})
    for name, task in tasks.items():
        if not isinstance(task, dict) or task.get("protocol") is None:
            continue
        preset = PROTOCOLS.get(str(task["protocol"]))
        if preset is None:
            raise ValueError(f"tasks.{name}.protocol ({task['protocol']}) must be one of {', '.join(PROTOCOLS)}")
        tasks[name] = merged(preset.task, task)
        key = task.get("data")
        if isinstance(data.get(key), dict):
            data[key] = _fitted(preset.data, data[key], f"tasks.{name}.protocol ({task['protocol']})", f"data.{key}")
    return {**suite, "tasks": tasks, "data": data}


def merged(preset: Mapping[str, Any], own: Mapping[str, Any]) -> Tree:
    """Both trees as one; where both have a value, that of `own` stands."""
    found = dict(preset)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = merged(found[key], value) if both else value
    return found


def _fitted(preset: Tree, own: Tree, who: str, where: str) -> Tree:
    wrong = [f"{where}.{key}={own[key]}" for key, value in preset.items() if key in own and own[key] != value]
    if wrong:
        needed = ", ".join(f"{key}={value}" for key, value in preset.items())
        raise ValueError(f"{who} needs {needed}, not {listed(wrong)}: give the task a data set of its own")
    return {**preset, **own}
