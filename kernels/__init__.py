"""The operators that a step spends its time in, installed as `sanawm_env.kernels`.

`reference.py` is each of them in plain torch: the documentation, the yardstick and the path that gradients take.
`cpu.py` and the Triton forms compute the same faster; `dispatch.py` picks. `inputs.py` says what they are given.
"""
