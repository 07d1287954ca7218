"""Scripts that run in an environment of `edgekit_converters.environments`, never imported here.

Invariant: they stand on the standard library, their environment's packages and each other:
`tensorflow_server` is started, and asks `pruning` and `keras_files` first.
"""
