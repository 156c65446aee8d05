import math

import pytest
import torch

from tips_ray.models import TextEncoder, text_encoder


def _small() -> TextEncoder:
    torch.manual_seed(0)
    sizes = {"width": 32, "depth": 2, "num_heads": 2, "ffn_hidden": 64, "vocab_size": 40, "max_tokens": 10}
    return text_encoder("S", **sizes).double()


def test_amount_and_content_of_padding_never_matter():
    encoder, ids = _small(), torch.tensor([[3, 7, 9, 0, 0, 0], [5, 0, 0, 0, 0, 0]])
    junk, valid = torch.tensor([[3, 7, 9, 8, 1, 2], [5, 4, 4, 4, 4, 39]]), ids != 0
    expected = encoder(ids)
    torch.testing.assert_close(encoder(ids[:, :3]), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(encoder(junk, valid), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("short_S", [[1], [3, 0], [0, 1, 2, 3], []])
def test_short_texts_give_the_same_numbers_and_gradients_with_fewer_tokens(short_S):
    """Texts of 10 places; a short one has 8, and those of a text without tokens count nowhere."""
    encoder, tokens = _small(), []
    ids_BT = torch.tensor([[3, 7, 9, 0], [5, 0, 0, 0], [0, 0, 0, 0], [1, 2, 3, 4]]).repeat_interleave(2, dim=1)
    ids_BT = torch.nn.functional.pad(ids_BT, (0, 2))
    outcomes = []
    for chosen_S in (None, torch.tensor(short_S, dtype=torch.long)):
        hook = encoder.norm.register_forward_hook(lambda *seen: tokens.append(len(seen[2].flatten(0, -2))))
        text_BD = encoder(ids_BT, short_texts_S=chosen_S)
        slopes = torch.autograd.grad((text_BD.sin() * torch.arange(4)[:, None]).sum(), list(encoder.parameters()))
        outcomes.append([text_BD, *slopes])
        hook.remove()
    torch.testing.assert_close(outcomes[1], outcomes[0], atol=1e-12, rtol=1e-12)
    assert tokens == [40, 40 - 2 * len(short_S)]


def test_word_order_matters_and_later_words_reach_earlier_ones():
    encoder = _small()
    first, second = encoder(torch.tensor([[3, 7, 9], [9, 7, 3]]))
    assert not torch.allclose(first, second)


def test_an_empty_text_gives_zeros_and_a_finite_gradient():
    encoder = _small()
    text_BD = encoder(torch.tensor([[0, 0, 0], [4, 0, 0]]))
    assert not text_BD[0].any() and text_BD[1].any()
    torch.nn.functional.normalize(text_BD, dim=-1).sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in encoder.parameters())


def test_positions_are_sinusoids_with_timescales_from_1_to_10000():
    positions_TD = _small()._positions(torch.zeros(1, 4, 32, dtype=torch.float64))
    assert positions_TD[3, 0].item() == pytest.approx(math.sin(3), abs=1e-6)
    assert positions_TD[3, 15].item() == pytest.approx(math.sin(3e-4), abs=1e-9)
    assert positions_TD[3, 16].item() == pytest.approx(math.cos(3), abs=1e-6)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([[1, 40]]), r"holds ids 1 to 40; the vocabulary has 40 entries, so ids must lie in \[0, 39\]"),
        (torch.tensor([[-1, 4]]), "holds ids -1 to 4"),
        (torch.ones(1, 11, dtype=torch.long), r"tokens \(11\) must be between 1 and 10"),
        (torch.ones(4, dtype=torch.long), r"must be integers of shape \(batch, tokens\)"),
        (torch.ones(1, 4), "torch.float32 must be integers"),
    ],
)
def test_wrong_ids_are_named_with_the_rule(ids, message):
    with pytest.raises(ValueError, match=message):
        _small()(ids)
