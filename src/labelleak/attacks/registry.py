"""What an attack is, and the table of all attacks by name."""

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import wraps
from inspect import signature
from types import MappingProxyType
from typing import Any, TypeVar, cast

from labelleak.errors import BrokenPlugin, MissingKnowledge
from labelleak.loss import Kind
from labelleak.observation import Observation
from labelleak.plugins import Plugin, entry_points, load_object, package_of, source_hash
from labelleak.restoration import Restoration


class Need(Enum):
    """Something an attack cannot do without; the value says how to provide it.

    Examples:
        >>> import labelleak
        >>> from labelleak.attacks import Need
        >>> [need.name for need in labelleak.list_attacks()["ilrg"].needs]
        ['WEIGHT', 'BIAS']
    """

    WEIGHT = "the gradient of the final layer's weight"
    BIAS = "the final layer's bias and its gradient"
    BATCH_SIZE = "the batch size (batch_size=K, on the command line --batch-size K)"
    PLAIN_LOSS = "a plain cross-entropy loss: no label smoothing, no class weights"
    ONE_SAMPLE = "a batch of one sample (batch_size=1)"
    MODEL = "the whole model (ll.observe takes it; on the command line --model MODULE:FUNCTION)"
    GRADIENTS = "the gradients of the whole model (gradients=..., as ll.observe takes them)"
    INPUT_SHAPE = "the shape of one input (input_shape=(3, 32, 32), say), or auxiliary data"
    AUXILIARY = "auxiliary data (auxiliary=ll.Auxiliary(inputs, labels); --auxiliary FILE)"
    AFTER = "the client's weights after its local steps (ll.observe_update; --learning-rate)"
    LEARNING_RATES = "the learning rates of the local steps (learning_rate=; --learning-rate)"

    def is_met(self, observation: Observation) -> bool:
        """Whether the observation holds it."""
        return _MET[self](observation)


_MET: dict[Need, Callable[[Observation], bool]] = {
    Need.WEIGHT: lambda seen: seen.gradient.has_weight,
    Need.BIAS: lambda seen: seen.has_bias,
    Need.BATCH_SIZE: lambda seen: seen.batch_size is not None,
    Need.PLAIN_LOSS: lambda seen: seen.loss.is_plain,
    Need.ONE_SAMPLE: lambda seen: seen.num_instances == 1,
    Need.MODEL: lambda seen: seen.model is not None,
    Need.GRADIENTS: lambda seen: seen.gradients is not None,
    # No made-up number is a token.
    Need.INPUT_SHAPE: lambda seen: (
        seen.input_shape is not None
        or (seen.auxiliary is not None and seen.auxiliary.inputs.is_floating_point())
    ),
    Need.AUXILIARY: lambda seen: seen.auxiliary is not None,
    Need.AFTER: lambda seen: seen.after is not None,
    Need.LEARNING_RATES: lambda seen: seen.training.step_sizes is not None,
}


class Gives(Enum):
    """What an attack concludes.

    Examples:
        >>> from labelleak.attacks import Gives
        >>> Gives.SET.value
        'set'
    """

    SET = "set"
    COUNTS = "counts"
    EMBEDDINGS = "class embeddings"
    PROBABILITIES = "class probabilities"


RuleFunction = TypeVar("RuleFunction", bound=Callable[..., Restoration])


@dataclass(frozen=True)
class Attack:
    """One registered attack.

    Attributes:
        name: Name to ask for it by.
        title: Name in the literature.
        needs: What the observation must hold.
        uses: What else it makes use of where the observation holds it.
        gives: What the restoration holds.
        assumes: What must be true of the network or the batch for the result to be right.
        reference: Paper and place in it.
        models_steps: Whether it models several local steps, and not one step on all their samples.
        models_optimizer: Whether it models optimizers that are not SGD.
        rule: The function that computes it; hyper-parameters are its keyword arguments.
        losses: Kinds of loss that it holds for.
        pixels: Whether it holds for a 1x1 convolution, where every pixel is a sample.
        package: ``labelleak``; of another package its name and version, or the name of the module.

    Examples:
        >>> import labelleak
        >>> attack = labelleak.list_attacks()["soft-label"]
        >>> attack.name, [given.value for given in attack.gives]
        ('soft-label', ['counts', 'class embeddings'])
    """

    name: str
    title: str
    needs: tuple[Need, ...]
    uses: tuple[Need, ...]
    gives: tuple[Gives, ...]
    assumes: str
    reference: str
    models_steps: bool
    models_optimizer: bool
    rule: Callable[..., Restoration]
    losses: tuple[Kind, ...] = ("cross_entropy",)
    pixels: bool = False
    package: str = "labelleak"

    @property
    def plugin(self) -> Plugin | None:
        """Where it comes from; None for an attack of labelleak."""
        if self.package == "labelleak":
            return None
        return Plugin(self.name, self.package, self.rule.__module__, self.rule)

    def missing(self, observation: Observation) -> tuple[Need, ...]:
        """The needs that the observation does not meet, in the order of `needs`."""
        return tuple(need for need in self.needs if not need.is_met(observation))


_log = logging.getLogger(__name__)

_ATTACKS: dict[str, Attack] = {}
# What the attack's module was loaded by; a module that is loaded again has another.
_SPECS: dict[str, object] = {}
# Why an entry point gave no attack, by its name.
_BROKEN: dict[str, str] = {}
# The order in which lists show attacks: the iLRG paper's own comparison, later attacks by year, and
# those of labelleak. An attack that is not named here comes last.
_ORDER = (
    "ilrg", "rlg", "gradinversion", "idlg",
    "zlg", "zlg-plus", "llg", "llg-star", "llg-plus", "dimitrov", "e2egi", "llbg", "llbg-aux",
    "ebi", "soft-label", "rlu", "decaf",
    "exact", "virtual", "synthetic", "virtual-batches", "likelihood", "calibrated", "pooled",
    "damped", "mbi",
)  # fmt: skip


def register(
    name: str,
    *,
    title: str,
    needs: tuple[Need, ...] = (),
    uses: tuple[Need, ...] = (),
    gives: tuple[Gives, ...],
    assumes: str,
    reference: str,
    models_steps: bool = False,
    models_optimizer: bool = False,
    losses: tuple[Kind, ...] = ("cross_entropy",),
    pixels: bool = False,
) -> Callable[[RuleFunction], RuleFunction]:
    """Enter a rule in the table of attacks, which signs its restorations with the name.

    Args:
        name: Name of the attack, new in the table.
        title: Name in the literature.
        needs: What the observation must hold.
        uses: What else it makes use of where the observation holds it.
        gives: What the restoration holds.
        assumes: What must be true of the network or the batch for the result to be right.
        reference: Paper and place in it.
        models_steps: Whether it models several local steps.
        models_optimizer: Whether it models optimizers that are not SGD.
        losses: Kinds of loss that it holds for; under others it is refused.
        pixels: Whether it holds for a 1x1 convolution; if not, it is refused there.

    Returns:
        A decorator for the rule: a function of an observation, with hyper-parameters as keywords.

    Raises:
        ValueError: There is an attack of that name, or it is no name. A module that is loaded
            again, and a notebook, replace their own.

    Examples:
        >>> from labelleak import Restoration
        >>> from labelleak.attacks import Gives, Need, register
        >>> @register(
        ...     "the-likeliest",
        ...     title="The class whose bias falls most",
        ...     needs=(Need.BIAS,),
        ...     gives=(Gives.SET,),
        ...     assumes="a batch of one class",
        ...     reference="an example",
        ... )
        ... def the_likeliest(observation):
        ...     bias = observation.gradient.bias
        ...     return Restoration(present=bias == bias.min())
    """
    if name == "auto" or ":" in name:
        raise ValueError(f"an attack cannot be named {name!r}")

    def enter(rule: RuleFunction) -> RuleFunction:
        if name in _ATTACKS and not _is_replaced(name, rule.__module__):
            raise ValueError(f"an attack named {name!r} is registered already")
        module = rule.__module__
        is_own = module.partition(".")[0] == "labelleak"
        if not is_own and getattr(sys.modules[module], "__spec__", None) is not None:
            source_hash(sys.modules[module])  # of the file as it is now

        @wraps(rule)
        def signed(*arguments: Any, **hyper_parameters: Any) -> Restoration:
            return replace(rule(*arguments, **hyper_parameters), attack=name)

        _ATTACKS[name] = Attack(
            name,
            title,
            needs,
            uses,
            gives,
            assumes,
            reference,
            models_steps,
            models_optimizer,
            signed,
            losses,
            pixels,
            "labelleak" if is_own else package_of(module),
        )
        _SPECS[name] = getattr(sys.modules[module], "__spec__", None)
        return cast(RuleFunction, signed)

    return enter


def _is_replaced(name: str, module: str) -> bool:
    """Whether the attack's own module is being loaded again, or is a notebook or a script."""
    if _ATTACKS[name].rule.__module__ != module:
        return False
    spec = getattr(sys.modules[module], "__spec__", None)
    return module == "__main__" or spec is not _SPECS.get(name)


def list_attacks() -> Mapping[str, Attack]:
    """All attacks by name, those of the literature first, of other packages last; read-only.

    The entry points of other packages in the group ``labelleak.attacks`` are loaded. One that is
    broken is left out, with a warning in the log.

    Examples:
        >>> import labelleak
        >>> attacks = labelleak.list_attacks()
        >>> attacks["ilrg"].title
        'iLRG (instance-wise label restoration)'
        >>> [need.name for need in attacks["mbi"].needs]
        ['BIAS', 'BATCH_SIZE', 'PLAIN_LOSS']
    """
    _enter_plugins()
    places = {name: place for place, name in enumerate(_ORDER)}
    names = sorted(_ATTACKS, key=lambda name: places.get(name, len(places)))
    return MappingProxyType({name: _ATTACKS[name] for name in names})


def find_attack(name: str) -> Attack:
    """The attack of that name; other packages are loaded only where labelleak has none.

    Args:
        name: Registered name.

    Returns:
        Its entry in the table.

    Raises:
        ValueError: There is none; the message lists all, and says why a plug-in of that name is
            not there.
    """
    if name not in _ATTACKS:
        _enter_plugins()
    if name not in _ATTACKS:
        why = f"; {_BROKEN[name]}" if name in _BROKEN else ""
        known = ", ".join(list_attacks())
        raise ValueError(f"no attack named {name!r}: choose auto, {known}{why}")
    return _ATTACKS[name]


def attack_at(reference: str) -> Attack:
    """The attack that ``module:name`` names; this imports the module, which runs its code.

    Args:
        reference: Dotted name of a module, a colon, and the registered function in it.

    Returns:
        Its entry in the table.

    Raises:
        BrokenPlugin: It cannot be imported, or is not registered.
    """
    target = load_object(reference, "attack")
    for attack in _ATTACKS.values():
        if attack.rule is target:
            return attack
    raise BrokenPlugin(
        f"attack {reference!r} is not registered: put @register(...) of labelleak.attacks above it"
    )


def _enter_plugins() -> None:
    """Load the entry points that have not been, each of which registers its attacks."""
    for entry in entry_points("attacks").values():
        if entry.name in _BROKEN or _is_entered(entry.name, entry.package):
            continue
        before = dict(_ATTACKS)
        try:
            entry.load()
            if entry.name not in _ATTACKS:
                what = f"attack {entry.name!r} of the package {entry.package}"
                raise BrokenPlugin(f"{what}: {entry.value} registers no attack of that name")
        except BrokenPlugin as error:
            _ATTACKS.clear()
            _ATTACKS.update(before)
            _BROKEN[entry.name] = str(error)
            _log.warning("labelleak: left out: %s", error)


def _is_entered(name: str, package: str) -> bool:
    return name in _ATTACKS and _ATTACKS[name].package == package


def run_attack(observation: Observation, name: str, **hyper_parameters: object) -> Restoration:
    """Run one attack of the table.

    Args:
        observation: What the server sees.
        name: Registered name.
        **hyper_parameters: Keyword arguments of the attack.

    Returns:
        What the attack restored.

    Raises:
        MissingKnowledge: The observation lacks what the attack needs, or the attack does not hold
            for its loss.
        ValueError: No attack of that name, or a hyper-parameter it does not have.

    Examples:
        >>> import torch, labelleak
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(20, 5)
        >>> inputs, labels = torch.rand(8, 20), torch.tensor([0, 0, 0, 1, 1, 3, 3, 4])
        >>> from labelleak.attacks.registry import run_attack
        >>> run_attack(labelleak.capture(model, inputs, labels), "pooled").counts.tolist()
        [3, 2, 0, 2, 1]
    """
    entry = find_attack(name)
    _check_holds(observation, entry)
    missing = entry.missing(observation)
    if missing:
        texts = " and ".join(need.value for need in missing)
        raise MissingKnowledge(f"attack {name!r} needs {texts}")
    try:
        signature(entry.rule).bind(observation, **hyper_parameters)
    except TypeError as error:
        raise ValueError(f"attack {name!r}: {error}") from None
    return entry.rule(observation, **hyper_parameters)


def _check_holds(observation: Observation, entry: Attack) -> None:
    """Refuse an attack under a loss, or for a head, that it does not hold for."""
    kind, pixels = observation.loss.kind, observation.head.per_pixel

    def holds(one: Attack) -> bool:
        return kind in one.losses and (one.pixels or not pixels)

    if not holds(entry):
        able = ", ".join(["auto", *(one.name for one in _ATTACKS.values() if holds(one))])
        what = "a head of pixels" if kind in entry.losses else f"the loss {kind!r}"
        raise MissingKnowledge(f"attack {entry.name!r} does not hold for {what}: choose {able}")


def attempt_attack(
    observation: Observation, name: str, **hyper_parameters: object
) -> Restoration | None:
    """Run a registered attack; None where the observation lacks what it needs.

    Args:
        observation: What the server sees.
        name: Registered name of the attack.
        **hyper_parameters: Keyword arguments of the attack.
    """
    try:
        return run_attack(observation, name, **hyper_parameters)
    except MissingKnowledge:
        return None
