"""Trains the captioner of the demo, a small PaliGemma that describes rendered scenes, on rendered scenes alone.

    python -m tips_ray.demo.captioner_training --out out/scene_captioner

The folder is an ordinary PaliGemma checkpoint; jobs/scene_captioner holds the demo's, with its scores. Every step
renders new scenes. The loss is next-token cross-entropy on the description. The vision tower also learns to answer
questions about the object in each patch, by a linear layer that is then thrown away; from captions alone it would need
many more scenes to learn shapes and sides. The weight of this second loss falls to zero.
B scenes in a batch, L patches, T tokens.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from functools import partial
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import (
    AutoProcessor,
    BatchFeature,
    GemmaTokenizer,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    SiglipImageProcessor,
)

from tips_ray.scenes import CLASS_NAMES, COLOURS, RELATIONS, SHAPES, SIZES, Scene, SceneObject, relations, render_scene
from tips_ray.scenes.caption_scores import score_captions
from tips_ray.scenes.world import area

IMAGE_SIZE_PX, PATCH_SIZE_PX, SAMPLE_PX = 112, 16, 8
PROMPT = "caption en"
WIDTH, NUM_HEADS, VISION_LAYERS, TEXT_LAYERS = 128, 4, 4, 3
TRAIN_SEED, TEST_SEED = 1, 2  # seeds of worlds
SAMPLES = (PATCH_SIZE_PX // SAMPLE_PX) ** 2  # points of a patch at which questions are asked
QUESTIONS = (len(SHAPES), len(COLOURS), len(SIZES), 4, *8 * [3])  # number of answers to each question
BATCH_SCENES = 32
MAX_NEW_TOKENS = 64


class Scenes(Dataset):
    """The first `count` scenes of the world `seed`."""

    def __init__(self, seed: int, count: int) -> None:
        self.seed, self.count = seed, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Scene:
        return render_scene(self.seed, index, IMAGE_SIZE_PX)


def new_processor(captions: Sequence[str]) -> PaliGemmaProcessor:
    """A processor whose tokenizer is like Gemma's, with one token per word of the captions and the prompt."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?[^▁.\n]+|[.\n]"), "isolated")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(vocab_size=1000, min_frequency=2, special_tokens=special)
    tokenizer.train_from_iterator([*captions, f"{PROMPT}\n", f"{PROMPT}\n"], trainer)
    bpe = json.loads(tokenizer.to_str())["model"]
    merges: Any = [tuple(pair) for pair in bpe["merges"]]
    images: Any = SiglipImageProcessor(size={"height": IMAGE_SIZE_PX, "width": IMAGE_SIZE_PX})
    images.image_seq_length = (IMAGE_SIZE_PX // PATCH_SIZE_PX) ** 2
    return PaliGemmaProcessor(images, GemmaTokenizer(vocab=bpe["vocab"], merges=merges))


def new_model(processor: PaliGemmaProcessor) -> PaliGemmaForConditionalGeneration:
    """A new model without embeddings for the 1,152 location and segment tokens, which the processor has last."""
    layers = {"hidden_size": WIDTH, "num_attention_heads": NUM_HEADS}
    vision = {"image_size": IMAGE_SIZE_PX, "patch_size": PATCH_SIZE_PX, "num_hidden_layers": VISION_LAYERS}
    vision |= {"model_type": "siglip_vision_model", "vision_use_head": False, "intermediate_size": 3 * WIDTH}
    text = {
        "model_type": "gemma",
        "num_hidden_layers": TEXT_LAYERS,
        "initializer_range": 0.05,
        "intermediate_size": 2 * WIDTH,
    }
    text |= {"vocab_size": processor.image_token_id + 1, "num_key_value_heads": 1, "head_dim": WIDTH // NUM_HEADS}
    config = PaliGemmaConfig(
        vision_config=vision | layers,
        text_config=text | layers,
        projection_dim=WIDTH,
        hidden_size=WIDTH,
        image_token_index=processor.image_token_id,
        vocab_size=processor.image_token_id + 1,
    )
    return PaliGemmaForConditionalGeneration(config)


def answers(ranked: Sequence[SceneObject]) -> np.ndarray:
    """Answers about each object, [objects, QUESTIONS]: shape, colour, size, rank by area; then, for each of up to four
    objects, the side and whether in front or behind; -100 for absent objects."""
    table = np.full((len(ranked), len(QUESTIONS)), -100)
    for i, thing in enumerate(ranked):
        table[i, :4] = SHAPES.index(thing.shape), list(COLOURS).index(thing.colour), list(SIZES).index(thing.size), i
        table[i, 4 : 4 + len(ranked)] = table[i, 8 : 8 + len(ranked)] = 0
    for i, relation, j in relations(ranked):
        table[i, (8 if RELATIONS.index(relation) > 1 else 4) + j] = 1 + RELATIONS.index(relation) % 2
    return table


def patch_answers(scene: Scene) -> np.ndarray:
    """Answers about the object seen at each sample of each patch, -100 where there is none; [L, SAMPLES, QUESTIONS]."""
    centres = np.arange(SAMPLE_PX // 2, IMAGE_SIZE_PX, SAMPLE_PX)
    labels = scene.labels_HW[np.ix_(centres, centres)]
    y, x = np.meshgrid(*2 * [(centres + 0.5) / IMAGE_SIZE_PX], indexing="ij")
    found = np.full((*labels.shape, len(QUESTIONS)), -100)
    ranked = sorted(scene.objects, key=area, reverse=True)
    table = answers(ranked)
    for i in sorted(range(len(ranked)), key=lambda i: ranked[i].z_m, reverse=True):  # the nearest is seen
        left, top, right, bottom = ranked[i].bounds
        is_here = (left < x) & (x < right) & (top < y) & (y < bottom)
        found[is_here & (labels == CLASS_NAMES.index(ranked[i].shape))] = table[i]
    side, inner = IMAGE_SIZE_PX // PATCH_SIZE_PX, PATCH_SIZE_PX // SAMPLE_PX
    return found.reshape(side, inner, side, inner, -1).swapaxes(1, 2).reshape(side * side, SAMPLES, -1)


def model_inputs(processor: Any, scenes: Sequence[Scene], **options: object) -> BatchFeature:
    """Inputs of the model: pixels and prompt of each scene; `options` go to the processor."""
    images, texts = [scene.image_HWC for scene in scenes], [f"<image>{PROMPT}"] * len(scenes)
    return processor(images=images, text=texts, padding="longest", return_tensors="pt", **options)


def training_batch(processor: PaliGemmaProcessor, scenes: Sequence[Scene]) -> tuple[BatchFeature, Tensor]:
    """Inputs with the descriptions to learn, and the answers for each patch."""
    inputs = model_inputs(processor, scenes, suffix=[scene.synthetic_caption for scene in scenes])
    return inputs, torch.from_numpy(np.stack([patch_answers(scene) for scene in scenes]))


def patch_loss(patches_BLD: Tensor, head: nn.Linear, truth: Tensor) -> Tensor:
    """Cross-entropy of the answers, summed over questions and averaged over samples where an object is seen."""
    logits = head(patches_BLD).unflatten(-1, (SAMPLES, sum(QUESTIONS))).split(QUESTIONS, -1)
    answered = [(one.flatten(0, -2), truth[..., i].flatten()) for i, one in enumerate(logits)]
    total = sum(F.cross_entropy(one, answer, reduction="sum") for one, answer in answered)
    return total / (truth[..., 0] >= 0).sum()


def learning_rate(step: int, total_steps: int, peak: float = 1e-3, warmup_steps: int = 200) -> float:
    """Learning rate with linear warmup and a cosine to zero."""
    return peak * min(1, (step + 1) / warmup_steps) * (1 + cos(pi * step / total_steps)) / 2


def train(model: PaliGemmaForConditionalGeneration, processor: PaliGemmaProcessor, options: argparse.Namespace) -> None:
    """Advance `model` in place to `options.steps`; save it every 500 steps."""
    head = nn.Linear(WIDTH, SAMPLES * sum(QUESTIONS))
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    scenes = Scenes(TRAIN_SEED, options.steps * BATCH_SCENES)
    batches = DataLoader(scenes, BATCH_SCENES, num_workers=1, collate_fn=partial(training_batch, processor))
    for step, (inputs, truth) in enumerate(batches):
        optimizer.param_groups[0]["lr"] = learning_rate(step, options.steps)
        output = model(**inputs)
        of_patches = patch_loss(output.image_hidden_states, head, truth)
        (output.loss + (1 - step / options.steps) * of_patches).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"step {step} caption loss {output.loss:.4f} patch loss {of_patches:.4f}", flush=True)
        if step % 500 == 499 or step + 1 == options.steps:
            save(model, processor, options.out)


def save(model: PaliGemmaForConditionalGeneration, processor: PaliGemmaProcessor, folder: Path) -> None:
    """Write the weights in half precision, which halves their size, with a config that loads them in single."""
    state = {name: value.half() for name, value in model.state_dict().items() if name != "lm_head.weight"}  # tied
    model.save_pretrained(folder, state_dict=state)
    processor.save_pretrained(folder)


def scores(folder: Path, count: int) -> dict[str, float]:
    """Scores of the stored checkpoint on unseen scenes, and its captions per second on one core."""
    torch.set_num_threads(1)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    model: Any = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    scenes = [render_scene(TEST_SEED, index, IMAGE_SIZE_PX) for index in range(count)]
    captions, start = [], time.process_time()
    for first in range(0, count, BATCH_SCENES):
        inputs = model_inputs(processor, scenes[first : first + BATCH_SCENES])
        tokens_BT = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        new_tokens_BT = tokens_BT[:, inputs["input_ids"].shape[1] :]
        captions += processor.batch_decode(new_tokens_BT, skip_special_tokens=True)
    seconds = time.process_time() - start
    return score_captions(captions, [scene.objects for scene in scenes]) | {"captions_per_second": count / seconds}


def main() -> None:
    """Train and score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--threads", type=int, default=2, help="torch threads; rendering takes a tenth of a core more")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    start = time.time()
    processor = new_processor([render_scene(TRAIN_SEED, i, 8).synthetic_caption for i in range(500)])
    train(new_model(processor), processor, options)
    print(f"trained in {time.time() - start:.0f} s, {sum(os.times()[:4]):.0f} CPU s")
    for name, value in scores(options.out, 1024).items():
        print(f"{name}: {value:.3f}")


if __name__ == "__main__":
    main()
