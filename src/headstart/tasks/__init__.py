"""Where tasks come from, one file per source."""

from headstart.tasks import glyphs, omniglot
from headstart.tasks.archives import DataNotFound
from headstart.tasks.episodes import ClassStore, Episodes
from headstart.tasks.sinusoid import Sinusoids

__all__ = ["ClassStore", "DataNotFound", "Episodes", "Sinusoids", "glyphs", "omniglot"]
