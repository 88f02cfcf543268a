"""SANA-WM: network, codec, prompts, refiner, sampler and weights, behind `engine.SanaEngine`."""
