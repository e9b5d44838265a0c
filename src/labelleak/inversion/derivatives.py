"""Convolution and batch normalization with faster second derivatives.

The derivative of the gradients' distance by the images is a second derivative. For a convolution
PyTorch computes it with the output's gradient as a filter as large as the image. For batch
normalization it allows for statistics that depend on the batch, as in training. In evaluation mode
both second derivatives are plain convolutions and products per channel.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import batch_norm, conv2d
from torch.overrides import TorchFunctionMode

_Size = int | Sequence[int]


class SecondDerivatives(TorchFunctionMode):
    """Context in which `conv2d` and `batch_norm` in evaluation mode have fast second derivatives.

    It is made for the gradient by the parameters, differentiated once more by images or labels. The
    first pass needs ``create_graph=True``; the second must go without. Second derivatives by
    parameters are not computed. A layer whose weight is itself computed (and may depend on the
    images) is therefore left to PyTorch, as is every call with an argument not supported here.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call the faster function where there is one, else PyTorch's own."""
        replace = _REPLACEMENTS.get(func)
        result = None if replace is None else replace(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if result is None else result


def _convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Size = 1,
    padding: _Size | str = 0,
    dilation: _Size = 1,
    groups: int = 1,
) -> Tensor | None:
    if isinstance(padding, str) or input.ndim != 4:
        return None
    if not _simple(input, weight, bias):
        return None
    sizes = [_pair(size) for size in (stride, padding, dilation)]
    result: Tensor = _apply(_Convolution, input, weight, bias, (*sizes, groups))
    return result


def _normalize(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    if training or running_mean is None or running_var is None or weight is None or bias is None:
        return None
    if not _simple(input, weight, bias, running_mean, running_var):
        return None
    if running_mean.requires_grad or running_var.requires_grad:
        return None
    result: Tensor = _apply(_Normalization, input, weight, bias, running_mean, running_var, eps)
    return result


def _simple(input: Tensor, *others: Tensor | None) -> bool:
    """Whether nothing but the input depends on the images, and all tensors have one dtype."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(input.device.type):
        return False
    return all(t is None or (t.is_leaf and t.dtype == input.dtype) for t in others)


def _pair(size: _Size) -> list[int]:
    values = [size] if isinstance(size, int) else list(size)
    return values * 2 if len(values) == 1 else values


_REPLACEMENTS: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    conv2d: _convolve,
    batch_norm: _normalize,
}


class _Convolution(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, sizes: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sizes, ctx.has_bias = sizes, bias is not None
        return conv2d(x, weight, bias, *sizes)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        # The second pass needs no derivatives by parameters.
        wanted = [ctx.needs_input_grad[0], False, False]
        if torch.is_grad_enabled():
            wanted = [*ctx.needs_input_grad[:2], ctx.has_bias and ctx.needs_input_grad[2]]
        found = _apply(_ConvolutionBackward, upstream[0], x, weight, ctx.sizes, wanted)
        return (*found, None)


class _ConvolutionBackward(Function):
    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, sizes: Any, wanted: list[bool]
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(g, x, weight)
        ctx.sizes = sizes
        ctx.set_materialize_grads(False)
        return _convolution_backward(g, x, weight, sizes, wanted)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        g, x, weight = ctx.saved_tensors
        by_x, by_weight, by_bias = upstream
        parts, from_x = [], None
        if by_x is not None:
            parts.append(conv2d(by_x, weight, None, *ctx.sizes))
        if by_weight is not None:
            parts.append(conv2d(x, by_weight, by_bias, *ctx.sizes))
            from_x = _convolution_backward(g, x, by_weight, ctx.sizes, [True, False, False])[0]
        elif by_bias is not None:
            parts.append(by_bias[:, None, None].expand_as(g))
        from_g = parts[0] if len(parts) == 1 else torch.add(*parts) if parts else None
        return from_g, from_x, None, None, None


def _convolution_backward(
    g: Tensor, x: Tensor, weight: Tensor, sizes: Any, wanted: list[bool]
) -> tuple[Tensor | None, ...]:
    *sizes, groups = sizes
    outputs = [weight.shape[0]] if wanted[2] else None
    found: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(
        g, x, weight, outputs, *sizes, False, [0, 0], groups, wanted
    )
    return found


class _Normalization(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float
    ) -> Tensor:
        inverse = torch.rsqrt(var + eps)
        ctx.save_for_backward(x, weight, mean, inverse)
        return batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            _, weight, _, inverse = ctx.saved_tensors
            return upstream[0] * _per_channel(weight * inverse, upstream[0]), *[None] * 5
        found = _apply(_NormalizationBackward, upstream[0], *ctx.saved_tensors)
        return *found, None, None, None


class _NormalizationBackward(Function):
    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(g, x, weight, mean, inverse)
        ctx.set_materialize_grads(False)
        other = [dimension for dimension in range(g.ndim) if dimension != 1]
        sums = g.sum(other)
        return (
            g * _per_channel(weight * inverse, g),
            ((g * x).sum(other) - mean * sums) * inverse,
            sums,
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        g, x, weight, mean, inverse = ctx.saved_tensors
        by_x, by_weight, by_bias = upstream
        from_g, from_x = None, None
        constant = by_bias
        if by_weight is not None:
            slope = by_weight * inverse
            constant = (0.0 if by_bias is None else by_bias) - mean * slope
            from_g = torch.addcmul(_per_channel(constant, x), x, _per_channel(slope, x))
            from_x = g * _per_channel(slope, g)
        elif constant is not None:
            from_g = _per_channel(constant, g).expand_as(g)
        if by_x is not None:
            scale = _per_channel(weight * inverse, g)
            from_g = by_x * scale if from_g is None else torch.addcmul(from_g, by_x, scale)
        return from_g, from_x, None, None, None


def _apply(function: type[Function], *arguments: Any) -> Any:
    return function.apply(*arguments)  # type: ignore[no-untyped-call]


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 2))
