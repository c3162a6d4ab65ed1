"""Hardware: what a device can do at best, as its maker says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """Peaks per second, and what a launch costs.

    memory_bandwidth, cache_bandwidth: bytes per second of device memory and of the L2 cache, which num_processors share
    evenly; one of them runs a program. peak_flops: dense, of 16-bit matrix products with float32 sums.
    launch_seconds: from the end of one kernel to where the next one is at speed, inside a CUDA graph; no datasheet has
    it.
    """

    name: str
    memory_bandwidth: float
    cache_bandwidth: float
    num_processors: int
    peak_flops: float
    launch_seconds: float


LAUNCH_SECONDS = 3e-6
"""An assumption, the low end of the 3 to 5 µs that are seen of small kernels inside a graph."""

# NVIDIA A100 80GB datasheet (nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf), SXM column: 2,039 GB/s, 312 TFLOPS.
# L2: 5,120 bytes per clock (NVIDIA A100 Tensor Core GPU Architecture whitepaper), at 1,410 MHz.
A100 = Hardware(
    name="A100-80GB-SXM",
    memory_bandwidth=2.039e12,
    cache_bandwidth=5120 * 1.410e9,
    num_processors=108,
    peak_flops=312e12,
    launch_seconds=LAUNCH_SECONDS,
)
# NVIDIA H100 Tensor Core GPU datasheet, SXM column: 3.35 TB/s, 1,979 TFLOPS with sparsity, half of that without.
# L2: as many bytes per clock as in the A100 (pmc.ncbi.nlm.nih.gov/articles/PMC10448217, table 3), at 1,755 MHz.
H100 = Hardware(
    name="H100-SXM",
    memory_bandwidth=3.35e12,
    cache_bandwidth=5120 * 1.755e9,
    num_processors=132,
    peak_flops=989.5e12,
    launch_seconds=LAUNCH_SECONDS,
)
