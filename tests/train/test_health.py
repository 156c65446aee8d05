"""Health metrics by hand arithmetic, and the same on any number of ranks and micro-batches."""

from math import log

import pytest
import torch
from given_scores import given_scores
from ranks import run_on_ranks
from torch import tensor
from toy import rows, toy_batch, toy_config

from tips_ray.distributed import mean_over_ranks, rank, world_size
from tips_ray.models.heads import PrototypeScores
from tips_ray.models.networks import Embeddings, TeacherScores
from tips_ray.objective import Centers, Temperatures
from tips_ray.train.health import (
    Health,
    contrastive_hits,
    effective_rank,
    mean_cosine,
    memory_peak_bytes,
    prototype_usage,
    target_entropy,
    targets,
    winners,
)
from tips_ray.train.state import new_state
from tips_ray.train.step import accumulate_gradients

NO_CENTER = torch.zeros(4)
TEMPERATURES = {"distillation": Temperatures(0.1, 0.1)}


def test_target_entropy_is_ln_k_when_all_are_alike_ln_2_between_two_and_0_for_one():
    scores_RK = tensor([[0.3, 0.3, 0.3, 0.3], [1.0, 1.0, -9.0, -9.0], [9.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(target_entropy(targets(scores_RK, NO_CENTER, 0.1)), tensor([log(4), log(2), 0.0]))


def test_target_entropy_is_that_of_the_centred_and_sharpened_scores():
    # (t - c) / tau = ln 3, 0: probabilities 3/4 and 1/4
    found = target_entropy(targets(tensor([[1.0 + 0.5 * log(3), 2.0]]), tensor([1.0, 2.0]), 0.5))
    torch.testing.assert_close(found, tensor([0.75 * log(4 / 3) + 0.25 * log(4)]))


def test_many_rows_are_taken_in_parts():
    generator = torch.Generator().manual_seed(0)
    scores = PrototypeScores(torch.randn(2500, 3, generator=generator), torch.randn(4, 3, generator=generator))
    whole_RK = scores.unit_RD @ scores.prototypes_KD.T
    parts = list(scores.chunks())
    assert [len(part_CK) for part_CK in parts] == [1024, 1024, 452]
    torch.testing.assert_close(torch.cat(parts), whole_RK)
    probability_RK = ((whole_RK - 0.1) / 0.2).softmax(dim=1)
    naive_R = -(probability_RK * probability_RK.log()).sum(dim=1)
    found_R = torch.cat([target_entropy(targets(part_CK, NO_CENTER + 0.1, 0.2)) for part_CK in parts])
    torch.testing.assert_close(found_R, naive_R)
    assert torch.equal(torch.cat([winners(part_CK, NO_CENTER) for part_CK in parts]), whole_RK.argmax(dim=1))


def test_the_winner_is_that_of_the_centred_scores():
    scores_RK = tensor([[0.5, 0.4, 0.0, 0.0]])
    assert winners(scores_RK, NO_CENTER).tolist() == [0]
    assert winners(scores_RK, tensor([0.3, 0.0, 0.0, 0.0])).tolist() == [1]


def test_usage_is_the_share_of_prototypes_that_won_something():
    assert prototype_usage(tensor([3.0, 0.0, 1.0, 0.0])) == 0.5


@pytest.mark.parametrize(
    ("singular", "expected"),
    [((1, 1, 1, 1), 4.0), ((5, 0, 0, 0), 1.0), ((2, 2, 0, 0), 2.0), ((3, 1, 0, 0), 4 / 3**0.75), ((0, 0, 0, 0), 1.0)],
)
def test_effective_rank_is_the_exponential_of_the_singular_values_entropy(singular, expected):
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0)))
    features = torch.diag(tensor(singular, dtype=torch.double)) @ rotation
    assert effective_rank(features.T @ features) == pytest.approx(expected, rel=1e-6)


def test_mean_cosine_is_that_of_all_pairs():
    unit_BD = torch.nn.functional.normalize(torch.randn(5, 3, dtype=torch.double), dim=1)
    pairs = [unit_BD[i] @ unit_BD[j] for i in range(5) for j in range(5) if i != j]
    assert mean_cosine(unit_BD.sum(dim=0), 5) == pytest.approx(float(sum(pairs)) / 20)
    assert mean_cosine(tensor([2.0, 0.0]), 2) == 1.0 and mean_cosine(tensor([1.0, 0.0]), 1) == 0.0


def test_a_hit_is_an_own_caption_nearest_among_the_valid():
    image_BD, text_BD = torch.eye(4), torch.eye(4)[[1, 0, 2, 3]]
    assert contrastive_hits(image_BD, text_BD, tensor([True] * 4)).tolist() == [2, 2]
    # Without text 1, image 0, at right angles to all others, still has no text of its own; row 1 does not count.
    text_BD = tensor([[0.9, 0.1, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    assert contrastive_hits(image_BD, text_BD, tensor([True] * 4)).tolist() == [2, 3]
    assert contrastive_hits(image_BD, text_BD, tensor([True, False, True, True])).tolist() == [3, 3]


def test_the_metrics_of_a_step_worked_out_by_hand():
    health, centers = Health(toy_config().objective), Centers(4)
    health.expect(is_logged=True)
    axes_BD, batch = torch.eye(3), toy_batch(3, invalid=(2,))
    embeddings = Embeddings(axes_BD, axes_BD[[0, 0, 1]], axes_BD, axes_BD[[1, 0, 2]])
    health.see_embeddings([(embeddings, tensor([0.07]).log())], [batch.valid_B])
    centers.distillation_K.copy_(tensor([3.0, 4.0, 0.0, 0.0]))
    cls_BK = tensor([[3.0, 4.0, -9.0, -9.0], [3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 99.0]])
    health.see_targets(TeacherScores(given_scores(cls_BK), None), centers, batch, TEMPERATURES)
    found = health.metrics(centers, {})
    expected = {
        "temperature": 0.07,
        "cls_web/cosine": 0.0,
        "cls_web/effective_rank": 2.0,
        "contrastive_web/image_to_text": 1.0,
        "contrastive_web/text_to_image": 1.0,
        "cls_synthetic/cosine": 1.0,
        "cls_synthetic/effective_rank": 1.0,
        "contrastive_synthetic/image_to_text": 0.5,
        "contrastive_synthetic/text_to_image": 0.5,
        "distillation/target_entropy": (log(2) + log(4)) / 2,
        "distillation/target_entropy_share": 0.75,
        "distillation/prototype_usage": 0.25,
        "distillation/center_norm": 5.0,
    }
    peak = found.pop("health/memory_peak_gib")
    assert peak == pytest.approx(memory_peak_bytes(torch.device("cpu")) / 2**30, rel=0.1)
    assert found == pytest.approx({f"health/{name}": value for name, value in expected.items()}, abs=1e-6)


def test_prototypes_are_counted_over_all_steps_since_the_last_logged_one():
    health, centers, batch = Health(toy_config().objective), Centers(4), toy_batch(1)
    usage = []
    for step, winner in enumerate((0, 1, 1, 2, 2), start=1):
        health.expect(is_logged := step in (3, 5))
        health.see_embeddings([(Embeddings(*[torch.eye(1)] * 4), torch.zeros(1))], [batch.valid_B])
        health.see_targets(TeacherScores(given_scores(torch.eye(4)[[winner]]), None), centers, batch, TEMPERATURES)
        usage += [health.metrics(centers, {})["health/distillation/prototype_usage"]] if is_logged else []
    assert usage == [2 / 4, 1 / 4]


def _found(*micro_batches: int) -> list[dict[str, float]]:
    """Metrics of this rank's share of two steps of 8 images, two invalid; the second is logged. Weights stay."""
    return [_found_with(count) for count in micro_batches]


def _found_with(micro_batches: int) -> dict[str, float]:
    config, per_rank = toy_config(), 8 // world_size()
    state, health, terms = new_state(config), Health(config.objective, window_images=6), {}
    generator = torch.Generator().manual_seed(1)
    for network in (state.student, state.teacher, state.centers):
        for values in [*network.double().parameters(), *network.buffers()]:
            values.data += 0.05 * torch.randn(values.shape, generator=generator, dtype=torch.double)
    for seed in (0, 1):
        health.expect(is_logged=seed == 1)
        batch, size = toy_batch(8, seed=seed, invalid=(1, 6)), per_rank // micro_batches
        starts = range(rank() * per_rank, (rank() + 1) * per_rank, size)
        share = [rows(batch, start, start + size) for start in starts]
        terms, _ = accumulate_gradients(state, share, config.objective, 10, health=health)
    losses = mean_over_ranks({f"loss/{name}": term for name, term in terms.items()})
    found = health.metrics(state.centers, losses)
    assert found.pop("health/memory_peak_gib") > 0
    return found


def test_micro_batches_equal_one_batch():
    whole, *others = _found(1, 2, 4)
    assert len(whole) == 21 and 0 < whole["health/masked_image/prototype_usage"] < 1
    for found in others:
        assert found == pytest.approx(whole, rel=1e-10)


@pytest.mark.heavy
def test_ranks_equal_one_rank():
    whole = _found_with(1)
    for outcomes in run_on_ranks(2, _found, 1, 2):
        for found in outcomes:
            assert found == pytest.approx(whole, rel=1e-6)  # entropies are fp32 sums


def test_a_line_without_effective_ranks_has_all_the_rest():
    config, batch = toy_config(), toy_batch(4).to("cpu", torch.float32)
    state, health, found = new_state(config), Health(config.objective), []
    for with_rank in (True, False):
        health.expect(is_logged=True, with_rank=with_rank)
        accumulate_gradients(state, [batch], config.objective, 10, health=health)
        assert any("gram" in name for name in health.sums) == with_rank
        found.append(health.metrics(state.centers, {}))
    for name in ("health/cls_web/effective_rank", "health/cls_synthetic/effective_rank"):
        assert found[0].pop(name) > 1
    del found[0]["health/memory_peak_gib"], found[1]["health/memory_peak_gib"]
    assert found[0] == found[1]


def test_nothing_is_told_of_a_step_that_was_not_done():
    config = toy_config()
    state, health = new_state(config), Health(config.objective)
    health.expect(is_logged=True)
    accumulate_gradients(state, [toy_batch(4).to("cpu", torch.float32)], config.objective, 10, health=health)
    health.forget()
    assert health.metrics(state.centers, {}) == {}
