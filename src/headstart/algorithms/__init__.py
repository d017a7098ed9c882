"""Meta-learning algorithms, one small file each."""
