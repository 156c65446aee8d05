"""The dataset that feeds the ranks of an attempt. Without torch: the process that hands out rows starts with it."""

from dataclasses import dataclass
from functools import partial

from ray.data import Dataset

from tips_ray import storage
from tips_ray.data.pipeline import tell_pace, training_stream
from tips_ray.data.stream import StreamInputs
from tips_ray.runs.folder import RunFolder
from tips_ray.runs.run import RunInputs, resumed_step


@dataclass(frozen=True)
class WorkerInputs:
    """What a worker is told; picklable."""

    stream: StreamInputs
    run: RunInputs


class RestOfRun:
    """The dataset of an attempt: called at every start of the worker group, it looks up where the run stands.

    Nobody else does: the rows say at which step they begin, and the workers load the checkpoint of that step.
    """

    def __init__(self, inputs: WorkerInputs) -> None:
        self.inputs = inputs
        self._known_stops = len(self._stops())  # of earlier drivers

    def __call__(self) -> Dataset:
        """The storage is waited for: the workers may have stopped since it is away.

        Raises:
            ValueError: a worker has stopped for a reason that would come again; or the data are not those that the
                checkpoint was trained on.
        """
        patience = self.inputs.run.config.checkpoint_patience_seconds
        stops = storage.keep_trying(self._stops, patience)[self._known_stops :]
        if stops:
            raise ValueError(stops[0])
        step = storage.keep_trying(partial(resumed_step, self.inputs.run), patience)
        tell_pace(self.inputs.stream, step)
        return training_stream(self.inputs.stream, step)

    def _stops(self) -> list[str]:
        return [event["error"] for event in RunFolder(self.inputs.run.uri).final_failures()]
