"""Times of collectives by hand."""

import pytest

from benchmarks.scaling import on_workers, slowest, straggling
from tips_ray.planning.live_storages import Message
from tips_ray.planning.network import Network, collective_seconds, exposed_seconds, network_seconds

NETWORK = Network(8, 400e9, 200e9, link_latency=1e-6, node_latency=5e-6, filled=1.0)


def test_inside_a_node_the_links_count():
    assert collective_seconds("all-gather", 8e9, 8, NETWORK) == pytest.approx(7e9 / 400e9 + 7e-6)


def test_between_nodes_the_cards_of_a_node_count():
    # 15 hops, one of them between the two nodes
    assert collective_seconds("reduce-scatter", 16e9, 16, NETWORK) == pytest.approx(15e9 / 200e9 + 14e-6 + 5e-6)
    assert collective_seconds("all-reduce", 16e9, 16, NETWORK) == pytest.approx(2 * (15e9 / 200e9 + 19e-6))


def test_groups_that_stand_beside_each_other_share_the_cards_of_a_node():
    seconds = collective_seconds("all-reduce", 4e9, 4, NETWORK, is_spread=True)
    assert seconds == pytest.approx(2 * (3e9 / (200e9 / 8) + 3 * 5e-6))


def test_one_rank_sends_nothing():
    assert collective_seconds("all-gather", 8e9, 1, NETWORK) == 0


def test_messages_add_up_by_phase():
    messages = [Message("all-gather", "student", 8 * 10**9, 8, times=2), Message("all-gather", "teacher", 8 * 10**9, 8)]
    one = 7e9 / 400e9 + 7e-6
    assert network_seconds(messages, NETWORK) == pytest.approx({"student": 2 * one, "teacher": one})


def test_computing_hides_the_messages_of_its_own_phase():
    computing = {"student": 1.0, "teacher": 1.0}
    assert exposed_seconds({"student": 0.8, "teacher": 1.5, "losses": 0.1}, computing) == pytest.approx(0.6 + 0.1)


def test_messages_of_weights_keep_their_bytes_and_those_of_embeddings_grow_with_the_workers():
    weights, embeddings = Message("all-gather", "student", 100, 64), Message("all-gather", "losses", 64, 64)
    inside, between = Message("all-gather", "student", 100, 8), Message("all-reduce", "backward", 10, 8)
    found = on_workers([weights, embeddings, inside, between], 1024)
    assert [(message.bytes, message.ranks) for message in found] == [(100, 1024), (1024, 1024), (100, 8), (10, 128)]


def test_stragglers_explain_the_efficiency_that_they_are_made_from():
    spread = straggling(0.92, 128)
    assert (1 + spread * slowest(8)) / (1 + spread * slowest(128)) == pytest.approx(0.92)
    assert slowest(8) == pytest.approx(1.4236, rel=0.01)  # tables of normal order statistics
