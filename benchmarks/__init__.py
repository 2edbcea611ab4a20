"""What a connection costs: async-repool beside other pools, in one run. ``python -m benchmarks``; see README.rst."""
