"""Plan a run before a machine is held: memory, time, network, storage, cost, and what gives way first.

  tips-ray plan run.yaml --images 116M --gpus h100:64
  tips-ray plan run.yaml --images 116M --gpus h100:64 --price 2.50 --spot 0.02 --cores 96 resources.recompute=full
  tips-ray plan --against out/runs/photos        how far the plan of a finished run was off; the next plan knows it

No GPU is needed: the step of one worker is traced on tensors without numbers, which takes half a minute for ViT-S and a
minute and a half for ViT-g. Prices are only those that you give. docs/plan.md says what each number comes from.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tips_ray.config import RunConfig
    from tips_ray.planning.calibration import Comparison
    from tips_ray.planning.content import Given
    from tips_ray.planning.machines import Machine
    from tips_ray.planning.micro_batch import Largest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray plan`."""
    parser.add_argument("config", type=Path, nargs="?", metavar="RUN.yaml", help="config of the run")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of the config, dotted")
    parser.add_argument("--images", metavar="116M", help="images of the data")
    parser.add_argument("--gpus", metavar="h100:64", help="kind and number; every GPU is a worker; cpu:2 for this CPU")
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--mfu", type=float, help="share of the datasheet's peak, such as 0.35")
    parser.add_argument("--images-per-second", type=float, help="of one GPU, measured by benchmarks.train_step")
    parser.add_argument("--captions-per-second", type=float, help="of one captioner")
    parser.add_argument("--views-per-core", type=float, help="images/s, measured by benchmarks.views or stream")
    parser.add_argument("--cores", type=int, metavar="N", help="CPU cores of a node")
    parser.add_argument("--network", type=float, metavar="GBIT", help="Gbit/s of a node to others, all cards together")
    parser.add_argument("--price", type=float, help="of a GPU and hour; without it there is no cost")
    parser.add_argument("--spot", type=float, default=0.0, metavar="LOSSES", help="losses of a node per hour")
    parser.add_argument(
        "--largest", action=argparse.BooleanOptionalAction, default=True, help="look for the largest micro-batch"
    )
    parser.add_argument("--against", metavar="RUN", help="compare a finished run with its plan, and keep the ratio")
    parser.add_argument("--calibration", metavar="FILE", help="where ratios are kept; default: the user's data folder")
    parser.add_argument("--json", action="store_true", help="the plan as one JSON object")


def run(arguments: argparse.Namespace) -> None:
    """Print the plan, or how far it was off.

    Raises:
        ValueError: an argument is missing or wrong, or the run cannot be compared.
    """
    from tips_ray.planning import calibration

    arguments.calibration = arguments.calibration or calibration.default_file()
    known = calibration.read(arguments.calibration)
    if arguments.against:
        _compare(arguments, known)
    else:
        _plan(arguments, known)


def _plan(arguments: argparse.Namespace, known: "list[Comparison]") -> None:
    import json
    from dataclasses import asdict

    from tips_ray.planning import calibration
    from tips_ray.planning.estimate import memory_limit, plan, require_known
    from tips_ray.planning.flops import image_flops
    from tips_ray.planning.micro_batch import largest_micro_batch, settled
    from tips_ray.planning.step_trace import traced_in_run
    from tips_ray.planning.text import error_lines, plan_lines

    given = _given(arguments, known)
    config = _config(arguments, given.machine)
    require_known(config, given)
    print("tracing the step ...", file=sys.stderr, flush=True)
    largest = None
    if arguments.largest or config.micro_batch_images == "auto":
        largest = largest_micro_batch(config, memory_limit(given.machine) / given.ratios.get("memory_bytes", 1.0))
    if largest and config.micro_batch_images == "auto":
        config = settled(config, largest)
    found = plan(config, given, traced_in_run(config), image_flops(config))
    errors = calibration.errors(known, given.machine.kind)
    if arguments.json:
        print(json.dumps({**asdict(found), **_sizes(largest), "errors": errors}, indent=1))
        return
    price = f"{arguments.price} a GPU and hour as entered"
    print(*plan_lines(found, largest, price), *error_lines(errors, given.machine.kind), sep="\n")


def _sizes(largest: "Largest | None") -> dict[str, int | None]:
    """The largest micro-batches as `--json` names them; None: nobody looked."""
    images, with_graph = largest or (None, None)
    return {"largest_micro_batch": images, "largest_with_graph": with_graph}


def _given(
    arguments: argparse.Namespace, known: "list[Comparison]", gpus: str | None = None, images: int | None = None
) -> "Given":
    """What the person has entered, and the ratios of earlier runs.

    Raises:
        ValueError: an argument is missing or wrong.
    """
    from tips_ray.planning import calibration
    from tips_ray.planning.content import Given
    from tips_ray.planning.machines import count_of, machine

    for name in (
        "mfu",
        "images_per_second",
        "captions_per_second",
        "views_per_core",
        "cores",
        "network",
        "gpus_per_node",
    ):
        value = getattr(arguments, name)
        if value is not None and value <= 0:
            raise ValueError(f"--{name.replace('_', '-')} ({value}) must be above 0")
    if not gpus and not arguments.gpus or not images and not arguments.images:
        raise ValueError("a plan needs --images and --gpus, such as --images 116M --gpus h100:64")
    machine_ = machine(gpus or arguments.gpus, arguments.gpus_per_node)
    return Given(
        images or count_of(arguments.images),
        machine_,
        arguments.mfu,
        arguments.images_per_second,
        arguments.captions_per_second,
        arguments.views_per_core,
        arguments.cores,
        arguments.network,
        arguments.price,
        arguments.spot,
        calibration.ratios(known, machine_.kind),
    )


def _config(arguments: argparse.Namespace, machine: "Machine") -> "RunConfig":
    """The run's config with one worker for each GPU, or CPU worker, of the machine."""
    from tips_ray.config import RunConfig, load_config

    if not arguments.config:
        raise ValueError("a plan needs the config of a run: tips-ray plan RUN.yaml --images 116M --gpus h100:64")
    own = [f"resources.workers={machine.workers}", "resources.min_workers=null"]
    own += [f"resources.gpus_per_worker={int(machine.kind != 'cpu')}"]  # on which dtype and compile depend
    return load_config(RunConfig, arguments.config, [*arguments.overrides, *own])


def _compare(arguments: argparse.Namespace, known: "list[Comparison]") -> None:
    from datetime import UTC, datetime

    from tips_ray import storage
    from tips_ray.planning import calibration
    from tips_ray.planning.against import finished_run
    from tips_ray.planning.estimate import plan
    from tips_ray.planning.flops import image_flops
    from tips_ray.planning.step_trace import traced_in_run
    from tips_ray.planning.text import comparison_table

    uri = storage.resolved(arguments.against)
    done = finished_run(uri)
    kind, others = done.gpus.partition(":")[0], [one for one in known if one.run != uri]
    given = _given(arguments, [], done.gpus, done.config.schedule.total_steps * done.config.global_batch_images)
    raw = plan(done.config, given, traced_in_run(done.config), image_flops(done.config)).raw
    ratios = calibration.ratios(others, kind)
    predicted = {name: value * ratios.get(name, 1.0) for name, value in raw.items()}
    new = calibration.Comparison(
        kind, uri, datetime.now(UTC).isoformat(timespec="seconds"), raw, predicted, done.measured
    )
    calibration.write(arguments.calibration, calibration.with_comparison(known, new))
    print(comparison_table(raw, predicted, done.measured))
    print(f"kept for the next plan on {kind}: {arguments.calibration}")
