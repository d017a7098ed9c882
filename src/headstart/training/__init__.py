"""Training and evaluation of any learner on any task source, known here only by their contracts."""
