"""The dataset that feeds the ranks of a run. Without torch: the process that hands out rows starts with it."""

from ray.data import Dataset

from tips_ray import storage
from tips_ray.data.pipeline import tell_coordinator, training_stream
from tips_ray.data.stream import CaptionAccess
from tips_ray.runs.folder import RunFolder
from tips_ray.runs.run import Run


class RestOfRun:
    """The dataset of a worker group: called at every start of one, it looks up where the run stands.

    Nobody else does: the rows say at which step they begin, and the workers load the checkpoint of that step.
    """

    def __init__(self, run: Run, captions: CaptionAccess | None) -> None:
        self.run, self.captions = run, captions
        self._known_stops = len(self._stops())  # of earlier drivers

    def __call__(self) -> Dataset:
        """The storage is waited for: the workers may have stopped since it is away.

        Raises:
            ValueError: a worker has stopped for a reason that would come again; or the data are not those that the
                checkpoint was trained on.
        """
        run, patience = self.run, self.run.config.checkpoint_patience_seconds
        stops = storage.keep_trying(self._stops, patience)[self._known_stops :]
        if stops:
            raise ValueError(stops[0])
        step = storage.keep_trying(run.resumed_step, patience)
        tell_coordinator(run.config, run.index_uri, self.captions, step)
        return training_stream(run.config, run.index_uri, run.tokenizer_uri, self.captions, step)

    def _stops(self) -> list[str]:
        return [event["error"] for event in RunFolder(self.run.uri).final_failures()]
