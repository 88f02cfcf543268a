"""The operators that take most of a step's time, installed as `sanawm_env.kernels`.

`reference.py` has each of them in plain torch: it is the documentation, what faster forms are compared with, and the
path of gradients. `cpu.py` and the Triton modules compute the same faster; `dispatch.py` chooses. `inputs.py` defines
their inputs.
"""
