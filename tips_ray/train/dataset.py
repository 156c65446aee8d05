"""The dataset that feeds the ranks of a run. Imports no torch: the process that hands out rows imports this first."""

from ray.data import Dataset

from tips_ray import storage
from tips_ray.data.pipeline import tell_coordinator, training_stream
from tips_ray.data.shared_stream import SharedStream
from tips_ray.data.stream import CaptionAccess
from tips_ray.runs.folder import RunFolder
from tips_ray.runs.run import Run


class RestOfRun:
    """The dataset of a worker group: called at every worker group start, it looks up the step of the run.

    Only this class looks it up: the rows say at which step they begin, and the workers load that step's checkpoint.
    """

    def __init__(self, run: Run, captions: CaptionAccess | None) -> None:
        self.run, self.captions = run, captions
        self._known_stops = len(self._stops())  # of earlier drivers

    def __call__(self) -> Dataset | SharedStream:
        """Waits for the storage: its absence may be why the workers stopped.

        Raises:
            ValueError: a worker stopped for a reason that would recur; or the data differ from those of the checkpoint.
        """
        run, patience = self.run, self.run.config.checkpoint_patience_seconds
        stops = storage.keep_trying(self._stops, patience)[self._known_stops :]
        if stops:
            raise ValueError(stops[0])
        step = storage.keep_trying(run.resumed_step, patience)
        tell_coordinator(run.config, run.index_uri, self.captions, step)
        open_stream = SharedStream if run.config.resources.stream_readers else training_stream
        return open_stream(run.config, run.index_uri, run.tokenizer_uri, self.captions, step)

    def _stops(self) -> list[str]:
        return [event["error"] for event in RunFolder(self.run.uri).final_failures()]
