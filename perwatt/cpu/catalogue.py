"""Every algorithm the CPU engine has, in one tuple."""

from perwatt.cpu.kernels.concat import CHANNELS
from perwatt.cpu.kernels.convolution import DIRECT, DIRECT_HALF, FIRST_LAYER
from perwatt.cpu.kernels.depthwise import DEPTHWISE
from perwatt.cpu.kernels.elementwise import ELEMENTWISE
from perwatt.cpu.kernels.fft_algorithms import FFT
from perwatt.cpu.kernels.fully_connected import FULLY_CONNECTED, FULLY_CONNECTED_HALF
from perwatt.cpu.kernels.gathered import GATHERED
from perwatt.cpu.kernels.grouped import GROUPS_JOINED
from perwatt.cpu.kernels.matrix import MATRIX_PRODUCT
from perwatt.cpu.kernels.movement import MOVEMENT
from perwatt.cpu.kernels.normalization import LRN, SOFTMAX
from perwatt.cpu.kernels.places import PLACES
from perwatt.cpu.kernels.pooling import GLOBAL_POOLING, POOLING
from perwatt.cpu.kernels.pooling_plain import PLAIN_POOLING
from perwatt.cpu.kernels.reduction import REDUCTION
from perwatt.cpu.kernels.reorder import REORDER
from perwatt.cpu.kernels.resize import RESIZE
from perwatt.cpu.kernels.space_to_depth import SPACE_TO_DEPTH
from perwatt.cpu.kernels.split_sums import SPLIT_SUMS
from perwatt.cpu.kernels.transposed import TRANSPOSED
from perwatt.cpu.kernels.winograd_algorithms import WINOGRAD, WINOGRAD_HALF
from perwatt.plan.algorithm import Algorithm

KERNELS: tuple[Algorithm, ...] = (
    DIRECT, *DIRECT_HALF, FIRST_LAYER, GATHERED, *SPACE_TO_DEPTH, *WINOGRAD, *WINOGRAD_HALF,
    FULLY_CONNECTED, *FULLY_CONNECTED_HALF,
    SPLIT_SUMS,
    POOLING, GLOBAL_POOLING, REORDER,
    LRN, SOFTMAX,
    DEPTHWISE, GROUPS_JOINED,
    TRANSPOSED,
    ELEMENTWISE,
    CHANNELS,
    MOVEMENT,
    RESIZE,
    REDUCTION,
    PLACES,
    MATRIX_PRODUCT,
    PLAIN_POOLING,
    *FFT,
)  # fmt: skip
