"""What tests and benchmarks share: fp64 oracles, comparison, timing. Imports only torch."""
