"""Agents that act in a world through its public face: states, poses, frames. They know nothing of how it works inside."""
