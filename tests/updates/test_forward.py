from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from labelleak import capture
from labelleak.errors import AmbiguousHead, InvalidObservation
from labelleak.lab import networks
from labelleak.loss import Loss

CLASSES = 7
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


class Net(nn.Module):
    """Convolution, BatchNorm, dropout (off by default), and a head."""

    def __init__(self, *, bias=True, dropout=0.0):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(4 * 4 * 4, CLASSES, bias=bias)

    def embed(self, images):
        return self.dropout(self.norm(self.conv(images)).relu()).flatten(1)

    def forward(self, images):
        return self.fc(self.embed(images))


def batch(size, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 2, 6, 6, generator=generator, dtype=torch.float64).to(dtype)
    return images, torch.randint(CLASSES, (size,), generator=generator)


def network(cls=Net, *, dtype=torch.float32, train=False, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = cls(**options).to(dtype)
        if hasattr(model, "norm"):
            # Statistics as after some training.
            model.norm.running_mean.normal_()
            model.norm.running_var.uniform_(0.5, 2.0)
    return model.train(train)


def loss_options(options):
    options = dict(options)
    if options.get("class_weights"):
        generator = torch.Generator().manual_seed(2)
        options["class_weights"] = torch.rand(CLASSES, generator=generator) + 0.1
    return options


def by_autograd(model, images, labels, *, class_weights=None, **options):
    """The head's gradient by a backward pass of a copy of the model."""
    model = deepcopy(model)
    if class_weights is not None:
        options["weight"] = class_weights.to(images.dtype)
    loss = nn.CrossEntropyLoss(**options)(model(images), labels)
    return torch.autograd.grad(loss, list(model.fc.parameters()))


def assert_same(gradient, expected, tolerance):
    found = [gradient.weight] + ([] if gradient.bias is None else [gradient.bias])
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        assert one.dtype == two.dtype
        assert (one - two).norm() <= tolerance * two.norm()


TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


class TestEqualsAutograd:
    @pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
    @pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
    @pytest.mark.parametrize("options", LOSSES.values(), ids=LOSSES)
    def test_losses(self, options, train, dtype):
        model, (images, labels) = network(train=train, dtype=dtype), batch(70, dtype)
        options = loss_options(options)
        observation = capture(model, images, labels, loss=Loss(**options))
        assert_same(
            observation.gradient,
            by_autograd(model, images, labels, **options),
            TOLERANCE[dtype],
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
        assert_same(observation.gradient, by_autograd(model, images, labels), 1e-12)

    def test_without_bias(self):
        model, (images, labels) = network(bias=False), batch(9)
        observation = capture(model, images, labels)
        assert observation.head.bias is None
        assert_same(observation.gradient, by_autograd(model, images, labels), 1e-6)

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
        assert_same(gradient, torch.autograd.grad(loss, list(head.parameters())), 1e-6)

    def test_confident_predictions(self):
        model, (images, labels) = network(), batch(20)
        with torch.no_grad():
            model.fc.weight.mul_(100.0)
        assert_same(
            capture(model, images, labels).gradient, by_autograd(model, images, labels), 1e-6
        )

    def test_bfloat16(self):
        model, (images, labels) = network(dtype=torch.bfloat16), batch(24, torch.bfloat16)
        observation = capture(model, images, labels)
        assert observation.gradient.weight.dtype == torch.bfloat16
        assert observation.head.bias.dtype == torch.bfloat16
        assert_same(observation.gradient, by_autograd(model, images, labels), 0.02)

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
        found = capture(model, images, labels.to(dtype)).gradient.weight
        assert torch.equal(found, capture(model, images, labels).gradient.weight)


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
        assert_same(gradient, by_autograd(model, images, labels), 1e-6)


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
        assert_same(gradient, by_autograd(model, images, labels), 1e-6)

    def test_one_layer_in_training_mode(self):
        model, (images, labels) = network(), batch(70)
        model.norm.train()
        assert_same(
            capture(model, images, labels).gradient, by_autograd(model, images, labels), 1e-6
        )

    def test_batchnorm_without_running_statistics(self):
        model, (images, labels) = network(), batch(70)
        model.norm = nn.BatchNorm2d(4, track_running_stats=False).eval()
        assert_same(
            capture(model, images, labels).gradient, by_autograd(model, images, labels), 1e-6
        )

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
        assert_same(observation.gradient, by_autograd(model, images, labels, **options), 1e-12)

    def test_of_a_data_loader(self):
        model, (images, labels) = network(), batch(50)
        data = torch.utils.data.TensorDataset(images, labels)
        loader = torch.utils.data.DataLoader(data, batch_size=16)
        assert_same(capture(model, loader).gradient, by_autograd(model, images, labels), 1e-6)

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


class Masked(nn.Module):
    """As the classifiers of transformers: keyword arguments in, an object with logits out."""

    def __init__(self, wrap):
        super().__init__()
        self.embeddings = nn.Embedding(50, 12)
        self.classifier = nn.Linear(12, CLASSES)
        self.wrap = wrap

    def forward(self, input_ids, attention_mask):
        weights = attention_mask / attention_mask.sum(dim=1, keepdim=True)
        pooled = (self.embeddings(input_ids) * weights[..., None]).sum(dim=1)
        return self.wrap(self.classifier(pooled))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: logits,
        lambda logits: {"loss": None, "logits": logits},
        lambda logits: SimpleNamespace(loss=None, logits=logits),
        lambda logits: (logits, "more"),
        lambda logits: [logits],
    ],
    ids=["tensor", "dict", "object", "tuple", "list"],
)
def test_inputs_and_outputs_as_of_transformers(wrap):
    model = network(Masked, wrap=wrap)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "input_ids": torch.randint(50, (70, 9), generator=generator),
        "attention_mask": torch.randint(1, 3, (70, 9), generator=generator).float(),
    }
    labels = torch.randint(CLASSES, (70,), generator=generator)
    gradient = capture(model, inputs, labels).gradient
    model.wrap = lambda logits: logits
    loss = nn.CrossEntropyLoss()(model(**inputs), labels)
    expected = torch.autograd.grad(loss, list(model.classifier.parameters()))
    assert_same(gradient, expected, 1e-6)


def with_output(change, *, keyword=False):
    class Changed(Net):
        def forward(self, images):
            embeddings = self.embed(images)
            return change(self.fc(input=embeddings) if keyword else self.fc(embeddings))

    return network(Changed)


def test_a_log_softmax_after_the_head():
    model, (images, labels) = with_output(lambda logits: F.log_softmax(logits, dim=1)), batch(9)
    gradient = capture(model, images, labels).gradient
    loss = F.nll_loss(model(images), labels)
    assert_same(gradient, torch.autograd.grad(loss, list(model.fc.parameters())), 1e-6)


def test_a_head_that_is_called_by_keyword():
    model, (images, labels) = with_output(lambda logits: logits, keyword=True), batch(9)
    assert_same(capture(model, images, labels).gradient, by_autograd(model, images, labels), 1e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda logits: logits.softmax(dim=1),
        lambda logits: 2.0 * logits,
        lambda logits: logits[:, :-1],
        lambda logits: logits.mean(),
        lambda logits: logits.relu(),
        lambda _: None,
        lambda _: (),
        lambda _: {"scores": 1},
        lambda logits: {"logits": logits + 1.0},
        lambda logits: logits.log_softmax(dim=0),
    ],
)
def test_an_output_that_is_not_the_heads(change):
    images, labels = batch(9)
    with pytest.raises(InvalidObservation, match="output is not what layer 'fc' puts out"):
        capture(with_output(change), images, labels)


def test_a_hidden_layer_is_no_head():
    model = networks.build("fcn-3", classes=10, image_shape=(1, 4, 4))
    with pytest.raises(InvalidObservation, match=r"output is not what layer 'hidden\.2' puts out"):
        capture(model, torch.rand(3, 1, 4, 4), torch.arange(3), head="hidden.2")


def test_no_such_head():
    with pytest.raises(AmbiguousHead, match="'top' is not among the tensors"):
        capture(network(), *batch(3), head="top")


def test_a_model_without_parameters():
    with pytest.raises(AmbiguousHead, match="among 0 tensors"):
        capture(nn.Flatten(), *batch(3))


@pytest.mark.parametrize("calls", [0, 2])
def test_a_head_that_runs_never_or_twice(calls):
    class Repeated(Net):
        def forward(self, images):
            embeddings = self.embed(images)
            if not calls:
                return F.linear(embeddings, self.fc.weight, self.fc.bias)
            return sum(self.fc(embeddings) for _ in range(calls)) / calls

    with pytest.raises(InvalidObservation, match=f"ran {calls} times"):
        capture(network(Repeated), *batch(9))


def test_logits_of_a_sequence():
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.embeddings = nn.Embedding(50, 12)
            self.score = nn.Linear(12, CLASSES, bias=False)

        def forward(self, tokens):
            return self.score(self.embeddings(tokens))

    tokens, labels = torch.arange(10).reshape(5, 2), torch.arange(5)
    with pytest.raises(InvalidObservation, match="one embedding per sample"):
        capture(Sequence(), tokens, labels)


class Tied(nn.Module):
    """As language models do, which predict by the table that they look tokens up in."""

    def __init__(self, *, table_first):
        super().__init__()
        for name in ("table", "decoder") if table_first else ("decoder", "table"):
            layer = nn.Embedding(CLASSES, 12) if name == "table" else nn.Linear(12, CLASSES)
            self.add_module(name, layer)
        self.decoder.weight = self.table.weight

    def forward(self, tokens):
        return self.decoder(self.table(tokens).mean(dim=1))


@pytest.mark.parametrize("table_first", [True, False])
def test_a_head_that_shares_its_weight(table_first):
    tokens, labels = torch.arange(6).reshape(3, 2), torch.arange(3)
    model = Tied(table_first=table_first)
    with pytest.raises((InvalidObservation, AmbiguousHead), match=r"'table'|among the tensors"):
        capture(model, tokens, labels, head="decoder")
    if not table_first:
        with pytest.raises(InvalidObservation, match="'decoder' shares its weight with 'table'"):
            capture(model, tokens, labels)


def test_a_head_that_is_frozen():
    """As in a model that was loaded for inference; what a client would compute is asked for."""
    model, (images, labels) = network(), batch(9)
    expected = by_autograd(model, images, labels)
    assert_same(capture(model.requires_grad_(False), images, labels).gradient, expected, 1e-6)


def test_a_head_with_an_argument_of_another_name():
    class Other(nn.Linear):
        def forward(self, features):
            return super().forward(features)

    class Keyword(Net):
        def __init__(self):
            super().__init__()
            self.fc = Other(4 * 4 * 4, CLASSES)

        def forward(self, images):
            return self.fc(features=self.embed(images))

    model, (images, labels) = network(Keyword), batch(9)
    assert_same(capture(model, images, labels).gradient, by_autograd(model, images, labels), 1e-6)


def test_a_head_that_is_not_linear():
    class Cosine(nn.Linear):
        def forward(self, input):
            return F.linear(F.normalize(input), F.normalize(self.weight))

    model = network()
    model.fc = Cosine(4 * 4 * 4, CLASSES, bias=False)
    with pytest.raises(InvalidObservation, match=r"does more than weight @ embedding \+ bias"):
        capture(model, *batch(9))


def test_a_hook_that_changes_the_logits():
    model = network()
    model.fc.register_forward_hook(lambda _module, _inputs, output: 3.0 * output)
    with pytest.raises(InvalidObservation, match=r"does more than weight @ embedding \+ bias"):
        capture(model, *batch(9))


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


def test_a_wrapped_model():
    model, (images, labels) = network(), batch(9)
    observation = capture(nn.DataParallel(model), images, labels)
    assert observation.head.name == "fc"
    assert observation.model is model
    assert_same(observation.gradient, by_autograd(model, images, labels), 1e-6)


def test_a_single_layer():
    images, labels = batch(9)
    model = nn.Linear(72, CLASSES)
    gradient = capture(model, images.flatten(1), labels).gradient
    loss = nn.CrossEntropyLoss()(model(images.flatten(1)), labels)
    assert_same(gradient, torch.autograd.grad(loss, list(model.parameters())), 1e-6)
