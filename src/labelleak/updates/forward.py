"""The exact gradient of the head by a forward pass alone."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from labelleak.errors import InvalidObservation
from labelleak.hooks import hooked
from labelleak.isolation import isolated
from labelleak.loss import Loss, by_pixel
from labelleak.observation import Head, HeadGradient, Observation
from labelleak.training import LocalTraining
from labelleak.updates.ends import Accepted
from labelleak.updates.heads import (
    find_head,
    head_candidates,
    layer_of,
    named_head,
    parameter_name,
    strip_wrappers,
)
from labelleak.updates.one_logit import loss_of_two, observed_of_two
from labelleak.updates.parameters import head_of, inside_wrappers, is_one_logit
from labelleak.updates.pixels import check_reads_pixels

Inputs = Tensor | Mapping[str, Tensor]

# Most samples that go through the model at once, most numbers that these hold, and most pixels of
# which the gradient is added up at once.
_CHUNK, _CHUNK_ENTRIES, _ROWS = 64, 1 << 22, 1 << 14


class _Pass(NamedTuple):
    """What one forward pass leaves at the head: a row per sample, or per token of every sample."""

    logits: Float[Tensor, "*samples classes"]
    embeddings: Float[Tensor, "*samples features"]


def capture(
    model: nn.Module,
    inputs: Inputs | Iterable[tuple[Inputs, Tensor]],
    labels: Shaped[Tensor, "batch *labels"] | None = None,
    *,
    loss: Loss | str = "cross_entropy",
    head: str | None = None,
) -> Observation:
    """Run the client's step here, and observe the gradient of its loss at the head.

    ``dW = R^T E / D`` needs the embeddings E and the loss's residuals R only, ``P - Y`` under a
    cross-entropy, so no backward pass is made. In evaluation mode the batch goes through in chunks,
    with memory that does not grow with it. In training mode it goes through at once, since
    BatchNorm uses its statistics; the model's own buffers are left as they were.

    Args:
        model: A network that maps inputs to logits (or an output with ``.logits``), on any device.
        inputs: The batch: one tensor, shape (batch, ...), or a dict of such tensors that the model
            takes as keyword arguments. Or an iterable of ``(inputs, labels)`` pieces of one batch,
            such as a DataLoader, where the batch does not fit in memory; evaluation mode only.
        labels: int64, shape (batch,), or of a loss with a sigmoid for each label zeros and ones,
            shape (batch, labels); maps of them behind a 1x1 convolution, shape (batch, height,
            width) or (batch, labels, height, width). None when `inputs` yields pieces.
        loss: The client's loss, or the name of its kind. A head of one logit, which needs one with
            a sigmoid, is read as two classes, 0 and 1. Labels in maps, and ``pixels`` of the loss,
            say that every pixel is a sample.
        head: Name of the final linear layer; None to find it.

    Returns:
        The observation of one step on that batch, with a copy of the head and its gradient in the
        head's dtype. The head's name is without a wrapper's prefix (DataParallel, compile, Opacus),
        and the model is the one inside it.

    Raises:
        AmbiguousHead: The head is not clear.
        InvalidObservation: The model's output is not the head's, or labels do not fit.

    Examples:
        >>> import torch, labelleak
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(20, 5)
        >>> inputs, labels = torch.rand(8, 20), torch.tensor([0, 0, 0, 1, 1, 3, 3, 4])
        >>> labelleak.restore(labelleak.capture(model, inputs, labels)).counts.tolist()
        [3, 2, 0, 2, 1]
    """
    loss = Loss.of(loss)
    if isinstance(labels, Tensor) and labels.ndim > 2 and loss.pixels is None:
        loss = replace(loss, pixels=0)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    layer = _layer(parameters, head, Accepted.by(loss))
    _check_not_shared(model, layer)
    found, one_logit = _copy_of_head(parameters, layer), is_one_logit(parameters, layer)
    if not one_logit:
        loss.check_classes(found.classes)
    if found.per_pixel:
        check_reads_pixels(model.get_submodule(layer), layer)
    sums = _Sums(found.weight, loss, one_logit=one_logit)
    pieces = _pieces(model, inputs, labels)
    with isolated(model):
        for piece, truth in pieces:
            seen = _forward(model, layer, found, piece, ends_in_sigmoid=loss.is_multi_label)
            sums.add(seen, truth.to(found.weight.device))
    if found.per_pixel:
        loss = replace(loss, pixels=sums.pixels)
    if not sums.samples:
        raise InvalidObservation("the batch is empty: there is no gradient to capture")
    fields: dict[str, Any] = {
        "loss": loss,
        "training": LocalTraining(batch_size=sums.samples, steps=1),
        "model": inside_wrappers(model),
        "input_shape": tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) else None,
    }
    if one_logit:
        fields = observed_of_two(found.name or "", **fields)
    return Observation(
        head=found,
        gradient=sums.gradient(has_bias=found.bias is not None),
        **fields,
    )


def _layer(parameters: Mapping[str, Tensor], head: str | None, accepted: Accepted) -> str:
    """The head's name: the one that was given, or is found; of copies the one that is trained."""
    shapes = {name: tuple(value.shape) for name, value in parameters.items()}
    if head is not None:
        return named_head(shapes, head, accepted=accepted)
    found = head_candidates(shapes, accepted=accepted)
    weights = {name: parameter_name(name, "weight") for name in found}
    trained = [name for name in found if parameters[weights[name]].requires_grad]
    if len({shapes[weight] for weight in weights.values()}) == 1 and len(trained) == 1:
        return trained[0]
    return found[0] if len(found) == 1 else find_head(shapes)


def _copy_of_head(parameters: Mapping[str, Tensor], layer: str) -> Head:
    """The head as it is now, by the name that it has without wrappers."""
    bare = strip_wrappers(list(parameters))
    names = [parameter_name(layer, kind) for kind in ("weight", "bias")]
    own = {bare[name]: parameters[name].detach().clone() for name in names if name in parameters}
    return head_of(own, layer_of(bare[names[0]]))


def _check_not_shared(model: nn.Module, layer: str) -> None:
    """Refuse a head whose weight another layer uses, too, as where a decoder is tied to a table."""
    holder = model.get_submodule(layer)
    for name, module in model.named_modules():
        own = module.named_parameters(recurse=False)
        if module is not holder and any(value is holder.weight for _, value in own):
            raise InvalidObservation(
                f"layer {layer!r} shares its weight with {name!r}: its gradient is the sum of what "
                "both do, and says nothing certain about labels"
            )


class _Sums:
    """Sums over the samples seen so far, float64, on the device of the head."""

    def __init__(
        self, weight: Float[Tensor, "classes features"], loss: Loss, *, one_logit: bool
    ) -> None:
        self._dtype, self._told = weight.dtype, loss
        self._one_logit, self._loss = one_logit, loss_of_two(loss) if one_logit else loss
        self._weight = torch.zeros(weight.shape, dtype=torch.float64, device=weight.device)
        self._bias = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
        self._divisor = 0.0
        self.samples, self.pixels = 0, 0

    def add(self, seen: _Pass, labels: Shaped[Tensor, "samples *labels"]) -> None:
        _check_one_each(labels, seen.logits)
        if seen.logits.ndim == 2:
            self._add_rows(*seen, labels)
            return
        # A sample after the other, so that there is no copy of all pixels.
        for logits, embeddings, own in zip(*seen, labels, strict=True):
            self.pixels = logits[0].numel()
            rows, targets = by_pixel(logits[None], own[None])
            vectors, _ = by_pixel(embeddings[None], own[None])
            for start in range(0, len(rows), _ROWS):
                part = slice(start, start + _ROWS)
                some = targets[part] if len(targets) == len(rows) else targets
                self._add_rows(rows[part], vectors[part], some)

    def _add_rows(self, logits: Tensor, embeddings: Tensor, labels: Tensor) -> None:
        """Add samples, or pixels, a row each."""
        logits = logits.double()
        outputs = 1 if self._one_logit else logits.shape[1]
        targets = self._told.check_targets(labels, len(logits), outputs)
        if self._one_logit and self._told.kind != "mse":
            targets = targets[:, 0].long()
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        residual = self._loss.residual(logits, targets)
        if residual.shape[1] < len(self._bias):
            residual = torch.cat([-residual, residual], dim=1)
        self._weight.addmm_(residual.T, embeddings.double())
        self._bias += residual.sum(dim=0)
        self._divisor += self._loss.divisor(targets)
        self.samples += self._loss.num_samples(targets)

    def gradient(self, *, has_bias: bool) -> HeadGradient:
        divisor = self._divisor if self._loss.averages else 1.0
        if not divisor:
            raise InvalidObservation("every target is left out: there is no gradient to capture")
        weight = (self._weight / divisor).to(self._dtype)
        bias = (self._bias / divisor).to(self._dtype) if has_bias else None
        return HeadGradient(weight, bias, zeros_are_sent=self._one_logit)


def _pieces(
    model: nn.Module, inputs: Inputs | Iterable[tuple[Inputs, Tensor]], labels: Tensor | None
) -> Iterator[tuple[Inputs, Tensor]]:
    whole = any(_mixes_samples(module) for module in model.modules())
    if labels is None:
        if isinstance(inputs, (Tensor, Mapping)):
            raise InvalidObservation("labels are missing: pass one label per sample")
        if whole:
            raise InvalidObservation(
                "a batch in pieces has no common BatchNorm statistics: call model.eval(), or pass "
                "the whole batch at once"
            )
        for item in inputs:
            if not (isinstance(item, (tuple, list)) and len(item) == 2) or not isinstance(
                item[1], Tensor
            ):
                raise InvalidObservation(
                    "a batch in pieces is an iterable of pairs (inputs, labels), and a whole batch "
                    "two arguments, inputs and labels"
                )
            yield item[0], item[1]
        return
    for what, given in (("inputs", inputs), ("labels", labels)):
        if hasattr(given, "__array__") and not isinstance(given, Tensor):
            raise InvalidObservation(
                f"{what} are a {type(given).__name__}: a tensor is needed (torch.as_tensor makes "
                "one)"
            )
    if not isinstance(inputs, (Tensor, Mapping)):
        raise InvalidObservation("an iterable of pieces brings its own labels: leave out `labels`")
    for name, value in inputs.items() if isinstance(inputs, Mapping) else [("inputs", inputs)]:
        if not isinstance(value, Tensor):
            raise InvalidObservation(f"input {name!r} is no tensor: leave out what is no sample")
        _check_one_each(labels, value)
    step = max(1, labels.shape[0] if whole else _chunk(inputs))
    for start in range(0, labels.shape[0], step):
        part = slice(start, start + step)
        if isinstance(inputs, Tensor):
            yield inputs[part], labels[part]
        else:
            yield {name: value[part] for name, value in inputs.items()}, labels[part]


def _chunk(inputs: Inputs) -> int:
    """How many samples go through the model at once."""
    if not isinstance(inputs, Tensor) or not len(inputs):
        return _CHUNK
    return min(_CHUNK, _CHUNK_ENTRIES // max(inputs[0].numel(), 1))


def _check_one_each(labels: Tensor, samples: Tensor) -> None:
    if labels.shape[:1] != samples.shape[:1]:
        raise InvalidObservation(
            f"labels of shape {tuple(labels.shape)} for samples of shape {tuple(samples.shape)}: "
            "one class index per sample is needed"
        )


def _mixes_samples(module: nn.Module) -> bool:
    """Whether a sample's output may depend on the others: BatchNorm without running statistics."""
    return module.training or (isinstance(module, _BatchNorm) and module.running_mean is None)


def _forward(
    model: nn.Module, name: str, head: Head, inputs: Inputs, *, ends_in_sigmoid: bool = False
) -> _Pass:
    output, seen = _run(model, name, inputs)
    logits = _logits(output)
    if seen.logits.ndim == 3 and logits is not None and logits.ndim == 2 and not head.per_pixel:
        seen = _of_one_token(model, name, inputs, logits, seen)
    if not all((value.ndim > 2) if head.per_pixel else (value.ndim == 2) for value in seen):
        raise InvalidObservation(
            f"layer {name!r} does not map one embedding per sample to one vector of logits"
        )
    if not torch.isfinite(seen.logits).all():
        raise InvalidObservation("the model puts out NaN or infinite logits: it is broken")
    after = torch.sigmoid if ends_in_sigmoid else _log_softmax
    if logits is None or not _same_predictions(logits, seen.logits, after):
        raise InvalidObservation(
            f"the model's output is not what layer {name!r} puts out: name the final linear "
            "layer with head=NAME"
        )
    if not _is_linear(head, seen):
        raise InvalidObservation(
            f"layer {name!r} does more than weight @ embedding + bias: its gradient says nothing "
            "certain about labels"
        )
    return seen


def _run(
    model: nn.Module, layer: str, inputs: Inputs, logits: Tensor | None = None
) -> tuple[Any, _Pass]:
    """The model's output, and what its head took in and put out, or shall seem to put out."""
    passages: list[tuple[Any, Any]] = []

    def note(_: nn.Module, entered: Any, left: Any) -> Tensor | None:
        passages.append((left, entered))
        return logits

    with hooked(model.get_submodule(layer), leaving=note):
        output = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    if len(passages) != 1:
        raise InvalidObservation(
            f"layer {layer!r} ran {len(passages)} times in one forward pass: a classification head "
            "runs once; name the right one with head=NAME"
        )
    if not all(isinstance(value, Tensor) for value in passages[0]):
        raise InvalidObservation(f"layer {layer!r} does not map a tensor to a tensor")
    return output, _Pass(*passages[0])


def _of_one_token(
    model: nn.Module, layer: str, inputs: Inputs, output: Tensor, seen: _Pass
) -> _Pass:
    """Embedding and logits of the token that the model goes by, as GPT-2 by the last one.

    Its head runs on every token of a sample, padding among them, and the logits of one are put out.
    """
    tokens = seen.logits.shape[1]
    if output.shape[1:] != seen.logits.shape[2:] or len(output) != len(seen.logits):
        return seen
    match = (seen.logits == output[:, None, :]).all(dim=2)
    if match.sum(dim=1).gt(1).any():
        # Tokens of the same logits: the model shows where it looks when logits are numbered.
        numbers = torch.arange(tokens, dtype=torch.float64, device=output.device)
        shown = _logits(
            _run(model, layer, inputs, numbers[None, :, None].expand_as(seen.logits))[0]
        )
        match &= numbers == (output if shown is None else shown)[:, :1]
    if not match.any(dim=1).all():
        return seen
    samples, token = torch.arange(len(match), device=match.device), match.int().argmax(dim=1)
    return _Pass(seen.logits[samples, token], seen.embeddings[samples, token])


def _is_linear(head: Head, seen: _Pass) -> bool:
    """Whether the head is what its parameters say, up to rounding; the first sample tells."""
    logits, embedding = (by_pixel(value[:1], value)[0] for value in seen)
    embedding = embedding[:_ROWS].to(head.weight)
    logits = logits[:_ROWS]
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    if len(embedding) != len(logits):
        return False
    if embedding.shape[1] != head.features or logits.shape[1] != head.classes:
        return False
    error = torch.nn.functional.linear(embedding, head.weight, head.bias) - logits
    scale = embedding.norm() * head.weight.norm(dim=1).max() + logits.abs().max()
    return bool((error.abs() <= torch.finfo(logits.dtype).eps ** 0.5 * scale).all())


def _logits(output: object) -> Tensor | None:
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif isinstance(output, (tuple, list)):
        output = getattr(output, "logits", output[0] if output else None)
    else:
        output = getattr(output, "logits", output)
    return output if isinstance(output, Tensor) else None


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, dim=1)


def _same_predictions(output: Tensor, logits: Tensor, after: Callable[[Tensor], Tensor]) -> bool:
    """Whether the output is the head's, as it is or followed by that."""
    if logits.shape[1] == 1 and output.shape == (len(logits), *logits.shape[2:]):
        output = output[:, None]
    if output.shape != logits.shape:
        return False
    if output is logits or torch.equal(output, logits):
        return True
    return torch.allclose(output, after(logits), rtol=1e-4, atol=1e-5)
