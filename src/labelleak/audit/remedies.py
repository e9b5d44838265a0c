"""What to do about each flag of an audit, in one sentence."""

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
    Flag.COUNTS_NOT_SURE: "go by the intervals; a smaller batch, the whole model or auxiliary data "
    "make them narrower",
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
