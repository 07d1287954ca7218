"""Scripts that run in an environment of `edgekit_converters.environments`, never imported here.

Invariant: each stands alone, on the standard library and its environment's packages.
"""
