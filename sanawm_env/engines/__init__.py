"""World models behind the protocol of `sanawm_env.world.engine`: one package each, found by its entry point.

Rooms above know none of them by name.
"""
