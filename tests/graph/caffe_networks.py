"""The networks that Caffe's model zoo is known for, written anew: their structure, names, sizes, in-place layers.

`width` divides the number of channels, not the sizes of maps: the rules for the edges meet the sizes of the originals.
"""

import numpy as np
from caffe_files import Name, Net


def lenet(width: int = 1) -> Net:
    """LeNet: 28x28 in grey, no padding, pooling without overlap."""
    net = Net("lenet", inputs={"data": (1, 1, 28, 28)})
    x = net.conv("conv1", "data", 1, 20 // width, 5)
    x = net.pool("pool1", x, kernel_size=2, stride=2)
    x = net.conv("conv2", x, 20 // width, 50 // width, 5)
    x = net.pool("pool2", x, kernel_size=2, stride=2)
    x = net.linear("ip1", x, 16 * (50 // width), 500 // width)
    x = net.relu("relu1", x)
    x = net.linear("ip2", x, 500 // width, 10)
    net.add("Softmax", "prob", x)
    return net


def alexnet(width: int = 8, *, pool_first: bool = False, padding_layers: bool = False) -> Net:
    """AlexNet; with `pool_first` CaffeNet; with `padding_layers` as the oldest syntax pads."""
    net = Net("caffenet" if pool_first else "alexnet", inputs={"data": (1, 3, 227, 227)})

    def padded(name: str, blob: str, pad: int) -> tuple[str, dict[str, int]]:
        if not padding_layers:
            return blob, {"pad": pad}
        return net.add("Padding", name, blob, pad_param={"pad": pad}), {}

    def normalised(at: int, blob: str) -> str:
        pool = {"kernel_size": 3, "stride": 2}
        norm = {"local_size": 5, "alpha": 0.0001, "beta": 0.75}
        if pool_first:
            return net.add("LRN", f"norm{at}", net.pool(f"pool{at}", blob, **pool), lrn_param=norm)
        return net.pool(f"pool{at}", net.add("LRN", f"norm{at}", blob, lrn_param=norm), **pool)

    one, two, three = 96 // width, 256 // width, 384 // width
    x = net.relu("relu1", net.conv("conv1", "data", 3, one, 11, stride=4))
    x, pad = padded("pad2", normalised(1, x), 2)
    x = net.relu("relu2", net.conv("conv2", x, one, two, 5, group=2, **pad))
    x, pad = padded("pad3", normalised(2, x), 1)
    x = net.relu("relu3", net.conv("conv3", x, two, three, 3, **pad))
    x, pad = padded("pad4", x, 1)
    x = net.relu("relu4", net.conv("conv4", x, three, three, 3, group=2, **pad))
    x, pad = padded("pad5", x, 1)
    x = net.relu("relu5", net.conv("conv5", x, three, two, 3, group=2, **pad))
    x = net.pool("pool5", x, kernel_size=3, stride=2)
    inputs = two * 36
    for name in ("6", "7"):
        x = net.relu(f"relu{name}", net.linear(f"fc{name}", x, inputs, 4096 // width))
        net.add("Dropout", f"drop{name}", x, x, dropout_param={"dropout_ratio": 0.5})
        inputs = 4096 // width
    x = net.linear("fc8", x, inputs, 1000 // width)
    net.add("Softmax", "prob", x)
    return net


INCEPTION = {
    "3a": (192, 64, 96, 128, 16, 32, 32), "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64), "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64), "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128), "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}  # fmt: skip


def googlenet(width: int = 8) -> Net:
    """GoogLeNet's deploy file: nine inception modules, overlapping pools rounded up, an average over 7x7."""
    net = Net("googlenet", inputs={"data": (1, 3, 224, 224)})

    def conv(name: str, blob: str, channels: int, outputs: int, kernel: int, **more: int) -> str:
        made = net.conv(name, blob, channels // width if channels > 3 else channels, outputs // width, kernel, **more)
        return net.relu(f"{name.split('/')[0]}/relu_{name.split('/')[1]}", made)

    def norm(name: str, blob: str) -> str:
        return net.add("LRN", name, blob, lrn_param={"local_size": 5, "alpha": 0.0001, "beta": 0.75})

    x = conv("conv1/7x7_s2", "data", 3, 64, 7, stride=2, pad=3)
    x = norm("pool1/norm1", net.pool("pool1/3x3_s2", x, kernel_size=3, stride=2))
    x = conv("conv2/3x3_reduce", x, 64, 64, 1)
    x = norm("conv2/norm2", conv("conv2/3x3", x, 64, 192, 3, pad=1))
    x = net.pool("pool2/3x3_s2", x, kernel_size=3, stride=2)
    for module, (before, one, three_reduce, three, five_reduce, five, projection) in INCEPTION.items():
        at = f"inception_{module}"
        a = conv(f"{at}/1x1", x, before, one, 1)
        b = conv(f"{at}/3x3", conv(f"{at}/3x3_reduce", x, before, three_reduce, 1), three_reduce, three, 3, pad=1)
        c = conv(f"{at}/5x5", conv(f"{at}/5x5_reduce", x, before, five_reduce, 1), five_reduce, five, 5, pad=2)
        d = net.pool(f"{at}/pool", x, kernel_size=3, stride=1, pad=1)
        d = conv(f"{at}/pool_proj", d, before, projection, 1)
        x = net.add("Concat", f"{at}/output", [a, b, c, d])
        if module in ("3b", "4e"):
            x = net.pool(f"pool{int(module[0])}/3x3_s2", x, kernel_size=3, stride=2)
    x = net.pool("pool5/7x7_s1", x, "AVE", kernel_size=7, stride=1)
    net.add("Dropout", "pool5/drop_7x7_s1", x, x, dropout_param={"dropout_ratio": 0.4})
    net.linear("loss3/classifier", x, 1024 // width, 1000 // width)
    net.add("Softmax", "prob", "loss3/classifier")
    return net


def vgg16(width: int = 16) -> Net:
    """VGG-16: thirteen 3x3 convolutions, three fully connected layers, the first over 7x7 maps."""
    net = Net("vgg16", inputs={"data": (1, 3, 224, 224)})
    x, channels = "data", 3
    for block, (count, outputs) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), start=1):
        for layer in range(1, count + 1):
            x = net.conv(f"conv{block}_{layer}", x, channels, outputs // width, 3, pad=1)
            x, channels = net.relu(f"relu{block}_{layer}", x), outputs // width
        x = net.pool(f"pool{block}", x, kernel_size=2, stride=2)
    inputs = channels * 49
    for name in ("6", "7"):
        x = net.relu(f"relu{name}", net.linear(f"fc{name}", x, inputs, 4096 // width))
        net.add("Dropout", f"drop{name}", x, x, dropout_param={"dropout_ratio": 0.5})
        inputs = 4096 // width
    x = net.linear("fc8", x, inputs, 1000 // width)
    net.add("Softmax", "prob", x)
    return net


def squeezenet(width: int = 8) -> Net:
    """SqueezeNet 1.1: fire modules, a classifier that is a convolution, global pooling; the answer is 1x?x1x1."""
    net = Net("squeezenet", inputs={"data": (1, 3, 227, 227)})
    x = net.relu("relu_conv1", net.conv("conv1", "data", 3, 64 // width, 3, stride=2))
    x, channels = net.pool("pool1", x, kernel_size=3, stride=2), 64 // width
    sizes = [(size, 4 * size) for size in (16, 16, 32, 32, 48, 48, 64, 64)]
    for fire, (squeeze, expand) in enumerate(sizes, start=2):
        squeeze, expand = squeeze // width, expand // width
        s = net.relu(f"fire{fire}/relu_s", net.conv(f"fire{fire}/squeeze1x1", x, channels, squeeze, 1))
        a = net.relu(f"fire{fire}/relu_1", net.conv(f"fire{fire}/expand1x1", s, squeeze, expand, 1))
        b = net.relu(f"fire{fire}/relu_3", net.conv(f"fire{fire}/expand3x3", s, squeeze, expand, 3, pad=1))
        x, channels = net.add("Concat", f"fire{fire}/concat", [a, b]), 2 * expand
        if fire in (3, 5):
            x = net.pool(f"pool{fire}", x, kernel_size=3, stride=2)
    net.add("Dropout", "drop9", x, x, dropout_param={"dropout_ratio": 0.5})
    x = net.relu("relu_conv10", net.conv("conv10", x, channels, 1000 // width, 1))
    x = net.pool("pool10", x, "AVE", global_pooling=True)
    net.add("Softmax", "prob", x)
    return net


def normalised(net: Net, name: str, blob: str, channels: int, *, in_place: bool = True) -> str:
    """Add BatchNorm and Scale as ResNet's files have them; statistics are stored times a factor."""
    factor = 999.98
    mean, variance = net.random.standard_normal(channels), net.random.uniform(0.5, 2.0, channels)
    top = blob if in_place else f"bn_{name}"
    net.add(
        "BatchNorm", f"bn_{name}", blob, top, blobs=[mean * factor, variance * factor, np.array([factor])],
        batch_norm_param={"use_global_stats": True},
    )  # fmt: skip
    shift = [net.random.uniform(0.5, 1.5, channels), net.random.standard_normal(channels) * 0.2]
    return net.add("Scale", f"scale_{name}", top, top, blobs=shift, scale_param={"bias_term": True})


def resnet(width: int = 8, blocks: tuple[int, ...] = (2, 2, 1, 1)) -> Net:
    """A ResNet of bottlenecks: BatchNorm and Scale in place, sums of two branches, the stride on the first 1x1."""
    net = Net("resnet", inputs={"data": (1, 3, 224, 224)})
    net.conv("conv1", "data", 3, 64 // width, 7, stride=2, pad=3)
    normalised(net, "conv1", "conv1", 64 // width)
    x = net.pool("pool1", net.relu("conv1_relu", "conv1"), kernel_size=3, stride=2)
    channels = 64 // width
    for stage, count in enumerate(blocks, start=2):
        inner = 64 * 2 ** (stage - 2) // width
        for block in range(count):
            at, stride = f"res{stage}{'abcdef'[block]}", 2 if stage > 2 and block == 0 else 1
            shortcut = x
            if block == 0:
                shortcut = net.conv(f"{at}_branch1", x, channels, 4 * inner, 1, stride=stride, bias_term=False)
                normalised(net, f"{at}_branch1", shortcut, 4 * inner)
            y, before = x, channels
            for part, outputs, kernel, step, pad in (
                ("a", inner, 1, stride, 0),
                ("b", inner, 3, 1, 1),
                ("c", 4 * inner, 1, 1, 0),
            ):
                name = f"{at}_branch2{part}"
                y = net.conv(name, y, before, outputs, kernel, stride=step, pad=pad, bias_term=False)
                normalised(net, name, y, outputs)
                if part != "c":
                    net.relu(f"{name}_relu", y)
                before = outputs
            x = net.relu(f"{at}_relu", net.add("Eltwise", at, [shortcut, y], eltwise_param={"operation": Name("SUM")}))
            channels = 4 * inner
    x = net.pool("pool5", x, "AVE", kernel_size=7, stride=1)
    x = net.linear("fc1000", x, channels, 1000 // width)
    net.add("Softmax", "prob", x)
    return net


def segmenter(width: int = 1) -> Net:
    """In the manner of FCN-16s: scores of two depths, enlarged by Deconvolution, cut to fit by Crop, and summed."""
    net = Net("segmenter", inputs={"data": (1, 3, 65, 73)})
    x = net.relu("relu1", net.conv("conv1", "data", 3, 8, 3, pad=20))
    x = net.pool("pool1", x, kernel_size=2, stride=2)
    x = net.relu("relu2", net.conv("conv2", x, 8, 12, 3, pad=1))
    shallow = net.pool("pool2", x, kernel_size=2, stride=2)
    x = net.pool("pool3", shallow, kernel_size=2, stride=2)
    x = net.conv("score_deep", x, 12, 5, 1)
    kernel = net.random.standard_normal((5, 5, 4, 4)) * 0.2
    deep = {"num_output": 5, "kernel_size": 4, "stride": 2, "bias_term": False}
    x = net.add("Deconvolution", "upscore2", x, blobs=[kernel], convolution_param=deep)
    y = net.conv("score_shallow", shallow, 12, 5, 1)
    x = net.add("Crop", "upscore2_c", [x, y], crop_param={"axis": 2, "offset": 1})
    x = net.add("Eltwise", "fuse", [x, y], eltwise_param={"operation": Name("SUM"), "coeff": [1.0, 0.5]})
    spread = {"num_output": 5, "kernel_size": 8, "stride": 4, "group": 5, "bias_term": False}
    single = np.abs(net.random.standard_normal((5, 1, 8, 8))) * 0.2
    x = net.add("Deconvolution", "upscore4", x, blobs=[single], convolution_param=spread)
    net.add("Crop", "score", [x, "data"], crop_param={"axis": 2, "offset": [11, 9]})
    return net
