"""The weights' file: every way to store a blob, and files that are damaged, hostile or of another kind."""

from pathlib import Path

import caffe_networks as zoo
import cv2
import numpy as np
import pytest
from caffe_files import Net, blob_bytes, bytes_field, text_field, varint, varint_field
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_oracles import structure

from perwatt.errors import NetworkError
from perwatt.graph.caffe_reader import read_caffe
from perwatt.graph.caffe_weights import read_mean, read_weights

RANDOM = np.random.default_rng(4)


def layer_with(*blobs: bytes, name: str = "ip") -> bytes:
    entry = text_field(1, name) + text_field(2, "InnerProduct") + b"".join(bytes_field(7, blob) for blob in blobs)
    return bytes_field(100, entry)


def shaped(sizes: bytes) -> bytes:
    return bytes_field(7, bytes_field(1, sizes))


def read_bytes(data: bytes, folder: Path) -> dict[str, list[np.ndarray]]:
    path = folder / "net.caffemodel"
    path.write_bytes(data)
    return {name: [blob.array for blob in blobs] for name, blobs in read_weights(path).items()}


def refused(data: bytes, folder: Path) -> str:
    with pytest.raises(NetworkError) as caught:
        read_bytes(data, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("shapes", ["today", "old"])
@pytest.mark.parametrize("numbers", ["float", "double", "plain", "parts"])
@pytest.mark.parametrize("syntax", ["today", "old", "oldest"])
def test_numbers_come_back_to_the_last_bit(syntax: str, numbers: str, shapes: str, tmp_path: Path) -> None:
    net = zoo.lenet(10)
    path = tmp_path / "net.caffemodel"
    path.write_bytes(net.weights(syntax, shapes=shapes, numbers=numbers))
    found = read_weights(path)
    assert set(found) == set(net.blobs)
    for name, blobs in net.blobs.items():
        for blob, wanted in zip(found[name], blobs, strict=True):
            assert blob.fits(wanted.shape)
            np.testing.assert_array_equal(blob.array.reshape(wanted.shape), wanted)
            assert blob.stored == ("double" if numbers == "double" else "float")
            assert blob.array.dtype == np.float32
            assert not blob.array.flags.writeable


def test_halves_as_opencv_shrinks_them(tmp_path: Path) -> None:
    net = zoo.lenet(5)
    prototxt, caffemodel = net.save(tmp_path)
    shrunk = tmp_path / "half.caffemodel"
    cv2.dnn.shrinkCaffeModel(str(caffemodel), str(shrunk))
    assert shrunk.stat().st_size < 0.6 * caffemodel.stat().st_size
    found = read_weights(shrunk)
    for name, blobs in net.blobs.items():
        assert [blob.stored for blob in found[name]] == ["half"] * len(blobs)
        for blob, wanted in zip(found[name], blobs, strict=True):
            np.testing.assert_array_equal(blob.array, wanted.astype(np.float16).astype(np.float32))
    assert read_caffe(prototxt, shrunk).notes == ("weights stored as half",)


def test_doubles_are_rounded_and_that_is_told(tmp_path: Path) -> None:
    net = zoo.lenet(5)
    prototxt, caffemodel = net.save(tmp_path, numbers="double")
    assert read_caffe(prototxt, caffemodel).notes == ("weights stored as double are rounded to float32",)
    value = 1 + 2.0**-30
    blob = bytes_field(7, bytes_field(1, varint(1))) + bytes_field(8, np.array([value], "<f8").tobytes())
    assert read_bytes(layer_with(blob), tmp_path)["ip"][0][0] == np.float32(1.0)


def test_numbers_that_are_none_are_told(tmp_path: Path) -> None:
    net = zoo.lenet(5)
    net.blobs["ip1"][0][0, 0] = np.nan
    assert "NaN or infinite in ip1" in read_caffe(*net.save(tmp_path)).notes[0]


def test_what_is_beside_the_weights_is_passed_over(tmp_path: Path) -> None:
    """Caffe writes its parameters, the phase and gradients along; forks add fields of their own."""
    blob = blob_bytes(np.ones((2, 3), np.float32)) + bytes_field(6, bytes(24)) + bytes_field(77, b"fork")
    entry = text_field(1, "ip") + text_field(2, "InnerProduct") + bytes_field(117, varint_field(1, 2))
    entry += varint_field(10, 1) + text_field(3, "data") + bytes_field(7, blob) + bytes_field(6, b"")
    data = text_field(1, "net") + bytes_field(100, entry) + varint_field(5, 0) + bytes_field(6, varint_field(1, 1))
    np.testing.assert_array_equal(read_bytes(data, tmp_path)["ip"][0], np.ones((2, 3)))


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    entry = bytes_field(1, b"\xff\xfe") + bytes_field(7, blob_bytes(np.ones(2, np.float32)))
    assert list(read_bytes(bytes_field(100, entry), tmp_path)) == ["��"]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "an empty file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>\x01", "a web page"),
        (b"layer { name: 'x' }", "give the caffemodel second"),
        (bytes(40), "Caffe's binary form"),
        (text_field(1, "net"), "without layers"),
        (layer_with(varint_field(1, 1)), "got (1, 0, 0, 0)"),
        (layer_with(b""), "expected a shape, got none"),
        (layer_with(shaped(varint(3)) + bytes_field(5, bytes(8))), "the 3 numbers of shape (3,)"),
        (layer_with(shaped(varint(2)) + bytes_field(5, bytes(7))), "numbers of 4 bytes"),
        (layer_with(shaped(varint(2**40)) + bytes_field(5, bytes(8))), "got 2"),
        (layer_with(shaped(varint(-2) + varint(-1)) + bytes_field(5, bytes(8))), "sizes from 1 up"),
        (layer_with(shaped(varint(1) * 40) + bytes_field(5, bytes(4))), "at most 32 axes"),
        (layer_with(shaped(varint(2)) + varint_field(10, 9) + bytes_field(12, bytes(8))), "type 9"),
        (layer_with(*[b""] * 100), "at most 64 blobs"),
        (bytes_field(100, b"") * 30_000, "at most 20000 layers"),
        (bytes_field(100, b"\x0a\xff\xff\xff\xff\x7f"), "Caffe's binary form"),
    ],
)
def test_a_damaged_or_hostile_file_is_refused(data: bytes, told: str, tmp_path: Path) -> None:
    assert told in refused(data, tmp_path)


def test_a_file_cut_anywhere_is_refused_or_lacks_layers(tmp_path: Path) -> None:
    net = zoo.lenet(10)
    whole = net.weights()
    prototxt, caffemodel = net.save(tmp_path)
    for end in range(1, len(whole), 97):
        caffemodel.write_bytes(whole[:end])
        with pytest.raises(NetworkError):
            read_caffe(prototxt, caffemodel)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_flipped_byte_never_crashes(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    net = Net("small", inputs={"data": (1, 3, 2, 2)})
    net.linear("ip", "data", 12, 4)
    whole = bytearray(net.weights())
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.getbasetemp()
    prototxt, caffemodel = folder / "flipped.prototxt", folder / "flipped.caffemodel"
    prototxt.write_text(net.text())
    caffemodel.write_bytes(whole)
    told = ""
    try:
        read_caffe(prototxt, caffemodel)
    except NetworkError as error:
        told = str(error)
    assert "\n" not in told


def test_weights_of_another_network_are_told_by_name_and_shape(tmp_path: Path) -> None:
    prototxt, _ = zoo.lenet(5).save(tmp_path)
    other = tmp_path / "other.caffemodel"
    other.write_bytes(zoo.vgg16(32).weights())
    with pytest.raises(
        NetworkError, match=r"expected the weights of conv1, conv2, ip1, ip2, got those of conv1_1, conv1_2"
    ):
        read_caffe(prototxt, other)
    wide = zoo.lenet(4)
    other.write_bytes(wide.weights())
    with pytest.raises(
        NetworkError, match=r"'conv1': expected blob 0 of shape \(4, 1, 5, 5\) .*, got shape \(5, 1, 5, 5\)"
    ):
        read_caffe(prototxt, other)


def test_old_shapes_fit_whatever_rank_the_layer_wants(tmp_path: Path) -> None:
    net = zoo.resnet(32, blocks=(1, 1, 1, 1))
    today = structure(read_caffe(*net.save(tmp_path)).graph)
    assert structure(read_caffe(*net.save(tmp_path, shapes="old")).graph) == today


# -- mean files


def test_mean_files(tmp_path: Path) -> None:
    mean = RANDOM.uniform(90, 130, (3, 8, 9)).astype(np.float32)
    path = tmp_path / "mean.binaryproto"
    for shapes, array in (("old", mean[None]), ("today", mean[None]), ("today", mean)):
        path.write_bytes(blob_bytes(array, shapes))
        np.testing.assert_array_equal(read_mean(path), mean)
    path.write_bytes(blob_bytes(mean[None, :1], "old"))
    assert read_mean(path).shape == (1, 8, 9)
    for array in (mean, mean.mean(axis=(1, 2)), mean.astype(np.float64), mean.astype(np.uint8)):
        np.save(tmp_path / "mean.npy", array)
        np.testing.assert_array_equal(read_mean(tmp_path / "mean.npy"), array.astype(np.float32))


def test_mean_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "mean.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for content in (path.read_bytes(), b"\x93NUMPY\x01\x00", b"\x93NUMPY" + bytes(90), b"not a mean", bytes(9)):
        path.write_bytes(content)
        with pytest.raises(NetworkError, match="expected"):
            read_mean(path)
    np.save(path, np.zeros((2, 2)))
    with pytest.raises(NetworkError, match=r"got \(2, 2\)"):
        read_mean(path)
    path.write_bytes(blob_bytes(np.zeros((2, 3, 4, 4), np.float32)))
    with pytest.raises(NetworkError, match="one mean image"):
        read_mean(path)
