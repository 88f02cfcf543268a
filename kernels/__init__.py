"""The frame-wise gated delta rule, installed as `sanawm_env.kernels`.

`reference.py` is the operator in plain torch: it is the documentation, the CPU path and the path that gradients
take. Faster forms are compared against it.
"""
