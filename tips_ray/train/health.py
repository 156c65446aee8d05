"""Health of training, measured on outputs that a step has anyway.

B images on this rank, N global batch, R rows, D width, K prototypes. Everything is a sum over samples, so that
micro-batches and ranks add up: a logged step has one collective more, and no second forward.
"""

import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from math import log

import torch
from torch import Tensor

from tips_ray.batch import Batch
from tips_ray.config import ObjectiveConfig
from tips_ray.distributed import gather_batch, rank, sum_over_ranks, world_size
from tips_ray.models.heads import ROWS_AT_ONCE, PrototypeScores
from tips_ray.models.networks import Embeddings, TeacherScores, scored_patches
from tips_ray.objective import Centers, Temperatures, patch_weights
from tips_ray.train.information import WINDOW_IMAGES, InformationWindow, TargetSums

CAPTIONS = {"web": (0, 2), "synthetic": (1, 3)}
"""Places in `Embeddings` of a CLS token and its caption."""
_CLS = [f"cls_{name}" for name in CAPTIONS]
HEADS = ("distillation", "masked_image")


def targets(teacher_RK: Tensor, center_K: Tensor, teacher_temperature: float) -> Tensor:
    """softmax((t - c) / tau_t), [R, K]."""
    return ((teacher_RK.float() - center_K) / teacher_temperature).softmax(dim=-1)


def target_entropy(target_RK: Tensor) -> Tensor:
    """Entropy of each target, [R], in nats: 0 where one prototype has all, ln K where all are alike."""
    return torch.special.entr(target_RK).sum(dim=-1)


def winners(teacher_RK: Tensor, center_K: Tensor) -> Tensor:
    """The prototype that has most of each row's target, [R]."""
    return (teacher_RK - center_K).argmax(dim=-1)


def effective_rank(gram_DD: Tensor) -> float:
    """exp of the entropy of X's normalised singular values, given X^T X: 1 on a line, D if all directions are alike.

    Source: RankMe, arXiv:2210.02885, without its epsilon.
    """
    singular_D = torch.linalg.eigvalsh(gram_DD.double()).clamp(min=0).sqrt()
    share_D = singular_D / singular_D.sum().clamp(min=torch.finfo(torch.double).tiny)
    return torch.special.entr(share_D).sum().exp().item()


def mean_cosine(sum_D: Tensor, count: float) -> float:
    """Mean cosine over the pairs of `count` unit vectors with this sum; 0 for fewer than two."""
    return ((sum_D.double().square().sum() - count) / max(count * (count - 1), 1)).item()


def contrastive_hits(image_BD: Tensor, text_BD: Tensor, valid_B: Tensor) -> Tensor:
    """Valid images whose nearest valid text of the global batch is their own, and texts likewise, [2]; a collective."""
    image_ND, text_ND, valid_N = gather_batch(image_BD), gather_batch(text_BD), gather_batch(valid_B.float()) > 0
    own_B = rank() * len(valid_B) + torch.arange(len(valid_B), device=valid_B.device)
    nearest = [
        (query_BD.float() @ key_ND.float().T).masked_fill(~valid_N, -torch.inf).argmax(dim=1)
        for query_BD, key_ND in ((image_BD, text_ND), (text_BD, image_ND))
    ]
    return torch.stack([((near_B == own_B) & valid_B).sum() for near_B in nearest])


def prototype_usage(wins_K: Tensor) -> float:
    """Share of the prototypes that have won a row."""
    return (wins_K > 0).double().mean().item()


class Health:
    """Sums until the next logged step. Call `expect` before each step and `metrics` after a logged one.

    The distillation head's prototypes are counted over all steps in between, because one batch may have fewer images
    than there are prototypes. The information is that of the last logged steps, see `InformationWindow`; all else is of
    the logged step.
    """

    def __init__(self, objective: ObjectiveConfig, window_images: int = WINDOW_IMAGES) -> None:
        self.objective = objective
        self.windows = {head: InformationWindow(window_images) for head in HEADS}
        self.sums: dict[str, Tensor] = {}
        self.expect(is_logged=False)

    def expect(self, is_logged: bool, with_rank: bool = True) -> None:
        """Set whether the next step is logged, and whether its line has the effective ranks, which take long."""
        self.is_logged, self.with_rank = is_logged, with_rank

    def forget(self) -> None:
        """Drop the sums: they belong to a step that was not done."""
        self.sums = {}

    @torch.no_grad()
    def see_embeddings(self, embedded: Sequence[tuple[Embeddings, Tensor]], valid: Sequence[Tensor]) -> None:
        """Embeddings of all micro-batches, each with the log temperature, and which of their images are valid."""
        if not self.is_logged:
            return
        embeddings = [torch.cat(parts) for parts in zip(*(found for found, _ in embedded), strict=True)]
        valid_B = torch.cat(list(valid))
        self._add("valid", valid_B.sum())
        self._add("temperature", embedded[0][1].exp().sum() / world_size())
        for name, (image, text) in CAPTIONS.items():
            cls_BD = embeddings[image].double().masked_fill(~valid_B[:, None], 0)
            self._add(f"cls_{name}/sum", cls_BD.sum(dim=0))
            if self.with_rank:
                self._add(f"cls_{name}/gram", cls_BD.T @ cls_BD)
            self._add(f"contrastive_{name}/hits", contrastive_hits(embeddings[image], embeddings[text], valid_B))

    @torch.no_grad()
    def see_targets(
        self, scores: TeacherScores, centers: Centers, batch: Batch, temperatures: Mapping[str, Temperatures]
    ) -> None:
        """The teacher's scores of one micro-batch, with the centres and temperatures of its step."""
        if scores.cls is not None:
            teacher = temperatures["distillation"].teacher
            weight_B = batch.valid_B.double()
            self._add_targets("distillation", scores.cls, batch.valid_B, weight_B, centers.distillation_K, teacher)
        if scores.patch is not None and self.is_logged:
            image_M = scored_patches(batch, self.objective) // batch.patch_mask_BL.shape[1]
            weight_M, counted_M = patch_weights(batch, self.objective), batch.valid_B[image_M]
            teacher = temperatures["masked_image"].teacher
            self._add_targets("masked_image", scores.patch, counted_M, weight_M, centers.masked_image_K, teacher)

    def _add_targets(
        self,
        head: str,
        teacher: PrototypeScores,
        counted_R: Tensor,
        weight_R: Tensor,
        center_K: Tensor,
        teacher_temperature: float,
    ) -> None:
        """Wins of each prototype and, at a logged step, targets; the scores are made again, a few rows at a time.

        `weight_R` has the rows' weights in the loss, 0 where a row does not count.
        """
        winner, entropy, counted_R = [], [], counted_R.double()
        target_K = torch.zeros_like(center_K, dtype=torch.double)
        weights = iter(weight_R.split(ROWS_AT_ONCE))
        for teacher_CK in teacher.chunks():
            winner.append(winners(teacher_CK, center_K))
            if self.is_logged:
                target_CK = targets(teacher_CK, center_K, teacher_temperature)
                entropy.append(target_entropy(target_CK).double())
                target_K += next(weights).to(target_CK.dtype) @ target_CK
        wins_K = torch.zeros_like(target_K)
        self._add(f"{head}/wins", wins_K.scatter_add_(0, torch.cat(winner), counted_R))
        if self.is_logged:
            entropy_R = torch.cat(entropy)
            self._add(f"{head}/entropy", torch.stack([entropy_R @ counted_R, counted_R.sum()]))
            self._add(f"{head}/weighted_entropy", torch.stack([entropy_R @ weight_R, weight_R.sum()]))
            self._add(f"{head}/targets", target_K)

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value.double()

    def metrics(self, centers: Centers, losses: Mapping[str, float]) -> dict[str, float]:
        """Metrics of the step just done, none if it was skipped; resets the sums. Every rank calls this.

        `losses` has the step's means over ranks, such as `loss/distillation`.
        """
        if "valid" not in self.sums:
            return {}
        self._add("memory_peak_bytes", _in_own_place(memory_peak_bytes(self.sums["valid"].device), self.sums["valid"]))
        sums, self.sums = _over_ranks(self.sums), {}
        ranks = {name: effective_rank(sums.pop(f"{name}/gram")) for name in _CLS if f"{name}/gram" in sums}
        heads = [head for head in HEADS if f"{head}/entropy" in sums]
        norms = {f"{head}/center_norm": getattr(centers, f"{head}_K").norm().double() for head in heads}
        sums = _on_host(sums | norms)
        found = {"temperature": sums["temperature"].item()}
        found["memory_peak_gib"] = sums["memory_peak_bytes"].max().item() / 2**30
        for name in CAPTIONS:
            found |= _of_embeddings(name, sums, sums["valid"].item())
        for head in heads:
            found |= _of_targets(head, sums)
            if (loss := losses.get(f"loss/{head}")) is not None:
                added = self.windows[head].add(target_sums(head, sums, loss))
                found |= {f"{head}/{name}": value for name, value in added.items()}
        found |= {f"{name}/effective_rank": value for name, value in ranks.items()}
        return {f"health/{name}": value for name, value in found.items()}


def _of_embeddings(name: str, sums: dict[str, Tensor], valid: float) -> dict[str, float]:
    to_text, to_image = (sums[f"contrastive_{name}/hits"] / max(valid, 1)).tolist()
    return {
        f"cls_{name}/cosine": mean_cosine(sums[f"cls_{name}/sum"], valid),
        f"contrastive_{name}/image_to_text": to_text,
        f"contrastive_{name}/text_to_image": to_image,
    }


def _of_targets(head: str, sums: dict[str, Tensor]) -> dict[str, float]:
    total, rows = sums[f"{head}/entropy"].tolist()
    entropy = total / max(rows, 1)
    return {
        f"{head}/target_entropy": entropy,
        f"{head}/target_entropy_share": entropy / log(max(len(sums[f"{head}/wins"]), 2)),
        f"{head}/prototype_usage": prototype_usage(sums[f"{head}/wins"]),
        f"{head}/center_norm": sums[f"{head}/center_norm"].item(),
    }


def target_sums(head: str, sums: Mapping[str, Tensor], loss: float) -> TargetSums:
    """Sums of a step whose loss is the mean over valid images of their rows' weighted cross-entropies."""
    images = sums["valid"].item()
    entropy, weight = sums[f"{head}/weighted_entropy"].tolist()
    return TargetSums(images, weight, sums[f"{head}/targets"], entropy, images * loss)


def _over_ranks(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """All sums in one collective."""
    return _all_at_once(sums, sum_over_ranks)


def _on_host(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """All sums in one copy."""
    return _all_at_once(sums, Tensor.cpu)


def _all_at_once(sums: dict[str, Tensor], act: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    total = act(torch.cat([value.flatten() for value in sums.values()]))
    parts = total.split([value.numel() for value in sums.values()])
    return {name: part.view(sums[name].shape) for name, part in zip(sums, parts, strict=True)}


def _in_own_place(number: float, like: Tensor) -> Tensor:
    """Zeros but for this rank's entry, so that a sum over ranks lists all of them."""
    places = torch.zeros(world_size(), dtype=torch.double, device=like.device)
    places[rank()].fill_(number)
    return places


def memory_peak_bytes(device: torch.device) -> int:
    """Most memory so far: allocated by torch on a CUDA device, resident of this process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
