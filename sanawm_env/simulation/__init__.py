"""Episodes as values: a batched simulator without Gymnasium (but for its spaces), and what it is made of.

`simulator` steps episodes; `episode` is what it takes and returns, `controllers` are what actions mean, `tasks` what
episodes are for. Nothing here knows how a world works inside.
"""
