"""One file per algorithm: each writes IR for a family of kernels that are generic over sizes."""
