"""The Gymnasium room: `env` and `vector` are thin around a `Simulator`, `observations` what an agent sees, `wrappers`
and `making` what Gymnasium's users expect besides. Nothing here knows how a world works inside.

This file imports nothing, because ids are registered without torch.
"""
