"""Image to image retrieval of the same thing, as in UnED. N images, E width, Q queries, k neighbours.

Source: Towards Universal Image Embeddings, ICCV 2023. Its code drops the first hit of a query that is in the index, by
rank. Here a query never finds itself, by identity: a duplicate that ties with it then costs and gains nothing.
"""

from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from tips_ray.config.evaluation import InstanceRetrievalConfig
from tips_ray.evaluation.datasets.examples import Instances
from tips_ray.evaluation.metrics import nearest
from tips_ray.evaluation.uncertainty import mean_error, share_error


class Found(NamedTuple):
    """Scores and their standard errors over the queries."""

    scores: dict[str, float]
    standard_errors: dict[str, float]


def instance_retrieval(embedding_NE: Tensor, instances: Instances, config: InstanceRetrievalConfig) -> Found:
    """R@1 and mMP@k of each domain, and their means over the domains, for each kind of index.

    A hit has a class of the query and is of its domain. `merged` searches the images of all domains, `separate` those
    of the query's own. mMP@k is the share of right images among the first min(k, right images in the index).

    Args:
        embedding_NE: embeddings of any norm, of queries and index.
        instances: queries, index and classes of the same images.
        config: kinds of index, and k.

    Raises:
        ValueError: a domain has no query, or an embedding is not finite.
    """
    scores, errors = dict[str, float](), dict[str, float]()
    for kind in config.index:
        domains = range(len(instances.domains))
        of_domains = [_of_domain(embedding_NE, instances, domain, kind, config) for domain in domains]
        for metric in of_domains[0]:
            values, its_errors = zip(*(found[metric] for found in of_domains), strict=True)
            names = [f"{kind}/{metric}", *(f"{kind}/{name}_{metric}" for name in instances.domains)]
            scores |= dict(zip(names, [sum(values) / len(values), *values], strict=True))
            of_mean = sqrt(sum(error**2 for error in its_errors)) / len(values)
            errors |= dict(zip(names, [of_mean, *its_errors], strict=True))
    return Found(scores, errors)


def _of_domain(
    embedding_NE: Tensor, instances: Instances, domain: int, kind: str, config: InstanceRetrievalConfig
) -> dict[str, tuple[float, float]]:
    """Scores of the queries of one domain, each with its standard error."""
    is_own_N = instances.domain_N == domain
    places_Q = (instances.is_query_N & is_own_N).nonzero()[:, 0]
    if not len(places_Q):
        raise ValueError(f"{instances.domains[domain]} has no query with another image of its class")
    index_N = instances.is_index_N if kind == "merged" else instances.is_index_N & is_own_N
    right_Qk = _right(instances, places_Q, others(embedding_NE, places_Q, index_N.nonzero()[:, 0], config.mmp_at))
    precision_Q = _precision(right_Qk, instances.relevant_N[places_Q], config.mmp_at)
    recall = right_Qk[:, 0].double().mean().item()
    return {
        "recall_at_1": (recall, share_error(recall, len(places_Q))),
        f"mmp_at_{config.mmp_at}": (precision_Q.mean().item(), mean_error(precision_Q.tolist())),
    }


def others(embedding_NE: Tensor, queries_Q: Tensor, index_M: Tensor, most: int) -> Tensor:
    """Places of the `most` nearest images of the index to each query, itself left out, [Q, k]; -1 where there is none.

    Args:
        embedding_NE: embeddings of all images.
        queries_Q: places of the queries.
        index_M: places of the images to search.
        most: k.
    """
    _, rank_Qk = nearest(embedding_NE[queries_Q], embedding_NE[index_M], min(most + 1, len(index_M)))
    places_Qk = index_M[rank_Qk]
    is_self_Qk = places_Qk == queries_Q[:, None]
    order_Qk = is_self_Qk.int().argsort(dim=1, stable=True)  # itself goes last
    return places_Qk.masked_fill(is_self_Qk, -1).gather(1, order_Qk)[:, :most]


def _right(instances: Instances, places_Q: Tensor, places_Qk: Tensor) -> Tensor:
    """Whether each neighbour is of the query's domain and has one of its classes, [Q, k]."""
    same_domain_Qk = (instances.domain_N[places_Q][:, None] == instances.domain_N[places_Qk]) & (places_Qk >= 0)
    classes = [set(instances.labels[place]) for place in places_Q.tolist()]
    shares_Qk = torch.tensor(
        [
            [not own.isdisjoint(instances.labels[place]) for place in places_k]
            for own, places_k in zip(classes, places_Qk.tolist(), strict=True)
        ]
    )
    return same_domain_Qk & shares_Qk


def _precision(right_Qk: Tensor, relevant_Q: Tensor, most: int) -> Tensor:
    """Share of right images among the first min(most, right images of the index), [Q]."""
    counted_Q = relevant_Q.clamp(max=most)
    is_counted_Qk = torch.arange(right_Qk.shape[1])[None] < counted_Q[:, None]
    return (right_Qk & is_counted_Qk).sum(dim=1).double() / counted_Q
