"""The world: scenes, states that are values, the engine that advances them, the sampler, and their files."""
