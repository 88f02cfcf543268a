"""The Gymnasium room: actions become poses, a world imagines them, the last frame becomes an observation.

`explore` the environment, `actions` and `observations` its modes, `snapshot` its whole state as a value. Nothing here
knows how a world works inside. This file imports nothing, because ids are registered without torch.
"""
