"""What to do about each flag of an audit, in one sentence, and by which options."""

from labelleak.restoration import Flag

REMEDIES: dict[Flag, str] = {
    Flag.SUMS_NOT_ZERO: "audit the plain update as well; if this one is meant to be treated, judge "
    "it by epsilon, and check otherwise that the loss, the optimizer and the layer are as told",
    Flag.DEFENSE_SUSPECTED: "audit the plain update as well, to see what the treatment buys",
    Flag.ILL_CONDITIONED: "name the classes that are present, or audit an earlier round",
    Flag.NO_BIAS: "send the bias along if the client has one",
    Flag.NO_WEIGHT: "audit the weight's gradient, too, if the client sends it",
    Flag.TOTAL_DOES_NOT_FIT: "check the learning rate, the reduction, the label smoothing and the "
    "class weights",
    Flag.NOT_INTEGRAL: "check the batch size and the learning rate; audit a smaller batch",
    Flag.COUNTS_NOT_SURE: "take them as estimates, and go by the intervals where there are any; a "
    "smaller batch, the whole model or auxiliary data make them surer",
    Flag.SCALE_DOES_NOT_FIT: "tell the loss and the recipe as they are",
    Flag.SEVERAL_STEPS: "audit an update of one step as well, or give the attack auxiliary data",
    Flag.UNKNOWN_BATCH_SIZE: "tell the batch size",
    Flag.SET_NOT_SURE: "tell the batch size",
    Flag.SET_ONLY: "choose an attack that gives counts, such as ilrg",
    Flag.INVISIBLE_SAMPLES: "nothing: no attack on this gradient can tell them",
    Flag.INCOMPLETE: "give a longer time limit, or audit a smaller batch",
    Flag.ATTACKS_DISAGREE: "give a longer time limit, auxiliary data or an earlier round",
    Flag.TIME_LIMIT: "give a longer time limit",
    Flag.OUTSIDE_SIMULATIONS: "check the recipe, and give auxiliary data more like the client's",
    Flag.ADAPTIVE_OPTIMIZER: "audit with attack virtual, which trains by the same recipe, or audit "
    "a step of SGD as well",
    Flag.LOOKS_LIKE_SIGMOIDS: "tell the loss as it is",
    Flag.LOOKS_LIKE_SOFTMAX: "tell the loss as it is",
    Flag.BIAS_GIVES_NOTHING: "nothing: this is what the loss hides by itself",
    Flag.LABELS_DO_NOT_FIT: "score by the labels that were drawn in this round, repeats included, "
    "and check what is told of the training",
}
"""What to do about each flag; every flag has its own entry."""

OPTIONS: dict[Flag, str] = {
    Flag.SUMS_NOT_ZERO: "--loss, --optimizer, --head",
    Flag.TOTAL_DOES_NOT_FIT: "--learning-rate, --reduction, --label-smoothing, --class-weights",
    Flag.NOT_INTEGRAL: "--batch-size, --learning-rate",
    Flag.COUNTS_NOT_SURE: "--model, --auxiliary",
    Flag.SCALE_DOES_NOT_FIT: "--loss, --reduction, --learning-rate, --batch-size",
    Flag.SEVERAL_STEPS: "--model, --auxiliary",
    Flag.UNKNOWN_BATCH_SIZE: "--batch-size",
    Flag.SET_NOT_SURE: "--batch-size",
    Flag.SET_ONLY: "--attack ilrg",
    Flag.INCOMPLETE: "--time-limit",
    Flag.ATTACKS_DISAGREE: "--time-limit, --model, --auxiliary",
    Flag.TIME_LIMIT: "--time-limit",
    Flag.OUTSIDE_SIMULATIONS: "--model, --auxiliary",
    Flag.ADAPTIVE_OPTIMIZER: "--attack virtual, --model, --auxiliary",
    Flag.LOOKS_LIKE_SIGMOIDS: "--loss bce",
    Flag.LOOKS_LIKE_SOFTMAX: "--loss cross_entropy",
    Flag.LABELS_DO_NOT_FIT: "--labels",
}
"""What to type for it in `labelleak audit`, of the flags that an option is for."""


def told_flag(flag: Flag) -> dict[str, str]:
    """A flag as a record holds it: name, text, remedy, and the options for it if there are any.

    Examples:
        >>> told_flag(Flag.TIME_LIMIT)["options"]
        '--time-limit'
    """
    told = {"name": flag.name.lower(), "text": flag.text, "remedy": REMEDIES[flag]}
    return told | ({"options": OPTIONS[flag]} if flag in OPTIONS else {})
