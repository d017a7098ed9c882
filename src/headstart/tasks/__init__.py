"""Where tasks come from, one file per source.

Those that need more than PyTorch are imported by name, `from headstart.tasks import omniglot`, so that
`import headstart` needs PyTorch alone.
"""

from headstart.tasks.episodes import ClassStore, Episodes
from headstart.tasks.sinusoid import Sinusoids

__all__ = ["ClassStore", "Episodes", "Sinusoids"]
