"""Reinforcement learning: Algorithm 3 of the paper."""
