"""The core: every rule of the pool, as plain synchronous Python. Facts and ``now`` go in, orders come out."""
