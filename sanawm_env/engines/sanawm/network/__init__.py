"""The SANA-WM network: a streaming video transformer conditioned on camera poses.

`config.py` has the sizes, `model.py` the whole, `mixers.py` the two kinds of self-attention, `layers.py` the small
parts, `rope.py` rotary tables, `context.py` what the passes over a chunk share, `state.py` what a chunk leaves for the
next one, `shortcuts.py` what fast passes leave out. The network knows nothing of files, hubs or environments: tensors
in, tensors and a new state out.
"""
