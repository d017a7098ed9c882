"""Where tasks come from, one file per source.

Those that read files are imported by their own names,

`from headstart.tasks import omniglot`, so that `import headstart` needs PyTorch alone.
"""

from headstart.tasks.episodes import ClassStore, Episodes
from headstart.tasks.sinusoid import Sinusoids

__all__ = ["ClassStore", "Episodes", "Sinusoids"]
