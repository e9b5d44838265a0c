"""Labels and losses that cannot be: refused in one line."""

import pytest
import torch
from forward_networks import CLASSES, Masked, batch, network

from labelleak import capture
from labelleak.errors import InvalidObservation
from labelleak.loss import Loss


class TestBadLabels:
    @pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
    @pytest.mark.parametrize("number", [0, 1, 63, 64, 65, 69, 71, 128])
    def test_number(self, number, train):
        images, _ = batch(70)
        with pytest.raises(InvalidObservation, match="one class index per sample"):
            capture(network(train=train), images, torch.zeros(number, dtype=torch.int64))

    @pytest.mark.parametrize("label", [-1, -100, CLASSES, 1000])
    def test_out_of_range(self, label):
        images, labels = batch(70)
        labels[68] = label
        with pytest.raises(InvalidObservation, match=f"{label}.* classes 0 to 6"):
            capture(network(), images, labels)

    def test_number_in_a_piece(self):
        images, labels = batch(7)
        with pytest.raises(InvalidObservation, match="one class index per sample"):
            capture(network(), [(images, labels[:5])])

    def test_number_for_one_of_several_inputs(self):
        inputs = {
            "input_ids": torch.zeros(4, 2, dtype=torch.int64),
            "attention_mask": torch.ones(3, 2),
        }
        with pytest.raises(InvalidObservation, match="one class index per sample"):
            capture(network(Masked, wrap=None), inputs, torch.zeros(4, dtype=torch.int64))

    @pytest.mark.usefixtures("unchecked")
    def test_an_input_that_is_no_tensor(self):
        inputs = {"input_ids": torch.zeros(4, 2, dtype=torch.int64), "return_dict": True}
        with pytest.raises(InvalidObservation, match="input 'return_dict' is no tensor"):
            capture(network(Masked, wrap=None), inputs, torch.zeros(4, dtype=torch.int64))

    def test_missing(self):
        with pytest.raises(InvalidObservation, match="labels are missing"):
            capture(network(), batch(4)[0])

    def test_empty_batch(self):
        with pytest.raises(InvalidObservation, match="batch is empty"):
            capture(network(), *batch(0))

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        "labels",
        [torch.full((4, CLASSES), 1 / CLASSES), torch.tensor(3), torch.zeros(4, 1).long()],
        ids=["probabilities", "scalar", "column"],
    )
    def test_shape(self, labels):
        with pytest.raises(InvalidObservation, match="one class index per sample"):
            capture(network(), batch(4)[0], labels)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
    def test_dtype(self, dtype):
        with pytest.raises(InvalidObservation, match=r"class indices are needed \(int64\)"):
            capture(network(), batch(4)[0], torch.ones(4).to(dtype))

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize("number", [0, 1])
    def test_of_numpy(self, number):
        given = list(batch(4))
        given[number] = given[number].numpy()
        what = ("inputs", "labels")[number]
        with pytest.raises(InvalidObservation, match=f"{what} are a ndarray: a tensor is needed"):
            capture(network(), *given)


class TestBadLoss:
    @pytest.mark.usefixtures("unchecked")
    def test_class_weights_of_another_number(self):
        with pytest.raises(InvalidObservation, match="class weights 5 for 7 classes"):
            capture(network(), *batch(4), loss=Loss(class_weights=torch.ones(5)))

    def test_class_weights_of_zero(self):
        with pytest.raises(InvalidObservation, match="class weights must be positive"):
            capture(network(), *batch(4), loss=Loss(class_weights=torch.zeros(CLASSES)))

    def test_label_smoothing(self):
        with pytest.raises(InvalidObservation, match=r"label smoothing 1\.0"):
            capture(network(), *batch(4), loss=Loss(label_smoothing=1.0))

    def test_a_model_that_broke(self):
        model = network()
        with torch.no_grad():
            model.conv.weight.fill_(float("nan"))
        with pytest.raises(InvalidObservation, match="NaN or infinite logits"):
            capture(model, *batch(4))
