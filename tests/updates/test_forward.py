from copy import deepcopy

import pytest
import torch
from forward_networks import CLASSES, Net, assert_same, batch, by_autograd, network
from torch import nn

from labelleak import capture
from labelleak.errors import InvalidObservation
from labelleak.lab import networks
from labelleak.loss import Loss

LOSSES = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "smoothing": {"label_smoothing": 0.1},
    "weights": {"class_weights": True},
    "smoothing and weights": {"label_smoothing": 0.3, "class_weights": True},
    "sum, smoothing and weights": {
        "reduction": "sum",
        "label_smoothing": 0.3,
        "class_weights": True,
    },
}


def loss_options(options):
    options = dict(options)
    if options.get("class_weights"):
        generator = torch.Generator().manual_seed(2)
        options["class_weights"] = torch.rand(CLASSES, generator=generator) + 0.1
    return options


class TestEqualsAutograd:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    @pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
    @pytest.mark.parametrize("options", LOSSES.values(), ids=LOSSES)
    def test_losses(self, options, train, dtype):
        model, (images, labels) = network(train=train, dtype=dtype), batch(70, dtype)
        options = loss_options(options)
        observation = capture(model, images, labels, loss=Loss(**options))
        assert_same(
            observation.gradient,
            by_autograd(model, images, labels, **options),
        )

    @pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 127, 128, 129, 200])
    @pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
    def test_batch_sizes_around_the_chunk(self, train, size):
        model, (images, labels) = (
            network(train=train, dtype=torch.float64),
            batch(size, torch.double),
        )
        observation = capture(model, images, labels)
        assert observation.batch_size == size
        assert_same(observation.gradient, by_autograd(model, images, labels))

    def test_without_bias(self):
        model, (images, labels) = network(bias=False), batch(9)
        observation = capture(model, images, labels)
        assert observation.head.bias is None
        assert_same(observation.gradient, by_autograd(model, images, labels))

    @pytest.mark.parametrize("name", ["fcn-3", "lenet5", "vgg11", "resnet18"])
    @pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
    def test_networks_of_the_package(self, name, train):
        model = networks.build(name, classes=CLASSES, image_shape=(1, 32, 32), seed=0).train(train)
        images = torch.randn(6, 1, 32, 32, generator=torch.Generator().manual_seed(0))
        labels = torch.tensor([0, 1, 1, 6, 2, 1])
        gradient = capture(model, images, labels).gradient
        copy = deepcopy(model)
        head = copy.classifier[6] if name.startswith("vgg") else copy.fc
        loss = nn.CrossEntropyLoss()(copy(images), labels)
        assert_same(gradient, torch.autograd.grad(loss, list(head.parameters())))

    def test_confident_predictions(self):
        model, (images, labels) = network(), batch(20)
        with torch.no_grad():
            model.fc.weight.mul_(100.0)
        assert_same(capture(model, images, labels).gradient, by_autograd(model, images, labels))

    def test_bfloat16(self):
        model, (images, labels) = network(dtype=torch.bfloat16), batch(24, torch.bfloat16)
        observation = capture(model, images, labels)
        assert observation.gradient.weight.dtype == torch.bfloat16
        assert observation.head.bias.dtype == torch.bfloat16
        assert_same(observation.gradient, by_autograd(model, images, labels))

    def test_autocast(self):
        model, (images, labels) = network(), batch(24)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            observation = capture(model, images, labels)
        assert observation.gradient.weight.dtype == torch.float32
        assert_same(observation.gradient, by_autograd(model, images, labels), 0.02)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
    def test_labels_of_other_integers(self, dtype):
        model, (images, labels) = network(), batch(9)
        gradient = capture(model, images, labels.to(dtype)).gradient
        assert_same(gradient, by_autograd(model, images, labels))


class TestObservation:
    def test_knows_what_it_was_told(self):
        model, (images, labels) = network(), batch(5)
        weights = torch.arange(1.0, CLASSES + 1)
        loss = Loss(reduction="sum", label_smoothing=0.2, class_weights=weights)
        observation = capture(model, images, labels, loss=loss)
        assert observation.batch_size == 5
        assert observation.loss is loss
        assert observation.local_steps == 1
        assert observation.model is model
        assert observation.head.name == "fc"

    def test_holds_a_copy_of_the_head(self):
        model, (images, labels) = network(), batch(5)
        observation = capture(model, images, labels)
        before = model.fc.weight.detach().clone()
        with torch.no_grad():
            model.fc.weight.zero_()
            model.fc.bias.zero_()
        assert torch.equal(observation.head.weight, before)
        assert observation.head.bias.any()
        assert not observation.head.weight.requires_grad

    def test_labels_are_no_part_of_it(self):
        images, labels = batch(40)
        observation = capture(network(), images, labels)
        for value in vars(observation).values():
            assert not (isinstance(value, torch.Tensor) and value.shape == labels.shape)


class TestLeavesNoTrace:
    def test_of_the_model_after_an_error_in_it(self):
        class Broken(Net):
            def forward(self, images):
                super().forward(images)
                raise RuntimeError("broken")

        model, (images, labels) = network(Broken, train=True), batch(10)
        before = deepcopy(model.state_dict())
        with pytest.raises(RuntimeError, match="broken"):
            capture(model, images, labels)
        assert not model.fc._forward_hooks
        assert model.training
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert torch.is_grad_enabled()

    @pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
    def test_of_the_model(self, train):
        model, (images, labels) = network(train=train), batch(100)
        model.conv.bias.requires_grad_(False)
        model.fc.weight.grad = torch.ones_like(model.fc.weight)
        before = deepcopy(model.state_dict())
        capture(model, images, labels)
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert model.training is train
        assert model.norm.training is train
        assert torch.equal(model.fc.weight.grad, torch.ones_like(model.fc.weight))
        assert model.conv.weight.grad is None
        assert model.conv.weight.requires_grad
        assert not model.conv.bias.requires_grad
        assert not model.fc._forward_hooks
        assert torch.is_grad_enabled()

    def test_of_the_model_after_an_error(self):
        model, (images, labels) = network(train=True), batch(10)
        with pytest.raises(InvalidObservation):
            capture(model, images, labels + CLASSES)
        assert not model.fc._forward_hooks
        assert model.training
        assert model.norm.num_batches_tracked == 0

    def test_of_a_buffer_that_the_forward_pass_writes(self):
        class Caching(Net):
            def __init__(self):
                super().__init__()
                self.register_buffer("calls", torch.zeros(()))
                self.register_buffer("last", torch.zeros(1))
                self.register_buffer("first", None)
                self.same_calls = nn.BatchNorm1d(1)
                self.same_calls.register_buffer("calls", self.calls)

            def forward(self, images):
                self.calls += 1
                assert self.same_calls.calls is self.calls
                self.last = images.sum(dim=(1, 2, 3))
                self.first = images
                return super().forward(images)

        model, (images, labels) = network(Caching), batch(70)
        gradient = capture(model, images, labels).gradient
        assert model.calls == 0
        assert torch.equal(model.last, torch.zeros(1))
        assert model.first is None
        assert_same(gradient, by_autograd(model, images, labels))


class TestModes:
    def test_training_uses_the_statistics_of_the_whole_batch(self):
        model, (images, labels) = network(train=True), batch(130)
        train = capture(model, images, labels).gradient.weight
        evaluation = capture(model.eval(), images, labels).gradient.weight
        assert (train - evaluation).norm() > 0.1 * train.norm()

    def test_training_draws_dropout_as_the_model_does(self):
        model, (images, labels) = network(train=True, dropout=0.5), batch(70)
        torch.manual_seed(3)
        gradient = capture(model, images, labels).gradient
        torch.manual_seed(3)
        assert_same(gradient, by_autograd(model, images, labels))

    def test_one_layer_in_training_mode(self):
        model, (images, labels) = network(), batch(70)
        model.norm.train()
        assert_same(capture(model, images, labels).gradient, by_autograd(model, images, labels))

    def test_batchnorm_without_running_statistics(self):
        model, (images, labels) = network(), batch(70)
        model.norm = nn.BatchNorm2d(4, track_running_stats=False).eval()
        assert_same(capture(model, images, labels).gradient, by_autograd(model, images, labels))

    @pytest.mark.parametrize("size", [70, 700])
    def test_memory_of_the_forward_pass_does_not_grow_with_the_batch(self, size):
        model, (images, labels) = network(), batch(size)
        seen = []
        model.conv.register_forward_hook(lambda _, inputs, output: seen.append(len(output)))
        capture(model, images, labels)
        assert sum(seen) == size
        assert max(seen) == 64


class TestPieces:
    @pytest.mark.parametrize("sizes", [[70], [1, 69], [30, 30, 10], [7] * 10])
    @pytest.mark.parametrize("options", LOSSES.values(), ids=LOSSES)
    def test_equal_the_whole(self, sizes, options):
        model, (images, labels) = network(dtype=torch.float64), batch(70, torch.float64)
        options = loss_options(options)
        pieces = zip(images.split(sizes), labels.split(sizes), strict=True)
        observation = capture(model, pieces, loss=Loss(**options))
        assert observation.batch_size == 70
        assert_same(observation.gradient, by_autograd(model, images, labels, **options))

    def test_of_a_data_loader(self):
        model, (images, labels) = network(), batch(50)
        data = torch.utils.data.TensorDataset(images, labels)
        loader = torch.utils.data.DataLoader(data, batch_size=16)
        assert_same(capture(model, loader).gradient, by_autograd(model, images, labels))

    @pytest.mark.parametrize("layer", ["norm", None])
    def test_not_in_training_mode(self, layer):
        model, pieces = network(), [batch(5)]
        (model.get_submodule(layer) if layer else model).train()
        with pytest.raises(InvalidObservation, match=r"call model\.eval\(\)"):
            capture(model, pieces)

    def test_bring_their_labels(self):
        images, labels = batch(5)
        with pytest.raises(InvalidObservation, match="leave out `labels`"):
            capture(network(), [(images, labels)], labels)

    def test_none(self):
        with pytest.raises(InvalidObservation, match="batch is empty"):
            capture(network(), [])

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        "pieces",
        [batch(2), [batch(2)[0]], [{"images": batch(2)[0], "labels": batch(2)[1]}], [(1, 2)]],
        ids=["a pair", "no labels", "dicts", "no tensors"],
    )
    def test_that_are_no_pairs(self, pieces):
        model = network()
        with pytest.raises(InvalidObservation, match=r"pairs \(inputs, labels\)"):
            capture(model, pieces)
        assert not model.fc._forward_hooks
