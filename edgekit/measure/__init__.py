"""`edgekit bench`: how long bundles and models take, here or on a device of a fleet.

`here` measures in a child process on this machine; `fleet` has a device do it, and keeps what it
found for every build to come (`edgekit.build.notebook`).
"""
