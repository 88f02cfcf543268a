"""The live viewer: drive a world in the browser, go back in time, branch.

`session.Session` holds everything that happened as a tree of nodes, without a screen. `playback.Player` plays it at 16
frames per second while the next chunk is being predicted. `page.Page` shows that to browsers. `sanawm_env.cli.play`
adds what rooms above can do: writing videos, scripted cameras, planners, policies.
"""
