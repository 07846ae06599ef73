"""CPU kernels written in Python that emit LLVM IR; the just-in-time compiler, its cache and the thread team."""
