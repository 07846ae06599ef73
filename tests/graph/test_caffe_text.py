"""What a prototxt may say: phases, inputs, losses, in-place layers, fields of forks, and every way to get it wrong."""

from pathlib import Path
from tempfile import TemporaryDirectory

import caffe_networks as zoo
import numpy as np
import pytest
from caffe_files import Name, Net, written
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_oracles import structure

from perwatt.errors import InputError, NetworkError
from perwatt.graph.caffe_reader import Imported, read_caffe

HEAD = 'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 4 } }\n'
INPUT = 'input: "data" input_dim: 1 input_dim: 3 input_dim: 2 input_dim: 2\n'


def small() -> Net:
    net = Net("small", inputs={"data": (1, 3, 2, 2)})
    net.linear("ip", "data", 12, 4)
    return net


def imported(text: str, folder: Path, net: Net | None = None, **how: object) -> Imported:
    prototxt, caffemodel = folder / "net.prototxt", folder / "net.caffemodel"
    prototxt.write_text(text)
    caffemodel.write_bytes((net or small()).weights())
    return read_caffe(prototxt, caffemodel, **how)  # type: ignore[arg-type]


def refused(text: str, folder: Path, **how: object) -> str:
    with pytest.raises(NetworkError) as caught:
        imported(text, folder, **how)
    told = str(caught.value)
    assert "\n" not in told
    assert "expected" in told
    assert "got" in told
    return told


# -- inputs


@pytest.mark.parametrize(
    "declared",
    [
        INPUT,
        'input: "data" input_shape { dim: 1 dim: 3 dim: 2 dim: 2 }',
        'input: "data" input_shape { dim: [7, 3, 2, 2] }',  # the batch is the caller's
        'layer { name: "data" type: "Input" top: "data" input_param { shape: { dim: 1 dim: 3 dim: 2 dim: 2 } } }',
        'layer { name: "x" type: "Input" top: "data" input_param { shape: { dim: 10 dim: 3 dim: 2 dim: 2 } } }',
        'layer { name: "m" type: "MemoryData" top: "data" top: "label" memory_data_param '
        "{ batch_size: 9 channels: 3 height: 2 width: 2 } }",
        'layer { name: "d" type: "DummyData" top: "data" dummy_data_param { shape { dim: 1 dim: 3 dim: 2 dim: 2 } } }',
        'layer { name: "d" type: "DummyData" top: "data" dummy_data_param '
        "{ num: 1 channels: 3 height: 2 width: 2 data_filler { type: 'constant' } } }",
        'layer { name: "d" type: "Data" top: "data" top: "label" include { phase: TEST } transform_param '
        '{ crop_size: 2 mean_value: [104, 117, 123] } data_param { source: "db" batch_size: 50 backend: LMDB } }',
        'layer { name: "d" type: "ImageData" top: "data" top: "label" image_data_param '
        '{ source: "list" new_height: 2 new_width: 2 } transform_param { force_color: true } }',
        "# 注释 a comment\n" + INPUT,
        INPUT.replace("\n", "\r\n") + "state { phase: TRAIN }",
    ],
)
def test_every_way_to_declare_an_input(declared: str, tmp_path: Path) -> None:
    graph = imported(declared + "\n" + HEAD, tmp_path).graph
    assert graph.inputs == ("data",)
    assert graph.values["data"].shape == (1, 3, 2, 2)
    assert graph.outputs == ("ip",)


def test_the_callers_input_wins(tmp_path: Path) -> None:
    net = zoo.squeezenet()
    files = net.save(tmp_path)
    assert read_caffe(*files, shape=(3, 300, 260)).graph.values["data"].shape == (1, 3, 300, 260)
    assert read_caffe(*files, shape=(3, 99, 99), batch=4).graph.values["prob"].shape == (4, 125, 1, 1)
    with pytest.raises(NetworkError, match="is the input too small"):
        read_caffe(*files, shape=(3, 5, 5))
    with pytest.raises(InputError, match="such as 3,227,227"):
        read_caffe(*files, shape=(3,) * 5)
    with pytest.raises(InputError, match="from 1 up, got 0"):
        read_caffe(*files, batch=0)


def test_channels_of_cropped_pictures_follow_from_the_weights(tmp_path: Path) -> None:
    net = zoo.lenet()
    how = "transform_param { scale: 0.00390625 crop_size: 28 }"
    data = f'layer {{ name: "mnist" type: "Data" top: "data" top: "label" {how} }}'
    rest = net.text().split("\n", 3)[3]
    found = imported(f"{data}\n{rest}", tmp_path, net)
    assert found.graph.values["data"].shape == (1, 1, 28, 28)
    assert found.reading is not None
    assert found.reading.scale == 0.00390625


# -- phases, losses


TRAIN_VAL = """
name: "train_val"
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN }
        transform_param { mirror: true crop_size: 2 mean_file: "mean.binaryproto" }
        data_param { source: "a" batch_size: 256 } }
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST }
        transform_param { mirror: false crop_size: 2 mean_file: "mean.binaryproto" force_color: true
                          resize_param { prob: 1 height: 2 } } }
layer { name: "label_flat" type: "Flatten" bottom: "label" top: "label_flat" }
layer { name: "noise" type: "Python" bottom: "data" top: "data" include { phase: TRAIN } python_param { module: "m" } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" param { lr_mult: 1 decay_mult: 1 } param { name: "b" }
        inner_product_param { num_output: 4 weight_filler { type: "gaussian" std: 0.01 }
                              bias_filler { type: "constant" } } }
layer { name: "drop" type: "Dropout" bottom: "ip" top: "ip" }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" include { phase: TEST } }
layer { name: "accuracy5" type: "Accuracy" bottom: "ip" bottom: "label_flat" top: "accuracy5"
        accuracy_param { top_k: 5 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" loss_weight: 1 }
layer { name: "quiet" type: "Silence" bottom: "label_flat" }
"""


def test_a_training_file_becomes_what_the_test_phase_answers(tmp_path: Path) -> None:
    found = imported(TRAIN_VAL, tmp_path)
    assert [(layer.name, layer.type) for layer in found.layers] == [
        ("ip", "InnerProduct"), ("drop", "Dropout"), ("loss", "Softmax"),
    ]  # fmt: skip
    assert found.graph.outputs == ("prob",)
    dropped = {(layer.name, layer.type): layer.reason for layer in found.dropped}
    assert dropped["data", "Data"] == "only in training"
    assert dropped["noise", "Python"] == "only in training"
    assert dropped["accuracy", "Accuracy"] == "judges answers in training"
    assert {name for name, _ in dropped} == {"data", "noise", "label_flat", "accuracy", "accuracy5", "quiet"}
    assert found.reading is not None
    assert found.reading.mean_file == "mean.binaryproto"


@pytest.mark.parametrize(
    ("rule", "there"),
    [
        ("include { phase: TEST }", True),
        ("include { phase: TRAIN }", False),
        ("exclude { phase: TRAIN }", True),
        ("exclude { phase: TEST }", False),
        ("include { phase: TRAIN } include { phase: TEST }", True),
        ("include { phase: TEST stage: 'deploy' }", False),
        ("include { not_stage: 'train' }", True),
        ("exclude { stage: 'other' }", True),
        ("include { min_level: 1 }", False),
        ("include { max_level: 0 }", True),
        ("exclude { min_level: -2 max_level: 3 }", False),
        ("exclude { phase: TEST min_level: 1 }", True),
    ],
)
def test_rules_of_phase_level_and_stage(rule: str, there: bool, tmp_path: Path) -> None:
    relu = f'layer {{ name: "relu" type: "ReLU" bottom: "ip" top: "ip" {rule} }}'
    found = imported(INPUT + HEAD + relu, tmp_path)
    assert ("relu" in [layer.name for layer in found.layers]) == there


def test_stages_are_those_of_the_file(tmp_path: Path) -> None:
    relu = 'layer { name: "relu" type: "ReLU" bottom: "ip" top: "ip" include { stage: "deploy" } }'
    found = imported(INPUT + 'state { stage: "deploy" level: 2 }' + HEAD + relu, tmp_path)
    assert [layer.name for layer in found.layers] == ["ip", "relu"]


def test_losses_that_are_answers_and_losses_that_are_not(tmp_path: Path) -> None:
    def outputs(text: str) -> tuple[tuple[str, ...], list[str]]:
        graph = imported(INPUT + 'input: "label" input_dim: [1, 1, 1, 1]\n' + HEAD + text, tmp_path).graph
        return graph.outputs, [node.operator for node in graph.nodes]

    def loss(kind: str, name: str = "loss", tops: str = 'top: "loss"') -> str:
        return f'layer {{ name: "{name}" type: "{kind}" bottom: "ip" bottom: "label" {tops} }}\n'

    assert outputs(loss("SoftmaxWithLoss")) == (("prob",), ["Flatten", "Gemm", "Softmax"])
    assert outputs(loss("SoftmaxWithLoss", tops="")) == (("prob",), ["Flatten", "Gemm", "Softmax"])
    assert outputs(loss("SoftmaxWithLoss", tops='top: "l" top: "p"')) == (("p",), ["Flatten", "Gemm", "Softmax"])
    assert outputs(loss("SigmoidCrossEntropyLoss")) == (("prob",), ["Flatten", "Gemm", "Sigmoid"])
    assert outputs(loss("EuclideanLoss")) == (("ip",), ["Flatten", "Gemm"])
    assert outputs(loss("CenterLoss")) == (("ip",), ["Flatten", "Gemm"])  # a fork's
    soft = 'layer { name: "s" type: "Softmax" bottom: "ip" top: "answer" }\n'
    assert outputs(soft + loss("SoftmaxWithLoss")) == (("answer",), ["Flatten", "Gemm", "Softmax"])
    both = loss("SoftmaxWithLoss", "one", 'top: "a"') + loss("SoftmaxWithLoss", "two", 'top: "b"')
    assert outputs(both)[0] == ("one/prob", "two/prob")


# -- wiring


def test_in_place_layers_read_what_is_newest(tmp_path: Path) -> None:
    net = Net("inplace", inputs={"data": (1, 4, 5, 5)})
    net.add("Power", "before", "data", "x", power_param={"shift": 1})
    net.add("ReLU", "first", "x", "x")
    net.add("Power", "half", "x", "y", power_param={"scale": 0.5})  # reads x before the next change
    net.add("Power", "twice", "x", "x", power_param={"scale": 2})
    net.add("Eltwise", "sum", ["x", "y"], "z")
    graph = read_caffe(*net.save(tmp_path)).graph
    wires = {node.name: node.inputs for node in graph.nodes}
    assert wires["first"][0] == "before"
    assert wires["half"][0] == wires["twice"][0] == "first"
    assert wires["sum"] == ("twice", "half")
    assert graph.outputs == ("z",)


def test_outputs_that_share_a_tensor_or_are_an_input(tmp_path: Path) -> None:
    net = Net("views", inputs={"data": (1, 4)})
    net.add("Split", "split", "data", ["a", "b"])
    net.add("ReLU", "relu", "a", "c")
    graph = read_caffe(*net.save(tmp_path)).graph
    assert graph.outputs == ("b", "c")
    assert [node.operator for node in graph.nodes] == ["Relu", "Identity"]


def test_names_that_collide_stay_apart(tmp_path: Path) -> None:
    net = Net("same", inputs={"data": (1, 4)})
    net.add("ReLU", "data", "data", "x")
    net.add("Sigmoid", "x", "x", "ip.weight")
    net.linear("ip", "ip.weight", 4, 4)
    net.add("TanH", "ip", "ip", "tanh", extra={})
    del net.blobs["ip"]
    net.linear("ip2", "tanh", 4, 2)
    net.layers[2]["name"] = "ip3"
    net.blobs["ip3"] = [np.ones((4, 4), np.float32), np.zeros(4, np.float32)]
    graph = read_caffe(*net.save(tmp_path)).graph
    assert [node.operator for node in graph.nodes] == ["Relu", "Sigmoid", "Gemm", "Tanh", "Gemm"]
    assert len({node.name for node in graph.nodes}) == 5
    assert graph.outputs == ("ip2",)


def test_outputs_cut_the_network(tmp_path: Path) -> None:
    net = zoo.googlenet(16)
    net.conv("aux/conv", "inception_4a/output", 512 // 16, 8, 1)
    net.add("Frobnicate", "aux/strange", "aux/conv", "aux/out")
    files = net.save(tmp_path)
    with pytest.raises(NetworkError, match=r"got Frobnicate \(aux/strange\); end before them with --outputs"):
        read_caffe(*files)
    found = read_caffe(*files, outputs=["prob"])
    assert found.graph.outputs == ("prob",)
    assert {layer.name for layer in found.dropped} == {"aux/conv", "aux/strange"}
    assert found.unused == ("aux/conv",)
    early = read_caffe(*files, outputs=["pool1/norm1", "conv1/7x7_s2"])
    assert early.graph.outputs == ("pool1/norm1", "conv1/7x7_s2")
    with pytest.raises(NetworkError, match=r"got 'porb'; did you mean prob\?"):
        read_caffe(*files, outputs=["porb"])


def test_batch_norm_and_scale_become_one_node_only_where_they_may(tmp_path: Path) -> None:
    def operators(in_place: bool, between: bool = False, **scale: object) -> list[str]:
        net = Net("bn", inputs={"data": (2, 3, 4, 4)})
        zoo.normalised(net, "one", "data", 3, in_place=in_place)
        net.layers[-1]["parameters"]["scale_param"].update(scale)
        net.add("ReLU", "relu", net.layers[-1]["top"], "out")
        if between:
            net.add("Sigmoid", "also", "bn_one", "also")
            net.layers.insert(1, net.layers.pop())
        return [node.operator for node in read_caffe(*net.save(tmp_path)).graph.nodes]

    assert operators(True) == ["BatchNormalization", "Relu"]
    assert operators(False) == ["BatchNormalization", "Relu"]
    assert operators(False, between=True) == ["BatchNormalization", "Sigmoid", "Mul", "Add", "Relu"]
    assert operators(True, axis=-3) == ["BatchNormalization", "Mul", "Add", "Relu"]


# -- what is wrong


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "an empty file"),
        ("# nothing", "without layers"),
        ("base_lr: 0.01\nnet: 'x'", "a solver's settings"),
        (INPUT + HEAD.replace("type", "tyep"), "'tyep' in line 2, layer 'ip'"),
        (INPUT + HEAD.replace("num_output: 4", "num_output: 4 kernal: 3"), "'kernal' in line 2, layer 'ip'"),
        (INPUT + HEAD + "wild: 3", "'wild' in line 3"),
        (INPUT + HEAD.replace("num_output: 4", "num_output: four"), "line 2, column"),
        (INPUT + HEAD.replace("num_output: 4", "num_output: 4 num_output: 4"), "multiple"),
        (INPUT + HEAD.rstrip("}\n"), "line 2"),
        (INPUT + "layers { type: CONV }", "'CONV', which is none of NONE, ACCURACY"),
        (INPUT + HEAD + 'layers { type: RELU name: "r" bottom: "ip" top: "ip" }', "got both; use one syntax"),
        (INPUT + HEAD.replace('bottom: "data"', 'bottom: "dota"'), "reads 'dota'"),
        (INPUT + HEAD.replace('bottom: "data"', ""), "expected 1 bottom, got 0"),
        (INPUT + HEAD.replace('top: "ip"', 'top: "ip" top: "b"'), "expected 1 top, got 2"),
        (INPUT + HEAD + HEAD, "expected each blob made once, or in place, got 'ip'"),
        (INPUT + HEAD.replace("InnerProduct", "LSTM"), "got LSTM (ip)"),
        (INPUT + HEAD.replace("InnerProduct", ""), "got (none) (ip)"),
        (INPUT + HEAD.replace("} }", "} include { phase: TEST } exclude { phase: TRAIN } }"), "got both in layer 'ip'"),
        (INPUT.replace("input_dim: 1 ", "") + HEAD, "got 3 input_dim"),
        (INPUT + "input_shape { dim: 1 }" + HEAD, "got both; remove one"),
        ('input: "data"\n' + HEAD, "add --input 3,227,227"),
        (INPUT.replace("2", "-2") + HEAD, "sizes from 1 up"),
        (INPUT.replace("input_dim: 2", "input_dim: 2147483647") + HEAD, "sizes"),
        ('layer { name: "d" type: "Data" top: "data" }' + HEAD, "add --input"),
        (INPUT + HEAD.replace("num_output: 4", "num_output: 5"), "blob 0 of shape (5, 12)"),
        (INPUT + HEAD.replace("num_output: 4", "num_output: 4 axis: 2"), "blob 0 of shape (4, 4)"),
        (INPUT + HEAD.replace("num_output: 4", "num_output: 4 bias_term: false"), "expected 1 blobs, got 2"),
        (INPUT + HEAD.replace("num_output: 4", "num_output: 4 axis: 7"), "axis from -4 to 3"),
        (INPUT + HEAD.replace('name: "ip"', 'name: "ip_2"'), "is 'ip' the same layer as 'ip_2'?"),
        (INPUT + HEAD.replace('name: "ip"', 'name: "i\\np"'), "printable"),
        (INPUT + "layer { a " + "{ b " * 3000, "line 2"),
    ],
)
def test_a_mistake_is_told_in_one_line(text: str, told: str, tmp_path: Path) -> None:
    assert told in refused(text, tmp_path)


@pytest.mark.parametrize(
    ("kind", "parameters", "told"),
    [
        (
            "Pooling",
            {"pooling_param": {"pool": Name("STOCHASTIC"), "kernel_size": 2}},
            "pool MAX or AVE, got STOCHASTIC",
        ),
        ("Pooling", {"pooling_param": {}}, "a kernel_size, got none"),
        ("Pooling", {"pooling_param": {"kernel_size": 2, "kernel_h": 2}}, "got all of them"),
        ("Pooling", {"pooling_param": {"kernel_h": 2}}, "kernel_h"),
        ("Pooling", {"pooling_param": {"kernel_size": 2, "pad": 2}}, "pads below the kernel"),
        ("Pooling", {"pooling_param": {"kernel_size": 0}}, "from 1 to"),
        ("Pooling", {"pooling_param": {"kernel_size": 2, "global_pooling": True}}, "without a kernel"),
        ("Pooling", {"pooling_param": {"kernel_size": 20}}, "is the input too small"),
        ("LRN", {"lrn_param": {"local_size": 4}}, "an odd local_size"),
        ("Convolution", {"convolution_param": {"num_output": 4}}, "a kernel_size, got none"),
        (
            "Convolution",
            {"convolution_param": {"num_output": 4, "kernel_size": 3, "group": 5}},
            "divide into the groups",
        ),
        ("Convolution", {"convolution_param": {"num_output": 4, "kernel_size": [3, 3, 3]}}, "one or 2"),
        ("Convolution", {"convolution_param": {"num_output": 4, "kernel_size": 3, "axis": 2}}, "axis 1 the channels"),
        ("Eltwise", {"eltwise_param": {"coeff": [1, 2, 3]}}, "2 coefficients"),
        ("Reshape", {"reshape_param": {"shape": {"dim": [0, 5]}}}, "--batch"),
        ("Reshape", {"reshape_param": {"shape": {"dim": [1, 2, 3, 4, 0]}}}, "0 only where"),
        ("Slice", {"slice_param": {"slice_point": [9]}}, "rising slice_points"),
        ("Flatten", {"flatten_param": {"axis": 2, "end_axis": 1}}, "end_axis from axis up"),
        ("Crop", {"crop_param": {"offset": 9}}, "a cut within"),
        ("Crop", {"crop_param": {"offset": [1, 1, 1]}}, "one offset or 2"),
        ("Tile", {"tile_param": {"tiles": 100000}}, "tiles from 1 to"),
        ("Permute", {"permute_param": {"order": [0, 0]}}, "each once"),
        ("Log", {"log_param": {"base": 0}}, "a base above 0"),
        ("Clip", {"clip_param": {"min": 0}}, "min and max"),
        ("ArgMax", {"argmax_param": {"top_k": 5}}, "top_k 1"),
        ("Scale", {"scale_param": {"axis": 3}}, "a second bottom like the axes"),
        ("BatchNorm", {"batch_norm_param": {"use_global_stats": False}}, "use_global_stats: true"),
        ("Concat", {}, "differ along axis 1 only"),
    ],
)
def test_a_layer_that_makes_no_sense_is_refused(
    kind: str, parameters: dict[str, dict[str, object]], told: str, tmp_path: Path
) -> None:
    net = Net("wrong", inputs={"data": (2, 6, 7, 5), "other": (2, 6, 7, 4)})
    bottoms = ["data", "other"] if kind in ("Eltwise", "Crop", "Scale", "Concat") else ["data"]
    if kind == "Eltwise":
        net.inputs["other"] = (2, 6, 7, 5)
    tops = ["a", "b"] if kind == "Slice" else ["a"]
    weights = {
        "Convolution": [np.zeros((4, 6, 3, 3)), np.zeros(4)],
        "BatchNorm": [np.zeros(6), np.zeros(6), np.ones(1)],
    }
    net.add(kind, "the_layer", bottoms, tops, blobs=weights.get(kind, []), **parameters)
    with pytest.raises(NetworkError, match="the_layer") as caught:
        read_caffe(*net.save(tmp_path), batch=2)
    assert told in str(caught.value)


def test_fields_of_forks_are_left_alone_where_they_do_not_matter(tmp_path: Path) -> None:
    noisy = INPUT + (
        'layer { name: "data2" type: "AnnotatedData" top: "d2"\n'
        "annotated_data_param { batch_sampler { max_sample: 1 } } }\n"
        'layer { name: "box" type: "PriorBox" bottom: "d2" top: "box" prior_box_param { min_size: 3 # }\n'
        ' s: "}" t: [1, 2] } }\n'
        'layer { name: "loss" type: "MultiBoxLoss" bottom: "box" top: "l" multibox_loss_param < loc_weight: 1 > }\n'
    )
    found = imported(noisy + HEAD, tmp_path, outputs=["ip"])
    assert {layer.name for layer in found.dropped} >= {"data2", "box", "loss"}
    assert found.graph.outputs == ("ip",)
    assert "'annotated' in line 2" in refused(INPUT + HEAD.replace("num_output", "annotated: 1 num_output"), tmp_path)


def test_what_nvidias_fork_says_of_number_formats_does_not_matter(tmp_path: Path) -> None:
    plain = structure(imported(INPUT + HEAD, tmp_path).graph)
    formats = "default_forward_type: FLOAT16 default_backward_math: FLOAT\n" + INPUT
    layer = HEAD.replace("inner_product", "forward_type: FLOAT backward_math: FLOAT16 inner_product")
    assert structure(imported(formats + layer, tmp_path).graph) == plain


def test_a_learned_shift_is_not_lost_where_a_scale_is_taken_in(tmp_path: Path) -> None:
    net = Net("bn", inputs={"data": (2, 3, 4, 4)})
    zoo.normalised(net, "one", "data", 3)
    net.layers[-1]["parameters"]["scale_param"] = {}
    with pytest.raises(NetworkError, match=r"'scale_one': expected 1 blobs, got 2 in the weights' file"):
        read_caffe(*net.save(tmp_path))


def test_a_binary_file_in_the_place_of_the_text(tmp_path: Path) -> None:
    net = small()
    prototxt, caffemodel = net.save(tmp_path)
    with pytest.raises(NetworkError, match="give the prototxt first"):
        read_caffe(caffemodel, prototxt)
    with pytest.raises(NetworkError, match="got a text; give the caffemodel second"):
        read_caffe(prototxt, prototxt)
    with pytest.raises(NetworkError, match="No such file"):
        read_caffe(tmp_path / "none.prototxt", caffemodel)
    with pytest.raises(NetworkError, match="got a folder"):
        read_caffe(tmp_path, caffemodel)
    prototxt.write_bytes(b" " * (5 * 2**20))
    with pytest.raises(NetworkError, match="of at most 4194304 bytes"):
        read_caffe(prototxt, caffemodel)


def test_hundreds_of_unknown_fields_are_another_kind_of_file(tmp_path: Path) -> None:
    assert "got 199 fields or more" in refused("\n".join(f"field{at}: {at}" for at in range(300)), tmp_path)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_text_is_refused_or_read_never_a_crash(data: st.DataObject) -> None:
    net, told = zoo.lenet(5), ""
    whole = net.text()
    at = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.integers(0, 40))
    put = data.draw(st.text(alphabet="{}[]<>:;,\"'#-09.eE \n", max_size=4))
    with TemporaryDirectory() as folder:
        try:
            imported(whole[:at] + put + whole[at + cut :], Path(folder), net)
        except (NetworkError, InputError) as error:
            told = str(error)
    assert "\n" not in told


def test_texts_in_other_words_are_the_same(tmp_path: Path) -> None:
    """Commas, semicolons, colons before brackets, angles, lists: protobuf's text form allows them all."""
    net = small()
    plain = structure(imported(INPUT + HEAD, tmp_path, net).graph)
    odd = (INPUT + HEAD).replace("inner_product_param {", "inner_product_param: <").replace("4 } }", "4; >, }")
    assert structure(imported(odd, tmp_path, net).graph) == plain
    assert written("shape", {"dim": [1, 2]}) == "shape { dim: 1 dim: 2 }"
