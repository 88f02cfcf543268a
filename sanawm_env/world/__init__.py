"""Worlds: scenes, states as values, the engine that advances them, and their files."""
