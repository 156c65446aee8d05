import torch
from toy import toy_batch, toy_config

from tips_ray.models.networks import drawn_captions
from tips_ray.train.state import new_state


def test_captions_are_drawn_uniformly_among_those_present_and_by_key_alone():
    """Images have three captions, later ones only two: each is drawn about equally often, padding never."""
    ids_BAT = torch.tensor([[1, 0], [2, 2], [3, 0]]).expand(6_000, 3, 2).clone()
    ids_BAT[3_000:, 2] = 0
    keys = torch.arange(6_000)
    drawn = drawn_captions(ids_BAT, keys)[:, 0]
    for part, share in ((drawn[:3_000], 1_000), (drawn[3_000:], 1_500)):
        counts = part.bincount(minlength=4)
        assert counts[0] == 0 and all(count == 0 or abs(count - share) < 150 for count in counts.tolist())
    alone = [drawn_captions(ids_BAT[row : row + 1], keys[row : row + 1])[0, 0].item() for row in range(100)]
    assert alone == drawn[:100].tolist()


def test_an_image_without_any_synthetic_caption_draws_padding():
    assert not drawn_captions(torch.zeros(2, 3, 4, dtype=torch.long), torch.arange(2)).any()


def test_every_pass_of_a_sample_has_randomness_of_its_own():
    student, batch = new_state(toy_config()).student, toy_batch(4)
    keys = torch.cat([view.key_B for view in student._views(batch).values() if view.key_B is not None])
    assert len(keys.unique()) == len(keys) == 4 * (2 + 3)  # clean, masked and three local crops of four images


def test_a_teacher_that_uses_the_students_clean_features_gets_them_whole():
    """Its other views drop branches; an averaged teacher drops none either."""
    state, batch = new_state(toy_config(objective__teacher="ema_heads", image__drop_path_rate=0.5)), toy_batch(4)
    batch, student = batch.to("cpu"), state.student.train()
    outputs = student(batch)
    whole = student.image.eval()(batch.global_crops_BCHW)
    for found, expected in zip(outputs.clean, whole, strict=True):
        torch.testing.assert_close(found, expected)
    crops_RD = student.image(batch.local_crops_VBCHW.flatten(0, 1)).cls_web_BD
    assert not torch.allclose(outputs.crop_scores.unit_RD, student.heads.distillation(crops_RD).unit_RD)
