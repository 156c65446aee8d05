"""Whether the losses of a run are healthy, in words: each beside the values that it has when nothing is learned.

N pairs of the global batch, K prototypes. Entropies and losses are in nats and without their weights. A contrastive
loss is the mean of both directions of one caption, so chance is ln N. The loss of a prototype head is the cross-entropy
between teacher and student: the teacher's entropy is its floor, ln K is what a student reaches that calls all
prototypes equally likely, and what lies between the two is all that there is to learn.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import exp, inf, isfinite, log, log1p
from typing import Any, NamedTuple

from tips_ray.config import RunConfig
from tips_ray.runs.curves import LEAST_POINTS, Curves, Trend, last_part, trend_of
from tips_ray.runs.folder import readable_config
from tips_ray.runs.metric_names import CAPTIONS, HEADS
from tips_ray.runs.target_health import SLOWER, Finding, empty_targets, is_settled, unsteady_targets

Line = Mapping[str, Any]
NEAR = 0.02
"""Share of a trivial value within which a loss counts as being there: losses of batches scatter by more than 1 %."""
LEAST_STEPS = 30
"""Optimizer steps after the warm-up before which nothing is judged."""


class Trivial(NamedTuple):
    """A value that a loss has when nothing is learned."""

    words: str
    value: float


def trivial_values(config: RunConfig) -> dict[str, Trivial]:
    """Metric of each loss of the run -> its trivial value."""
    objective, pairs, prototypes = config.objective, config.global_batch_images, config.head.num_prototypes
    weights = {"web": objective.web_weight, "synthetic": objective.synthetic_weight}
    found = {f"loss/contrastive_{name}": Trivial(f"ln {pairs}", log(pairs)) for name in CAPTIONS if weights[name]}
    if objective.alpha and config.views.local_crops:
        found["loss/distillation"] = Trivial(f"ln {prototypes}", log(prototypes))
    if objective.beta:
        times = 1 + objective.visible_weight  # a mean over visible patches is added to that over masked ones
        words = f"ln {prototypes}" if times == 1 else f"{times:g} ln {prototypes}"
        found["loss/masked_image"] = Trivial(words, times * log(prototypes))
    return found


def findings_of(config: Mapping[str, Any], lines: Sequence[Line]) -> list[Finding]:
    """As `loss_findings`, of a config as a run folder holds it; none if this version cannot read it."""
    return loss_findings(parsed, lines) if (parsed := readable_config(config)) else []


def trivial_values_of(config: Mapping[str, Any]) -> dict[str, Trivial]:
    """As `trivial_values`, of a config as a run folder holds it; none if this version cannot read it."""
    return trivial_values(parsed) if (parsed := readable_config(config)) else {}


def loss_findings(config: RunConfig, lines: Sequence[Line]) -> list[Finding]:
    """Findings about the losses, their targets and what disturbs them; those that are ill come first.

    Only logged steps after the learning rate's warm-up are judged. "Lately" is the median of the last three values, or
    of the last twentieth. Directions are those of the last third, see `curves.trend_of`.

    Args:
        config: of the run.
        lines: its metrics, see `RunFolder.read_metrics`; a sample of them will do.
    """
    if not lines:
        return []
    curves = Curves(lines, config.schedule.warmup_steps)
    found = list(_disturbances(config, lines))
    if len(curves) < LEAST_POINTS or curves.step < config.schedule.warmup_steps + LEAST_STEPS:
        found.append(_early(config, curves, lines[-1]["step"]))
    else:
        found += [*_contrastive(config, curves), *_temperature(config, curves)]
        for head in HEADS:
            found += _head(head, config, curves)
        found += [*_embeddings(config, curves), *_gradient(curves)]
    if any(finding.short.endswith("collapsed") for finding in found):
        found = [one for one in found if one.level != "good"]  # a constant is easy to predict
    order = ("ill", "watch", "early", "good")
    return sorted(found, key=lambda finding: order.index(finding.level))


def _early(config: RunConfig, curves: Curves, step: int) -> Finding:
    from_step = config.schedule.warmup_steps + LEAST_STEPS
    seen = (
        f"too early to tell at step {step:,}: {len(curves)} logged steps after the warm-up, and judging needs "
        f"{LEAST_POINTS} of them and step {from_step:,}"
    )
    return Finding("early", "losses", seen)


def _disturbances(config: RunConfig, lines: Sequence[Line]) -> Iterator[Finding]:
    last = lines[-1]
    skipped, bad, step = last.get("guard/skipped") or 0, last.get("data/bad_fraction") or 0, last["step"]
    if skipped:
        level, seen = "ill" if skipped > 0.01 * step else "watch", f"{skipped:,.0f} of {step:,} steps were not finite"
        yield Finding(
            level, "guard", f"{seen} and were skipped", f"{SLOWER}; tips-ray replay names the bad tensor", "skips"
        )
    if bad > config.data.max_bad_fraction / 2:
        seen = f"{bad:.1%} of the rows are bad; above {config.data.max_bad_fraction:.1%} the run stops"
        yield Finding("watch", "data", seen, "look at the reasons in the rejects of the run folder")
    waits = Curves(lines, lines[0]["step"]).recent("data_wait_share")
    if waits > 0.3:
        cure = "raise resources.data_cpus; without free cores, write smaller images"
        yield Finding("watch", "data", f"training waits for data {waits:.0%} of the time", cure)


def _contrastive(config: RunConfig, curves: Curves) -> Iterator[Finding]:
    for metric, (words, chance) in trivial_values(config).items():
        loss = curves.recent(metric)
        if not metric.startswith("loss/contrastive") or not isfinite(loss):
            continue
        about, trend = metric.removeprefix("loss/"), curves.trend(metric, NEAR * chance)
        beside = f"{loss:.2f}, where guessing gives {words} = {chance:.2f}; it {_going(trend)}"
        cure = f"{SLOWER}, see whether captions tell images apart (tips-ray index shows examples)"
        if loss >= (1 - NEAR) * chance and trend.direction != "falling":
            if loss > (1 + NEAR) * chance:
                yield Finding("ill", about, f"worse than guessing: {beside}", cure, f"{about} above ln N")
            else:
                level = "ill" if is_settled(config, curves) else "watch"
                yield Finding(level, about, f"nothing is learned: {beside}", cure, f"{about} at ln N")
        elif trend.direction == "rising" and trend.last - trend.first > chance / 10:
            yield Finding("watch", about, f"it gets worse: {beside}", SLOWER)
        elif trend.direction != "falling" and _finds_by_chance(about, curves, config):
            seen = f"hardly more than guessing: {beside}{_own_caption_found(about, curves, config)}"
            yield Finding("watch", about, seen, cure)
        else:
            yield Finding("good", about, f"{beside}{_own_caption_found(about, curves, config)}")


def _finds_by_chance(about: str, curves: Curves, config: RunConfig) -> bool:
    """Fewer than twice as many images find their caption as by guessing."""
    hits = curves.recent(f"health/{about}/image_to_text")
    return isfinite(hits) and hits < 2 / config.global_batch_images


def _own_caption_found(about: str, curves: Curves, config: RunConfig) -> str:
    hits = curves.recent(f"health/{about}/image_to_text")
    chance = 1 / config.global_batch_images
    return f"; {hits:.0%} of the images find their caption (chance {chance:.1%})" if isfinite(hits) else ""


def _temperature(config: RunConfig, curves: Curves) -> Iterator[Finding]:
    """The loss is lowest where every image is as far as can be, cosine -1 / (N - 1), from all foreign captions."""
    temperature, pairs = curves.recent("health/temperature"), config.global_batch_images
    if not isfinite(temperature) or pairs < 2:
        return
    lowest = log1p((pairs - 1) * exp(-pairs / (pairs - 1) / temperature))
    cure = "start from another objective.initial_temperature (0.07 is usual), lower schedule.peak_lr"
    if lowest > log(pairs) / 2:
        seen = f"{temperature:.3g} is too high: no contrastive loss can fall below {lowest:.2f}"
        yield Finding("ill", "temperature", seen, cure, "contrastive temperature too high")
    elif temperature < 0.01:
        seen = f"{temperature:.3g}, below 0.01, where CLIP stops it: gradients come from few pairs"
        yield Finding("watch", "temperature", seen, cure)


def _head(head: str, config: RunConfig, curves: Curves) -> Iterator[Finding]:
    """The targets first: a loss says nothing where they are collapsed."""
    loss, trivial = curves.recent(f"loss/{head}"), trivial_values(config).get(f"loss/{head}")
    if trivial is None or not isfinite(loss):
        return
    if loss == 0 and head == "masked_image":
        cure = "raise views.mask_ratio, or set objective.beta=0"
        yield Finding("ill", head, "0: no patch is masked, so there is nothing to predict", cure, "nothing is masked")
        return
    targets = list(empty_targets(head, config, curves))
    yield from targets or unsteady_targets(head, config, curves)
    if loss > (1 + NEAR / 2) * trivial.value or not targets:
        yield _against_teacher(head, loss, trivial, config, curves)


def _against_teacher(head: str, loss: float, trivial: Trivial, config: RunConfig, curves: Curves) -> Finding:
    times, prototypes = trivial.value / log(config.head.num_prototypes), config.head.num_prototypes
    floor = times * curves.recent(f"health/{head}/target_entropy")
    learned = _learned(head, trivial, times, curves)
    beside = f"{loss:.2f}, between the teacher's entropy {floor:.2f} and uniform {trivial.words} = {trivial.value:.2f}"
    temperature = _student_temperature(head, config)
    lowest = times * log1p((prototypes - 1) * exp(-2 / temperature))  # scores are cosines
    if loss > (1 + NEAR / 2) * trivial.value:
        seen = (
            f"lately {loss:.2f}, above {trivial.words} = {trivial.value:.2f}, which a student that knows nothing "
            f"reaches: it is surer than it is right; {learned.steps:,} steps before it predicted "
            f"{_percent(learned.first)} of what the teacher tells"
        )
        cure = f"{SLOWER}, raise objective.student_temperature ({temperature:.3g}) or objective.ema_momentum"
        return Finding("ill", head, seen, cure, f"{head} above {trivial.words}")
    if lowest - floor > (trivial.value - floor) / 2:
        seen = f"{beside}; with this student temperature no loss can fall below {lowest:.2f}"
        cure = f"lower objective.student_temperature ({temperature:.3g}; 0.1 is usual)"
        return Finding("ill", head, seen, cure, f"{head} student temperature too high")
    told = f"{beside}: {_share_in_words(learned)}"
    if learned.last < 0.1 and learned.direction != "rising":
        level = "ill" if learned.last < NEAR and is_settled(config, curves) else "watch"
        return Finding(level, head, f"hardly anything is learned: {told}", SLOWER, f"{head} at {trivial.words}")
    if learned.direction == "falling" and learned.last < 0.5 and learned.first - learned.last > 0.25:
        cure = f"{SLOWER} or raise objective.ema_momentum, if it goes on"
        return Finding("watch", head, f"the student falls behind its teacher: {told}", cure)
    return Finding("good", head, told)


def _learned(head: str, trivial: Trivial, times: float, curves: Curves) -> Trend:
    """Share of what the teacher tells that the student predicts: 1 at the floor, 0 at the trivial value."""
    floors = {step: times * entropy for step, entropy in curves.points(f"health/{head}/target_entropy")}
    losses = [(step, loss) for step, loss in curves.points(f"loss/{head}") if floors.get(step, inf) < trivial.value]
    shares = [(step, (trivial.value - loss) / (trivial.value - floors[step])) for step, loss in losses]
    return trend_of(last_part(shares), NEAR)


def _share_in_words(learned: Trend) -> str:
    now = f"the student predicts {_percent(learned.last)} of what the teacher tells"
    before = "as" if learned.direction == "flat" else _percent(learned.first)
    return f"{now}, {before} {learned.steps:,} steps before"


def _percent(share: float) -> str:
    return f"{min(max(share, 0), 1):.0%}"


def _student_temperature(head: str, config: RunConfig) -> float:
    objective = config.objective
    own = objective.masked_student_temperature if head == "masked_image" else None
    return own or objective.student_temperature


def _embeddings(config: RunConfig, curves: Curves) -> Iterator[Finding]:
    """CLS tokens that are alike for all images; a token that no loss trains is not judged."""
    objective = config.objective
    trained = {"web": objective.web_weight or objective.alpha, "synthetic": objective.synthetic_weight}
    for name in (name for name in CAPTIONS if trained[name]):
        cosine, rank = (curves.recent(f"health/cls_{name}/{metric}") for metric in ("cosine", "effective_rank"))
        seen = f"all images look nearly alike: mean cosine {cosine:.3f}, effective rank {rank:.1f}"
        if cosine > 0.98 or rank < 2:
            cure = f"{SLOWER}; see whether images and captions differ"
            yield Finding("ill", f"cls_{name}", seen, cure, f"cls_{name} collapsed")


def _gradient(curves: Curves) -> Iterator[Finding]:
    trend = curves.trend("grad_norm")
    if trend.direction == "rising" and trend.last > 10 * max(trend.first, 0) > 0:
        seen = f"grows from {trend.first:.3g} to {trend.last:.3g} within {trend.steps:,} steps"
        yield Finding("watch", "grad_norm", seen, SLOWER)


def _going(trend: Trend) -> str:
    if trend.direction == "flat":
        return f"has been level for {trend.steps:,} steps"
    verb = "falls" if trend.direction == "falling" else "rises"
    return f"{verb} from {trend.first:.2f} to {trend.last:.2f} over the last {trend.steps:,} steps"
