"""`mlflow.json` of a folder: which MLflow run belongs to it, and which end of the run MLflow knows."""

import json
from dataclasses import asdict, dataclass, fields, replace

from tips_ray import storage
from tips_ray.runs.mlflow_access import without_credentials

NOTE = "mlflow.json"


@dataclass(frozen=True)
class MlflowNote:
    """The MLflow run of a folder. Only `run_id` is in notes of earlier versions."""

    run_id: str = ""
    """Empty: the file is damaged."""
    experiment_id: str = ""
    uri: str = ""
    """Of MLflow, without credentials."""
    folder: str = ""
    """The folder when the note was written; another one now: it was moved or copied."""
    told_generation: int = 0
    """The newest generation of the run's lease whose end MLflow knows."""

    def is_of(self, uri: str, folder: str) -> bool:
        """Whether it surely names the run of this folder in this MLflow, which then need not be asked."""
        return bool(self.run_id) and (self.uri, self.folder) == (without_credentials(uri), without_credentials(folder))


def stored_note(folder: str) -> MlflowNote | None:
    """The note of a folder; None: there is none.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        found = json.loads(storage.read_bytes(storage.join(folder, NOTE)))
    except storage.NotFoundError:
        return None
    except storage.StorageError:
        raise
    except ValueError:
        return MlflowNote()
    known = {one.name: type(one.default) for one in fields(MlflowNote)}
    given = found if isinstance(found, dict) else {}
    return MlflowNote(**{key: value for key, value in given.items() if isinstance(value, known.get(key, ()))})


def stored_run_id(folder: str) -> str | None:
    """The id of the MLflow run of a folder; empty: the note is damaged; None: there is none."""
    note = stored_note(folder)
    return note.run_id if note else None


def keep_note(folder: str, note: MlflowNote) -> None:
    """Write the note where it says something new."""
    if stored_note(folder) != note:
        storage.write_text(storage.join(folder, NOTE), json.dumps(asdict(note)))


def keep_told(folder: str, generation: int) -> None:
    """Note that MLflow knows how the start with this generation of the lease ended."""
    if note := stored_note(folder):
        keep_note(folder, replace(note, told_generation=generation))
