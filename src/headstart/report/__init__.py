"""Tables and plots from run folders. Numbers come from the folders' files; nothing is measured again.

`headstart.report.tables` needs nothing more than the library; the page needs the extra `report`.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from headstart.training.run import Run

__all__ = ["MissingExtraError", "write_report"]


class MissingExtraError(RuntimeError):
    """What the report needs beyond the library is not installed; the message says how to install it."""


def write_report(runs: Sequence[Run], out: Path, data: Path | None = None) -> Path:
    """The path of `index.html`, one self-contained page about `runs`; its figures lie beside it as PNG files.

    Args:
        runs: Run folders. Those of one problem are drawn together: MAML, pretrained, random and oracle. A folder
            that `headstart compare` wrote is a section of its own, its runs are not shown one by one.
        out: Folder to write to; made if it is not there.
        data: Folder of data sets, for the examples of a run on real data; HEADSTART_DATA unless given.

    Raises:
        MissingExtraError: Matplotlib or Jinja is not installed.
        FileError: A folder is no run folder, a file in it is damaged, or `out` cannot be written.
        ValueError: There is no run.
    """
    if any(find_spec(name) is None for name in ("matplotlib", "jinja2")):
        raise MissingExtraError("The report needs Matplotlib and Jinja: pip install 'headstart[report]'")
    from headstart.report.page import write_page  # imports both

    return write_page(runs, out, data)
