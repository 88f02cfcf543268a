"""Episodes as values, and a batched simulator of them. Of Gymnasium only the spaces are used.

`simulator` steps episodes, `episode` defines them, `controllers` define what actions mean, `tasks` define rewards and
goals. Nothing here knows how a world works inside.
"""
