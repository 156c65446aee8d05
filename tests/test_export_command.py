import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from toy_model import CAPTIONS, toy_model
from toy_start import trained_run

from jobs.cli import main
from tips_ray.models import load_transformers
from tips_ray.models.official import released_image_name, released_text_name


@pytest.fixture
def released(tmp_path):
    """Both npz files and the vocabulary of a model, as the authors would release them."""
    model = toy_model(gelu="erf")
    arrays = {released_image_name("mlp")(name): value.numpy() for name, value in model.image.state_dict().items()}
    np.savez(tmp_path / "image.npz", **arrays)  # pyright: ignore[reportArgumentType]
    arrays = {released_text_name(name): value.numpy() for name, value in model.text.state_dict().items()}
    np.savez(tmp_path / "text.npz", temperature=np.float32(model.temperature), **arrays)
    assert model.tokenizer
    model.tokenizer.save(tmp_path / "tokenizer.json")
    return tmp_path, model


def _main(line: str, folder) -> int:
    return main([word.replace("@", str(folder)) for word in line.split()])


NPZ = "export --image @/image.npz --text @/text.npz --num-heads 2"


def test_released_files_become_a_transformers_and_then_a_timm_folder(released, capsys):
    folder, model = released
    assert _main(f"{NPZ} --tokenizer @/tokenizer.json --to transformers @/out", folder) == 0
    loaded = load_transformers(folder / "out")
    assert torch.equal(loaded.image.pos_embed, model.image.pos_embed) and loaded.temperature == model.temperature
    assert loaded.tokenizer and torch.equal(loaded.tokenizer(CAPTIONS), model.tokenizer(CAPTIONS))
    written = capsys.readouterr().out
    assert written.startswith(f"wrote {folder}/out: image encoder of ") and "zero-shot-image-classification" in written
    assert _main("export @/out --to timm @/timm", folder) == 0
    with torch.no_grad():
        images = torch.rand(1, 3, 56, 56)
        network = timm.create_model(f"local-dir:{folder}/timm", pretrained=True).eval()
        torch.testing.assert_close(network(images), model.image(images).cls_web_BD, atol=2e-6, rtol=0)


@pytest.mark.heavy
@pytest.mark.parametrize("source", ["@/run", "@/run/checkpoints/step-00000001"])
def test_a_run_is_written_with_its_averaged_image_encoder(tmp_path, source):
    state = trained_run(str(tmp_path / "run"), 1)
    assert _main(f"export {source} --to transformers @/out", tmp_path) == 0
    loaded = load_transformers(tmp_path / "out")
    assert state.teacher.image is not None
    teacher, student = state.teacher.image.state_dict(), state.student.text.state_dict()
    torch.testing.assert_close(loaded.image.state_dict(), teacher, atol=0, rtol=0)
    torch.testing.assert_close(loaded.text.state_dict(), student, atol=0, rtol=0)
    assert _main(f"export {source} --to timm @/timm", tmp_path) == 0


def test_the_printed_next_command_loads_what_was_written(released, capsys):
    folder, _ = released
    for line in (f"{NPZ} --to transformers @/out", "export --image @/image.npz --num-heads 2 --to timm @/timm"):
        assert _main(line, folder) == 0
        code = capsys.readouterr().out.split('python -c "')[1].rstrip().removesuffix('"')
        exec(code)
        assert "Tipsv2Model" in (shown := capsys.readouterr().out) or "VisionTransformer" in shown


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("export --to timm @/out", "a source is wanted: FOLDER, or --image and --text"),
        ("export @ @ --to timm @/out", "FOLDER and OUT are wanted, 3 paths were given"),
        (f"{NPZ} @/a --to timm @/out", "--image goes with npz files: give it or FOLDER"),
        ("export --image @/image.npz --to transformers @/out", "--to transformers needs --text"),
        ("export --image @/image.npz --to timm @/out", "width (32) is not a published one: pass num_heads"),
        ("export --image @/absent.npz --to timm @/out", "No such file or directory"),
        ("export @ --to timm @/out", "it has no config.json"),
        (f"{NPZ} --to timm @", "exists and is not an empty folder"),
        (f"{NPZ} --to timm s3://bucket/x", "OUT (s3://bucket/x) must be a folder of this machine"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(released, line, message, capsys):
    folder, _ = released
    assert _main(line, folder) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "required: COMMAND"),
        ("exprot", "invalid choice: 'exprot'"),
        ("export @/out", "required: --to"),
        ("export @/out --to onnx", "invalid choice: 'onnx'"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(line, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        _main(line, tmp_path)
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize("line", ["--help", "export --help"])
def test_help_loads_neither_torch_nor_transformers(line):
    code = f"""
import sys
from jobs.cli import main
try:
    main({line.split()})
finally:
    print([name for name in ("torch", "transformers", "timm", "numpy") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.splitlines()[-1] == "[]", result.stdout + result.stderr
    assert "export" in result.stdout
