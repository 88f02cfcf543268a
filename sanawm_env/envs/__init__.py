"""The Gymnasium classes, thin around a `Simulator`: `env` and `vector`.

`observations` defines what an agent sees; `wrappers` and `making` add what Gymnasium's users expect. Nothing here knows
how a world works inside. This file imports nothing, because ids are registered without torch.
"""
