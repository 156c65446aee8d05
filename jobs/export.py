"""Export a model for transformers (AutoModel, AutoProcessor, pipeline) or timm, to load offline without our code.

  tips-ray export out/runs/photos --to transformers OUT        (a run, or one of its checkpoints; s3:// too)
  tips-ray export --image vision.npz --text text.npz --tokenizer tokenizer.model --to transformers OUT
  tips-ray export --image vision.npz --to timm OUT
  tips-ray export FOLDER --to timm OUT        (FOLDER: one that transformers reads)

A model of size B takes seconds and twice its weights in memory.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tips_ray.models import ImageEncoder, TipsModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray export`."""
    parser.usage = "tips-ray export [FOLDER | --image NPZ --text NPZ] --to {transformers,timm} OUT"
    parser.add_argument("paths", nargs="+", metavar="[FOLDER] OUT", help="source, unless npz; new folder")
    parser.add_argument("--to", required=True, choices=("transformers", "timm"), help="who is to read OUT")
    parser.add_argument("--image", type=Path, metavar="NPZ", help="released image encoder")
    parser.add_argument("--text", type=Path, metavar="NPZ", help="released text encoder; timm needs none")
    parser.add_argument("--tokenizer", type=Path, help="SentencePiece .model, tokenizers .json or a folder with one")
    parser.add_argument("--num-heads", type=int, help="attention heads of an npz whose width is not a published one")


def run(arguments: argparse.Namespace) -> None:
    """Read the source, write OUT, and print how to load it.

    Raises:
        ValueError: there is no source or more than one, or it cannot be read or written by `tips_ray.models`.
    """
    *sources, out = arguments.paths
    if "://" in out:
        raise ValueError(f"OUT ({out}) must be a folder of this machine; copy it from there")
    _check_source(arguments, sources)
    from tips_ray.models import TipsModel, export_timm, export_transformers

    model, folder = _source(arguments, sources), Path(out)
    if arguments.to == "timm":
        export_timm(model, folder)
    else:
        assert isinstance(model, TipsModel)  # _check_source asked for both encoders
        export_transformers(model, folder)
    print(_report(arguments.to, folder, model))


def _check_source(arguments: argparse.Namespace, sources: list[str]) -> None:
    """Check the arguments before torch is loaded."""
    npz = [name for name in ("image", "text", "tokenizer", "num_heads") if getattr(arguments, name) is not None]
    if len(sources) > 1:
        raise ValueError(f"FOLDER and OUT are wanted, {len(arguments.paths)} paths were given")
    if sources and npz:
        raise ValueError(f"--{npz[0].replace('_', '-')} goes with npz files: give it or FOLDER ({sources[0]})")
    if not sources and not arguments.image:
        raise ValueError("a source is wanted: FOLDER, or --image and --text")
    if not sources and arguments.to == "transformers" and not arguments.text:
        raise ValueError("--to transformers needs --text: such a folder holds both encoders")


def _source(arguments: argparse.Namespace, sources: list[str]) -> "TipsModel | ImageEncoder":
    from tips_ray.models import load_official, load_official_image
    from tips_ray.weights import model_at

    if sources:
        return model_at(sources[0])
    if arguments.text:
        return load_official(arguments.image, arguments.text, arguments.tokenizer, arguments.num_heads)
    return load_official_image(arguments.image, arguments.num_heads)


def _report(to: str, folder: Path, model: "TipsModel | ImageEncoder") -> str:
    image: Any = getattr(model, "image", model)
    tokenizer: Any = getattr(model, "tokenizer", None)
    count, config = sum(parameter.numel() for parameter in image.parameters()), image.config
    what = f"image encoder of {count:,} parameters, width {config.width}, {config.image_size_px} px"
    if to == "timm":
        code = f"import timm; print(timm.create_model('local-dir:{folder}', pretrained=True))"
        return f'wrote {folder}: {what}\nnext: python -c "{code}"'
    if tokenizer is None:
        what += "; text encoder without tokenizer"
        code = f"AutoModel; print(AutoModel.from_pretrained('{folder}'))"
    else:
        what += f"; text encoder, vocabulary of {tokenizer.vocab_size:,}"
        call = f"pipeline('zero-shot-image-classification', '{folder}')"
        code = f"pipeline; print({call}('photo.jpg', candidate_labels=['a dog', 'a cat']))"
    return f'wrote {folder}: {what}\nnext: python -c "from transformers import {code}"'
