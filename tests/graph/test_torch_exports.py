"""Networks as PyTorch exports them, in several opsets, with a fixed and with a free batch, against PyTorch itself."""

import io
import warnings

import numpy as np
import pytest
from onnx_oracles import EPSILON, run_onnxruntime

from perwatt.graph import read, unsupported, with_batch, write

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow
nn = torch.nn


def mobile() -> "torch.nn.Module":
    """Inverted residuals with depthwise convolution, squeeze and excite, and hard swish."""

    class Excite(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

        def forward(self, x: "torch.Tensor") -> "torch.Tensor":
            pooled = nn.functional.adaptive_avg_pool2d(x, 1)
            return x * nn.functional.hardsigmoid(self.up(nn.functional.relu(self.down(pooled))))

    class Inverted(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                *(nn.Conv2d(channels, 3 * channels, 1, bias=False), nn.BatchNorm2d(3 * channels), nn.Hardswish()),
                *(nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels), nn.ReLU6()),
                *(Excite(3 * channels), nn.Conv2d(3 * channels, channels, 1, bias=False), nn.BatchNorm2d(channels)),
            )

        def forward(self, x: "torch.Tensor") -> "torch.Tensor":
            return x + self.body(x)

    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.SiLU(), Inverted(8), Inverted(8)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 5)),
    )


def residual() -> "torch.nn.Module":
    class Block(nn.Module):
        def __init__(self, fan_in: int, fan_out: int) -> None:
            super().__init__()
            self.first = nn.Sequential(
                nn.Conv2d(fan_in, fan_out, 3, 2, 1, bias=False), nn.BatchNorm2d(fan_out), nn.ReLU(inplace=True)
            )
            self.second = nn.Sequential(nn.Conv2d(fan_out, fan_out, 3, 1, 1, bias=False), nn.BatchNorm2d(fan_out))
            self.short = nn.Sequential(nn.Conv2d(fan_in, fan_out, 1, 2, bias=False), nn.BatchNorm2d(fan_out))

        def forward(self, x: "torch.Tensor") -> "torch.Tensor":
            return torch.relu(self.second(self.first(x)) + self.short(x))

    return nn.Sequential(
        *(nn.Conv2d(3, 6, 7, 2, 3), nn.MaxPool2d(3, 2, 1, ceil_mode=True), Block(6, 10), Block(10, 12)),
        *(nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False), nn.Flatten(1), nn.LazyLinear(7), nn.LogSoftmax(1)),
    )


class Shuffle(nn.Module):
    """Channel shuffle by view and transpose, chunks, concatenation; and x.view(x.size(0), -1) at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.head = nn.Linear(8 * 33 * 31, 3)

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        left, right = self.stem(x).chunk(2, dim=1)
        x = torch.cat([left, nn.functional.leaky_relu(self.branch(right), 0.1)], 1)
        count, channels, height, width = x.shape
        x = x.view(count, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        x = x.view(count, -1, height, width)
        return self.head(x.view(x.size(0), -1)).softmax(-1)


class Pyramid(nn.Module):
    """A detector's neck: strided slices (Focus), nearest and bilinear upsampling, padding, several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(12, 6, 1), nn.Conv2d(6, 6, 3, 2, 1)

    def forward(self, x: "torch.Tensor") -> tuple["torch.Tensor", ...]:
        x = nn.functional.pad(x, (0, 1, 0, 1), value=0.5)
        cut = [x[..., row::2, column::2][..., :16, :16] for row in (0, 1) for column in (0, 1)]
        fine = nn.functional.elu(self.first(torch.cat(cut, 1)))
        coarse = self.second(fine)
        up = nn.functional.interpolate(coarse, scale_factor=2, mode="nearest")
        wide = nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear", align_corners=False)
        return fine + up, (fine * wide).mean((2, 3)), coarse.flatten(2).permute(0, 2, 1).clamp(min=-0.2)


class Tokens(nn.Module):
    """Patches as tokens, a class of matrix products with Erf or Gelu between, and a token picked by its index."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.wide, self.back = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        x = self.patches(x).flatten(2).transpose(1, 2)
        scores = (x @ x.transpose(-2, -1) / 8**0.5).softmax(-1)
        x = x + self.back(nn.functional.gelu(self.wide(scores @ x)))
        return x[:, 0] - x.mean(1)


NETWORKS = {"mobile": mobile, "residual": residual, "shuffle": Shuffle, "pyramid": Pyramid, "tokens": Tokens}


def exported(network: "torch.nn.Module", opset: int, free: bool) -> bytes:
    target = io.BytesIO()
    axes = {"x": {0: "batch"}} if free else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            *(network, (torch.zeros(1, 3, 33, 31),), target),
            input_names=["x"],
            opset_version=opset,
            dynamic_axes=axes,
            dynamo=False,
        )
    return target.getvalue()


# Opset 9 has neither pools in ceil mode nor slices with steps.
TOO_OLD = {("residual", 9), ("pyramid", 9)}
CASES = [(name, opset) for name in NETWORKS for opset in (9, 11, 13, 17, 20) if (name, opset) not in TOO_OLD]


@pytest.mark.parametrize("free", [False, True], ids=["fixed", "free"])
@pytest.mark.parametrize(("name", "opset"), CASES)
def test_an_export_reads_and_runs_at_any_batch(name: str, opset: int, free: bool) -> None:
    torch.manual_seed(1)
    network = NETWORKS[name]().eval()
    pictures = torch.rand(3, 3, 33, 31) * 2 - 1
    with torch.no_grad():
        network(pictures[:1])  # gives lazy layers their size
        made = network(pictures)
    expected = [array.numpy() for array in (made if isinstance(made, tuple) else (made,))]
    model = exported(network, opset, free)
    for batch in (1, 3):
        graph = read(model, batch)
        assert unsupported(graph) == ()
        feed = {graph.inputs[0]: pictures[:batch].numpy()}
        for got in (run_onnxruntime(with_batch(model, batch), feed), run_onnxruntime(write(graph), feed)):
            for left, right, name_of in zip(got, expected, graph.outputs, strict=True):
                assert graph.values[name_of].shape == left.shape
                # chains of a few sums of at most 8184 products of numbers around 1, in another order
                scale = float(np.abs(right).max())
                np.testing.assert_allclose(left, right[:batch], rtol=256 * EPSILON, atol=256 * EPSILON * scale)
