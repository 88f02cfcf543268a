"""Agents: they act in a world through its public face (states, poses, frames), whatever it is inside."""
