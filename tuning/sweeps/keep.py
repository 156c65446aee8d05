"""What `tips-ray sweeps` does: each function returns the lines to print."""

from collections.abc import Iterator, Sequence

from tips_ray import storage
from tips_ray.config.load import override_values
from tips_ray.config.sweep import SweepConfig
from tips_ray.runs import lease
from tips_ray.runs.stop import ask_to_stop, user_here
from tips_ray.words import table
from tuning.sweeps.folder import CONFIG, kept_lease, sweep_config
from tuning.sweeps.record import ADDED, Record, Setting
from tuning.sweeps.rungs import Rungs
from tuning.sweeps.space import lies_in, name_in_list, run_of, whole_values
from tuning.sweeps.summary import Summary


def list_lines(storage_uri: str) -> Iterator[str]:
    """A line for each sweep below a folder or prefix."""
    rows = []
    for uri in storage.list_folders(storage_uri):
        if not storage.exists(storage.join(uri, CONFIG)):
            continue
        try:
            summary = Summary(sweep_config(uri), Record(uri))
        except ValueError as error:
            rows.append([uri, "", "", f"damaged: {' '.join(str(error).split())[:120]}", _holder(uri)])
        else:
            complete = sum(summary.state(one) == "complete" for one in summary.settings)
            found = summary.winner()
            best = f"setting {found[0].number} at step {found[1]}" if found else "none yet"
            rows.append([uri, str(len(summary.settings)), str(complete), best, _holder(uri)])
    if not rows:
        yield f"{storage_uri} holds no sweeps; give the storage of their configs"
    else:
        yield table(["sweep", "settings", "complete", "best", "driver"], rows)


def show_lines(uri: str) -> Iterator[str]:
    """The table of settings, the best first, and the result in words."""
    summary = Summary(sweep_config(uri), Record(uri))
    yield table(summary.heads(), summary.rows()) if summary.settings else "no settings yet"
    yield from summary.sentences()
    yield f"driver: {_holder(uri)}"


def stop_lines(uri: str) -> Iterator[str]:
    """Ask the driver and its trials to save and leave."""
    sweep_config(uri)
    ask_to_stop(uri, user_here())
    yield f"asked {_holder(uri)} to stop the sweep; running trials save first, then the same command goes on"


def add_lines(uri: str, words: Sequence[str]) -> Iterator[str]:
    """Add a setting of the user's own."""
    config = sweep_config(uri)
    if config.listed:
        raise ValueError(f"{config.name} has its settings in `listed` of its file: add one there, and start it again")
    values = override_values(words)
    if not values:
        raise ValueError(f"give the setting's values, such as {next(iter(config.space))}=1")
    base, whole = run_of(config, values), whole_values(config, values)
    if unknown := [key for key in values if key not in whole]:
        kind = "has no effect, since its condition does not hold" if unknown[0] in config.space else "is no key of"
        raise ValueError(f"{unknown[0]} {kind} the sweep's space ({', '.join(config.space)}): leave it out")
    if not lies_in(config, whole):
        raise ValueError(f"{' '.join(words)} lies outside of the sweep's space ({', '.join(config.space)}): widen that")
    with kept_lease(uri):
        record = Record(uri)
        known = next((one for one in record.settings.values() if one.values == whole), None)
        if known:
            raise ValueError(f"setting {known.number} has these values; tips-ray sweeps promote lets it train on")
        added = record.add_setting(whole, ADDED, Rungs(config, base).first_step())
    yield f"setting {added.number} is added; tips-ray sweep with the sweep's config trains it"


def promote_lines(uri: str, words: Sequence[str]) -> Iterator[str]:
    """Let a setting train to its next rung, or to a later one."""
    config = sweep_config(uri)
    with kept_lease(uri):
        record = Record(uri)
        setting, steps = _setting(config, record, words), Rungs(config, run_of(config, {})).steps
        step = _step(config, setting, words[1:], steps)
        if setting.ended:
            raise ValueError(f"setting {setting.number} gets no further steps: {setting.ended}")
        record.grant(setting, step)
    yield f"setting {setting.number} may train to step {step}; tips-ray sweep with the sweep's config trains it"


def _setting(config: SweepConfig, record: Record, words: Sequence[str]) -> Setting:
    number = int(words[0]) if words and words[0].isdigit() else None
    if words and words[0] in config.listed:
        every = record.settings.values()
        number = next((one.number for one in every if name_in_list(config, one.values) == words[0]), None)
    if number not in record.settings:
        known = f"0 to {len(record.settings) - 1}" if record.settings else "none yet"
        raise ValueError(f"SETTING ({words[0] if words else 'missing'}) must be the number of a setting: {known}")
    return record.settings[number]


def _step(config: SweepConfig, setting: Setting, words: Sequence[str], steps: Sequence[int]) -> int:
    if len(words) > 1:
        raise ValueError(f"promote takes SETTING and STEP, not {words[1]!r} as well")
    higher = [step for step in steps if step > setting.granted]
    if not higher:
        raise ValueError(f"setting {setting.number} may train to the end already")
    if not words:
        return higher[0]
    if words[0] not in map(str, higher):
        raise ValueError(f"STEP ({words[0]}) must be a rung of {config.name} above {setting.granted}: {higher}")
    return int(words[0])


def _holder(uri: str) -> str:
    generation, holder = lease.newest(uri)
    if not generation or holder is None:
        return "none" if not generation else "unknown"
    return "none" if holder.is_gone else str(holder)
