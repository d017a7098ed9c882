"""From a person's files to what a model is given, and from its outputs to an answer: one file per kind of input.

A recipe says which it is. Adaptation, prediction, the server and export all go through it, so that what a model is
given in use is what it was trained on.
"""

from headstart.inputs.base import InputError, Inputs, Rows, Support

__all__ = ["InputError", "Inputs", "Rows", "Support"]
