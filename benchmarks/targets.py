"""What changes of the objective do to self-distillation, in one process: the figures of docs/training.md.

  python -m benchmarks.targets 0                                                       the ablation's TIPS row, seed 0
  python -m benchmarks.targets 0 objective.center_start=zero objective.center_momentum=0.9
  python -m benchmarks.targets 0 --config jobs/configs/demo.yaml objective.alpha=1 objective.beta=2

Trains on rendered scenes with exact captions, in an order that follows from the seed, and prints a line of JSON every
25 steps (information on 512 scenes that no run has seen), and scores at the end: R@1, and ridge regressions on patches
of 256 scenes for 512 others. A run of 250 steps takes five minutes of a core.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from tips_ray.config import RunConfig, override
from tips_ray.data.collate import batch_from
from tips_ray.data.order import sample_keys
from tips_ray.data.views import row_settings, training_rows
from tips_ray.evaluation.dense import squashed, upsampled, with_cls
from tips_ray.evaluation.depth import linear_depth_rmse, ridge_predictions
from tips_ray.evaluation.encoders import TipsEncoder
from tips_ray.evaluation.metrics import mean_iou
from tips_ray.evaluation.retrieval import retrieval
from tips_ray.scenes import CLASS_NAMES, Scene, render_scenes
from tips_ray.scenes.shards import encoded
from tips_ray.tokenizer import Tokenizer, train_tokenizer
from tips_ray.train.held_out import information_of
from tips_ray.train.state import TrainState, new_state
from tips_ray.train.step import train_step

ROOT = Path(__file__).parents[1]
TRAIN, PROBE, TEST, HELD_OUT = (0, 4096), (5, 256), (6, 512), (7, 512)
"""Seed and number of scenes: to train on, to fit probes on, to score, to measure information on."""
EVERY_STEPS = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seed", type=int)
    parser.add_argument("--config", type=Path, default=ROOT / "jobs" / "ablations" / "paper.yaml")
    parser.add_argument("--heads-rate", type=float, default=1.0, help="learning rate of the heads, as a factor")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE")
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    config, scenes = run_config(arguments.config, arguments.seed, arguments.changes), render_scenes_of(TRAIN)
    texts = [text for scene in scenes for text in (scene.web_caption, scene.synthetic_caption)]
    tokenizer = train_tokenizer(texts, config.text.vocab_size)
    state = new_state(config)
    if arguments.heads_rate != 1:
        set_heads_rate(state, arguments.heads_rate)
    state.student.train()
    held_out = [encoded(scene.image_HWC) for scene in render_scenes_of(HELD_OUT)]
    for step, rows in enumerate(batches(config, scenes), 1):
        batch = batch_from(training_rows(rows, row_settings(config, 1), tokenizer)).to("cpu", torch.float32)
        metrics = {name: round(value.item(), 4) for name, value in train_step(state, [batch], config).items()}
        if step % EVERY_STEPS == 0 and (config.objective.alpha or config.objective.beta):
            state.student.eval()
            told = information_of(state, config, held_out)
            state.student.train()
            print(json.dumps({**metrics, **told}), flush=True)
    print(json.dumps(scores(state, tokenizer, config.image.image_size_px)))


def run_config(path: Path, seed: int, changes: list[str]) -> RunConfig:
    """The run of a config, or the base of an ablation, with the changes."""
    tree = yaml.safe_load(path.read_text())
    tree = {**tree.get("base", tree), "captions": {}, "seed": seed}
    values = {key: yaml.safe_load(value) for key, value in (change.split("=", 1) for change in changes)}
    return override(RunConfig, tree, {"name": "targets", "data.sources": [{"uri": "scenes"}], **values})


def set_heads_rate(state: TrainState, factor: float) -> None:
    """Move the heads' parameters to groups with `factor` times the learning rate; no config key does it."""
    heads = set(state.student.heads.parameters())
    for group in list(state.optimizer.param_groups):
        own = [parameter for parameter in group["params"] if parameter in heads]
        group["params"] = [parameter for parameter in group["params"] if parameter not in heads]
        state.optimizer.param_groups.append({**group, "params": own, "lr_factor": group["lr_factor"] * factor})


def render_scenes_of(part: tuple[int, int]) -> list[Scene]:
    return render_scenes(part[0], range(part[1]))


def batches(config: RunConfig, scenes: list[Scene]):
    """Rows of each step; runs of one seed have the same, whatever their batch size."""
    size = config.global_batch_images
    total, random = config.schedule.total_steps * size, np.random.default_rng(config.seed + 1000)
    passes = [random.permutation(len(scenes)) for _ in range(-(-total // len(scenes)))]
    ids, keys = np.concatenate(passes)[:total].tolist(), sample_keys(config.seed, 0, np.arange(total)).tolist()
    for first in range(0, total, size):
        yield [row(place, ids[place], keys[place], scenes[ids[place]]) for place in range(first, first + size)]


def row(place: int, sample: int, key: int, scene: Scene) -> dict[str, Any]:
    return {"position": place, "step": 0, "sample_id": sample, "sample_key": key, "key": str(sample), "error": "",
            "image": encoded(scene.image_HWC), "web_caption": scene.web_caption,
            "synthetic_captions": [scene.synthetic_caption]}  # fmt: skip


@torch.no_grad()
def scores(state: TrainState, tokenizer: Tokenizer, side_px: int) -> dict[str, float]:
    """R@1 of descriptions, mIoU and depth; on patches of objects the kind of shape and the depth."""
    encoder = TipsEncoder(state.teacher.image or state.student.image, state.student.text, tokenizer, side_px)
    train, test = render_scenes_of(PROBE), render_scenes_of(TEST)
    (train_NLD, train_cls), (test_NLD, test_cls) = (features(encoder, part, side_px) for part in (train, test))
    depths = [torch.from_numpy(np.stack([scene.depth_HW for scene in part])) for part in (train, test)]
    labels = [torch.from_numpy(np.stack([scene.labels_HW for scene in part])).long() for part in (train, test)]
    grid = encoder.grid
    kinds, metres = ([squashed(list(maps), grid).flatten() for maps in pair] for pair in (labels, depths))
    patches = [patches_NLD.flatten(0, 1) for patches_NLD in (train_NLD, test_NLD)]
    maps = ridge_predictions(patches[0], F.one_hot(kinds[0], len(CLASS_NAMES)), patches[1])
    maps_NLC = maps.unflatten(0, (len(test), grid**2)).float()
    found = retrieval(test_cls["cls_synthetic"], encoder.texts([scene.synthetic_caption for scene in test]), ranks=(1,))
    own = [kind > 1 for kind in kinds]  # 0 is sky, 1 is ground
    rows = [part[mask] for part, mask in zip(patches, own, strict=True)]
    shapes = ridge_predictions(rows[0], F.one_hot(kinds[0][own[0]] - 2), rows[1]).argmax(1) == kinds[1][own[1]] - 2
    far = ridge_predictions(rows[0], metres[0][own[0]].log()[:, None], rows[1])[:, 0].exp() - metres[1][own[1]]
    inputs = with_cls(train_NLD, train_cls["cls_web"]), with_cls(test_NLD, test_cls["cls_web"])
    return {
        **found,
        "miou": mean_iou(upsampled(maps_NLC, labels[1].shape[1:]).argmax(1), labels[1], len(CLASS_NAMES)),
        "depth_rmse_m": linear_depth_rmse(inputs[0], depths[0], inputs[1], depths[1]),
        "shape_of_object": shapes.double().mean().item(),
        "depth_of_object_rmse_m": far.square().mean().sqrt().item(),
    }


def features(encoder: TipsEncoder, scenes: list[Scene], side_px: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Patches [N, L, D] and embeddings [N, D] of scenes at the side of the encoder."""
    pixels = torch.from_numpy(np.stack([scene.image_HWC for scene in scenes])).permute(0, 3, 1, 2).float() / 255
    pixels = F.interpolate(pixels, (side_px, side_px), mode="bilinear", antialias=True, align_corners=False)
    parts = [encoder.features(part) for part in pixels.split(64)]
    names = parts[0].embeddings
    embeddings = {name: torch.cat([part.embeddings[name] for part in parts]) for name in names}
    return torch.cat([part.patches_BLD for part in parts]), embeddings


if __name__ == "__main__":
    main()
