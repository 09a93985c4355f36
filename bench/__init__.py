"""Benchmarks of the ops and networks: cnnkernels.bench, run by ``cnnkernels bench``."""

if __name__ != "cnnkernels.bench":
    # From the repository's root this folder can also be imported as "bench", as pytest does for
    # bench/suites: the one package then goes by both names instead of being loaded twice.
    import importlib
    import sys

    sys.modules[__name__] = importlib.import_module("cnnkernels.bench")
