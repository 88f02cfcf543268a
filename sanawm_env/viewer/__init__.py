"""The live viewer: drive a world in the browser, go back in time, branch.

`session.Session` holds all that happened as a tree of nodes and has no screen; `playback.Player` plays it at 16
frames per second while the next chunk is being predicted; `page.Page` shows that to browsers. What the rooms above can
do (writing videos, scripted cameras, planners, policies) is handed in by `sanawm_env.cli.play`.
"""
