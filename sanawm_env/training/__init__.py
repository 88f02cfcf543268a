"""How the nano world is made: clips of walks through places, the training of its networks, and evaluation against
the renderer."""
