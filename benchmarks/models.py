"""Classifiers of transformers, peft and timm for real: the head that is read, and the counts.

    python benchmarks/models.py [--only NAME ...] [--output results/benchmark-models.json]

Needs transformers, peft and timm beside the package (`pip install transformers peft timm`); nothing
is downloaded: the networks are small ones with random weights. Each takes one step of SGD on 8
random samples in evaluation mode, and is observed by its gradients, by its weights before and
after, and by `capture`; those of peft also as an adapter beside the base model. The head's gradient
is compared with autograd's. `auto` then restores the counts. Seeds are fixed.
"""

import argparse
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import labelleak
from measuring import Row, load, write

SAMPLES, TOKENS, WORDS, PAD, RATE = 8, 12, 200, 0, 0.1
LIBRARIES = ("transformers", "peft", "timm", "torchvision")

# Sizes of the transformers, by what each configuration calls them.
_BERT: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "pad_token_id": PAD,
}
_LLAMA: dict[str, Any] = _BERT | {"num_key_value_heads": 2, "max_position_embeddings": 64}
_GPT2: dict[str, Any] = {
    "vocab_size": WORDS,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "pad_token_id": PAD,
}
_DISTIL: dict[str, Any] = {
    "vocab_size": WORDS,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 64,
}
_VIT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
}


class Case(NamedTuple):
    """A network: what makes it for a number of classes, its head, and the kind of its inputs."""

    make: Callable[[int], nn.Module]
    head: str
    inputs: str = "tokens"
    adapter: bool = False


def of_transformers(family: str, task: str = "Sequence", **sizes: Any) -> Callable[[int], Any]:
    """A classifier of transformers with random weights."""

    def make(classes: int) -> Any:
        import transformers

        config = getattr(transformers, f"{family}Config")(num_labels=classes, **sizes)
        config.problem_type = "single_label_classification"
        return getattr(transformers, f"{family}For{task}Classification")(config)

    return make


def with_lora(base: Callable[[int], Any]) -> Callable[[int], Any]:
    """The same with LoRA; peft keeps a copy of the head and trains another (`modules_to_save`)."""

    def make(classes: int) -> Any:
        import peft

        settings = peft.LoraConfig(
            task_type=peft.TaskType.SEQ_CLS, r=2, target_modules="all-linear"
        )
        return peft.get_peft_model(base(classes), settings)

    return make


def of_timm(name: str, **options: Any) -> Callable[[int], Any]:
    """A classifier of timm with random weights."""

    def make(classes: int) -> Any:
        import timm

        return timm.create_model(name, pretrained=False, num_classes=classes, **options)

    return make


_BERT_MODEL = of_transformers("Bert", **_BERT)
_ROBERTA_MODEL = of_transformers("Roberta", **_BERT)
_GPT2_MODEL = of_transformers("GPT2", **_GPT2)
_LLAMA_MODEL = of_transformers("Llama", **_LLAMA)
_TRAINED = "base_model.model.{}.modules_to_save.default"
CASES = {
    "BERT": Case(_BERT_MODEL, "classifier"),
    "RoBERTa": Case(_ROBERTA_MODEL, "classifier.out_proj"),
    "ELECTRA": Case(of_transformers("Electra", **_BERT), "classifier.out_proj"),
    "ALBERT": Case(of_transformers("Albert", embedding_size=16, **_BERT), "classifier"),
    "DistilBERT": Case(of_transformers("DistilBert", **_DISTIL), "classifier"),
    "GPT-2": Case(_GPT2_MODEL, "score"),
    "Llama": Case(_LLAMA_MODEL, "score"),
    "Mistral": Case(of_transformers("Mistral", **_LLAMA), "score"),
    "Qwen2": Case(of_transformers("Qwen2", **_LLAMA), "score"),
    "ViT": Case(of_transformers("ViT", "Image", **_VIT), "classifier", "pixel_values"),
    "BERT, LoRA": Case(with_lora(_BERT_MODEL), _TRAINED.format("classifier"), adapter=True),
    "RoBERTa, LoRA": Case(
        with_lora(_ROBERTA_MODEL), _TRAINED.format("classifier") + ".out_proj", adapter=True
    ),
    "GPT-2, LoRA": Case(with_lora(_GPT2_MODEL), _TRAINED.format("score"), adapter=True),
    "Llama, LoRA": Case(with_lora(_LLAMA_MODEL), _TRAINED.format("score"), adapter=True),
    "timm vit_tiny_patch16_224": Case(
        of_timm("vit_tiny_patch16_224", img_size=64, depth=2), "head", "images"
    ),
    "timm resnet18": Case(of_timm("resnet18"), "fc", "images"),
    "timm convnext_atto": Case(of_timm("convnext_atto"), "head.fc", "images"),
    "timm mobilenetv3_small_050": Case(of_timm("mobilenetv3_small_050"), "classifier", "images"),
    "timm efficientnet_b0": Case(of_timm("efficientnet_b0"), "classifier", "images"),
    "timm regnetx_002": Case(of_timm("regnetx_002"), "head.fc", "images"),
    "timm mixer_s32_224": Case(of_timm("mixer_s32_224", img_size=64), "head", "images"),
}


def make_torchvision_importable() -> None:
    """Declare the operators that a torchvision built for CUDA lacks beside a torch without it.

    timm imports torchvision, which asks for them when it is imported; no classifier calls them.
    """
    if torch.version.cuda is None:
        library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)


# An operator lives as long as the library that declares it.
_KEPT: list[Any] = []


def batch_of(kind: str, classes: int) -> tuple[Any, Tensor]:
    """Random inputs as the network takes them, and random labels."""
    random = torch.Generator().manual_seed(classes)
    labels = torch.randint(classes, (SAMPLES,), generator=random)
    if kind != "tokens":
        size = 32 if kind == "pixel_values" else 64
        images = torch.randn(SAMPLES, 3, size, size, generator=random)
        return ({kind: images} if kind == "pixel_values" else images), labels
    words = torch.randint(3, WORDS, (SAMPLES, TOKENS), generator=random)
    lengths = torch.randint(2, TOKENS + 1, (SAMPLES,), generator=random)
    mask = torch.arange(TOKENS) < lengths[:, None]
    return {"input_ids": words.where(mask, PAD), "attention_mask": mask.long()}, labels


def logits_of(model: nn.Module, inputs: Any) -> Tensor:
    """The output of the network."""
    output = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def difference(seen: labelleak.Observation, truth: Tensor) -> float:
    """Largest difference from autograd's gradient, relative to its largest entry."""
    apart = (seen.gradient.weight.double() - truth.double()).abs().max()
    return float(apart / truth.abs().max())


def measure(case: Case, classes: int) -> Row:
    """One network with so many classes."""
    torch.manual_seed(0)
    model = case.make(classes).eval()
    inputs, labels = batch_of(case.inputs, classes)
    before = state_of(model)
    base = base_state(case, classes) if case.adapter else None
    captured = labelleak.capture(model, inputs, labels)
    nn.functional.cross_entropy(logits_of(model, inputs), labels).backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    truth = gradients[f"{case.head}.weight"].clone()
    torch.optim.SGD(model.parameters(), lr=RATE).step()
    after = state_of(model)
    model.load_state_dict(before)
    by_gradients = labelleak.observe(model, gradients, batch_size=SAMPLES)
    told: dict[str, Any] = {"learning_rate": RATE, "batch_size": SAMPLES}
    observed = {
        "observe": by_gradients,
        "observe_update": labelleak.observe_update(model, before, after, **told),
        "capture": captured,
    }
    if base is not None:
        model.load_state_dict(after)
        observed["adapter"] = labelleak.observe_update(None, base, adapter_of(model), **told)
    found = labelleak.restore(by_gradients, time_limit=2.0)
    right = found.counts is not None and torch.equal(
        found.counts, torch.bincount(labels, minlength=classes)
    )
    return {
        "classes": classes,
        "features": by_gradients.head.features,
        "bias": by_gradients.has_bias,
        "head": {way: seen.head.name for way, seen in observed.items()},
        "head_right": all(
            seen.head.name == (case.head if way != "adapter" else plain(case.head))
            for way, seen in observed.items()
        ),
        "gradient_difference": {way: difference(seen, truth) for way, seen in observed.items()},
        "attack": found.attack,
        "counts_right": right,
        "certified": found.certified,
        "flags": [flag.name.lower() for flag in found.flags],
        "silent": not right and not found.unreliable,
    }


def plain(head: str) -> str:
    """The head's name in the base model."""
    return head.removeprefix("base_model.model.").replace(".modules_to_save.default", "")


def base_state(case: Case, classes: int) -> dict[str, Tensor]:
    """The state dict of the model that the adapter is put on; the same seed makes the same one."""
    torch.manual_seed(0)
    model: Any = case.make(classes)
    return state_of(model.unload())


def adapter_of(model: Any) -> dict[str, Tensor]:
    """What a file of the adapter holds."""
    import peft

    state: dict[str, Tensor] = peft.get_peft_model_state_dict(model)
    return state


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    make_torchvision_importable()
    before, rows = load(), []
    for name in options.only:
        for classes in (2, 5):
            row = {"model": name, **measure(CASES[name], classes)}
            rows.append(row)
            worst = max(row["gradient_difference"].values())
            print(
                f"{name:28} C = {classes}  head {row['head']['observe']:45} "
                f"{'right' if row['head_right'] else 'WRONG'}  gradient {worst:.0e}  "
                f"counts {'right' if row['counts_right'] else 'wrong'} {' '.join(row['flags'])}",
                flush=True,
            )
    versions = {name: version(name) for name in LIBRARIES}
    write(options.output, __doc__, before, 1, versions=versions, rows=rows)


if __name__ == "__main__":
    main()
