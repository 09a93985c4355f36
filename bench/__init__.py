"""Benchmarks of the ops and networks: cnnkernels.bench, run by ``cnnkernels bench``."""

if __name__ != "cnnkernels.bench":
    raise ImportError(
        f"this package was imported as {__name__!r}; import it as cnnkernels.bench "
        "(another name would make a second copy of it)"
    )
