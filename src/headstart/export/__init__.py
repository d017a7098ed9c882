"""An adapted model, or adaptation itself, as a file that runs without this package: ONNX, or `torch.export`'s.

trained = headstart.adapted.load_run(Run(folder))
write(Path("adapt.onnx"), *of_run(trained, steps=3))
"""

from headstart.export.files import check, write
from headstart.export.program import ArgumentError, Exported, ExportError, adaptation, predictor
from headstart.export.sources import of_adapted, of_run

__all__ = [
    "ArgumentError",
    "ExportError",
    "Exported",
    "adaptation",
    "check",
    "of_adapted",
    "of_run",
    "predictor",
    "write",
]
