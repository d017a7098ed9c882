"""How a run computes its meta-gradients, kept in its folder: a resumed run must not choose anew."""

from headstart.training.files import FileError, read_json, write_json
from headstart.training.run import Run
from headstart.training.tuning import Choice

FILE = "engine.json"


def keep_choice(run: Run, choice: Choice) -> None:
    """Write it down."""
    write_json(run.path / FILE, choice._asdict())


def kept_choice(run: Run) -> Choice | None:
    """The choice that a run was started with; None if it has none.

    Raises:
        FileError: Its `engine.json` is not what `headstart train` wrote.
    """
    path = run.path / FILE
    if not path.exists():
        return None
    try:
        return Choice(**read_json(path))
    except TypeError as error:
        raise FileError(
            f"{path} is not what `headstart train` wrote: remove it, and speed is measured anew."
        ) from error
