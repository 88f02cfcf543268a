"""How the nano world is made: places, clips, network training, and evaluation against the renderer."""
