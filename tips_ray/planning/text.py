"""A plan as a person reads it."""

from collections.abc import Iterator, Mapping, Sequence
from math import ceil

from tips_ray.planning.content import MemoryPlan, Plan
from tips_ray.planning.estimate import ROWS
from tips_ray.planning.micro_batch import Largest
from tips_ray.words import ago, bytes_text, seconds_text, table

OF_QUANTITY = {"images_per_second": "images/s", "memory_bytes": "memory", "wall_seconds": "time"}


def plan_lines(plan: Plan, largest: Largest | None, price: str) -> Iterator[str]:
    """Lines of the plan.

    Args:
        plan: to show.
        largest: images per pass that fit; None: nobody looked.
        price: where the price is from, if there is a cost.
    """
    yield f"machine    {plan.machine}, {plan.workers} workers"
    step = plan.step
    seen = f"{plan.images_seen:,} images seen, {_count(plan.epochs)} epochs"
    yield f"run        {seen}; {step.tflop_per_image:.3g} TFLOP an image"
    yield from _memory_lines(plan.memory, largest)
    spent, computing = seconds_text(step.seconds), seconds_text(step.compute_seconds)
    yield f"step       {spent}, of which {computing} compute ({step.rate_source})"
    sent, exposed = bytes_text(step.network_bytes), seconds_text(step.exposed_seconds)
    yield f"network    {sent} a step in {seconds_text(step.network_seconds)}, of which {exposed} are not hidden"
    yield "rates      " + ", ".join(f"{name} {rate:,.0f} images/s" for name, rate in plan.rates.items())
    for name, amount in plan.needed.items():
        shown = f"{bytes_text(amount)}/s" if name == ROWS else f"{ceil(amount):,}"
        yield f"           training needs {shown} {name}"
    if plan.caption_hours:
        yield f"captions   {ago(3600 * plan.caption_hours)} on the same GPUs, if made ahead"
    kept = plan.storage
    yield (
        f"storage    {kept.requests_per_second:,.0f} reads/s, {bytes_text(kept.read_bytes_per_second)}/s; captions "
        f"{bytes_text(kept.caption_bytes)}; {kept.kept_checkpoints} checkpoints of {bytes_text(kept.checkpoint_bytes)}"
    )
    lost = f", {plan.lost_share:.1%} of it lost to nodes that are taken away" if plan.lost_share else ""
    yield f"time       {ago(plan.wall_seconds)}{lost}"
    if plan.cost is not None:
        yield f"cost       {plan.cost:,.0f} ({price})"
    yield f"weakest    {plan.weakest}: {plan.advice}"


def _count(epochs: float) -> str:
    return f"{epochs:,.0f}" if epochs >= 10 else f"{epochs:.2g}"


def _memory_lines(memory: MemoryPlan, largest: Largest | None) -> Iterator[str]:
    yield f"memory     of one worker, at its most in phase {memory.phase}:"
    for kind, size in memory.parts.items():
        yield f"           {bytes_text(size):>8}  {kind}"
    limit, verdict = bytes_text(memory.limit_bytes), "fits" if memory.fits else "DOES NOT FIT"
    passes = f"{memory.micro_batch_images} images a pass"
    yield f"           {bytes_text(memory.peak_bytes):>8}  in all, of {limit} for a step: {verdict} with {passes}"
    if largest is not None:
        kept = f", {largest.with_graph} with resources.keep_embedding_graph=true" if largest.with_graph else ""
        yield f"           largest micro-batch that fits: {largest.images or 'none'}{kept}"


def error_lines(errors: Mapping[str, Sequence[float]], kind: str) -> Iterator[str]:
    """How far the last predictions on this kind of machine were off."""
    if not errors:
        yield f"error      no run on {kind} has been compared with its plan (tips-ray plan --against RUN)"
    for name, values in errors.items():
        shown, last = ", ".join(f"{value:+.0%}" for value in values), f"the last {len(values)} predictions on {kind}"
        yield f"error      {OF_QUANTITY.get(name, name)}: {last} were off by {shown}"


def comparison_table(raw: Mapping[str, float], predicted: Mapping[str, float], measured: Mapping[str, float]) -> str:
    """A run beside its plan, a row for each quantity."""
    rows = [
        [OF_QUANTITY.get(name, name), *(f"{values[name]:.4g}" for values in (raw, predicted, measured))]
        + [f"{predicted[name] / measured[name] - 1:+.1%}"]
        for name in measured
    ]
    return table(["", "planned, uncorrected", "planned", "measured", "off"], rows)
