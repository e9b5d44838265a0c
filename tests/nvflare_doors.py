"""Results of a FLARE task that wants more out than the policy allows, by what it tries."""

from datetime import datetime
from decimal import Decimal

import numpy as np
import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.apis.fl_constant import FLMetaKey, ReturnCode
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply
from nvflare.app_common.app_constant import AppConstants

from nvflare_in_process import arrays, weights

SECRET = "the-labels-are-0-0-2-5"
NUMBER = 1234.56789
BYTES = (SECRET.encode(), np.float32(NUMBER).tobytes(), np.float64(NUMBER).tobytes())
HIDDEN = np.full(5, NUMBER)


class Table(dict):
    """A table that FOBS sends with its attributes."""


class Kept(torch.Tensor):
    """A tensor of a type of its own."""


class Loud(float):
    """A number that is more than one."""


class Parcel:
    """An object that FOBS sends with its attributes."""

    def __init__(self):
        self.content = HIDDEN


class Reply(Shareable):
    """A result of a type of its own."""


def attributed(value, **attributes):
    for name, content in attributes.items():
        setattr(value, name, content)
    return value


def of_kind(kind, data, **meta):
    return DXO(kind, data=data, meta=meta).to_shareable()


def metrics(**values):
    return of_kind(DataKind.METRICS, values)


def with_meta(update, **meta):
    return weights(update, **meta)


def with_header(result, name, value):
    result.set_header(name, value)
    return result


def beside(result, name, value):
    result[name] = value
    return result


def model(update, **parts):
    return of_kind(DataKind.FL_MODEL, {"params": arrays(update.after), **parts})


def changed(update, **tensors):
    named = {name.replace("__", "."): value for name, value in tensors.items()}
    return of_kind(DataKind.WEIGHTS, {**arrays(update.after), **named})


def collection(**members):
    return of_kind(DataKind.COLLECTION, members)


def nested(depth):
    data = {"x": HIDDEN}
    for _ in range(depth):
        data = {"loss": data}
    return of_kind(DataKind.METRICS, data)


def endless():
    data = {}
    data["loss"] = data
    return of_kind(DataKind.METRICS, data)


def broken(content):
    return with_header(beside(Shareable(), "DXO", content), "__content_type__", "DXO")


def full(value, dtype):
    return np.full(5, value, dtype)


DOORS = {
    "metrics": lambda u: of_kind(DataKind.METRICS, arrays(u.after)),
    "statistics": lambda u: of_kind(DataKind.STATISTICS, arrays(u.after)),
    "analytics": lambda u: of_kind(DataKind.ANALYTIC, arrays(u.after)),
    "PSI": lambda u: of_kind(DataKind.PSI, arrays(u.after)),
    "the app's own kind": lambda u: of_kind(DataKind.APP_DEFINED, arrays(u.after)),
    "an unknown kind": lambda u: of_kind("mine", arrays(u.after)),
    "a text as the kind": lambda _: of_kind(SECRET, {"loss": 0.5}),
    "a list as data": lambda _: of_kind(DataKind.APP_DEFINED, [HIDDEN]),
    "bytes as data": lambda _: of_kind(DataKind.APP_DEFINED, SECRET.encode()),
    "a collection of metrics": lambda u: collection(a=DXO(DataKind.METRICS, arrays(u.after))),
    "a second object of weights": lambda u: collection(
        a=DXO(DataKind.WEIGHTS, arrays(u.after)), b=DXO(DataKind.WEIGHTS, arrays(u.after))
    ),
    "weights and metrics that are weights": lambda u: collection(
        a=DXO(DataKind.WEIGHTS, arrays(u.after)), b=DXO(DataKind.METRICS, {"loss": HIDDEN})
    ),
    "a collection in a collection": lambda _: collection(
        a=DXO(DataKind.COLLECTION, {"b": DXO(DataKind.METRICS, {"x": HIDDEN})})
    ),
    "meta of a member": lambda _: collection(a=DXO(DataKind.METRICS, {"loss": 1}, {"x": HIDDEN})),
    "a text as a member's name": lambda _: collection(
        **{SECRET + "!": DXO(DataKind.METRICS, {"loss": 0.5})}
    ),
    "an object in metrics": lambda u: metrics(loss=DXO(DataKind.WEIGHTS, arrays(u.after))),
    "tables in tables": lambda _: nested(3),
    "tables in tables in tables": lambda _: nested(30),
    "a table that holds itself": lambda _: endless(),
    "a list of numbers": lambda _: metrics(accuracy=HIDDEN.tolist()),
    "a list of lists": lambda _: metrics(loss=[HIDDEN.tolist()]),
    "a list of texts": lambda _: metrics(loss=[SECRET]),
    "many numbers": lambda _: metrics(**{f"m{number}_loss": NUMBER for number in range(200)}),
    "a number of many bits": lambda _: metrics(loss=int.from_bytes(SECRET.encode() * 20, "big")),
    "a number of another name": lambda _: metrics(labels_of_class_0=3),
    "a text as a name": lambda _: metrics(**{SECRET: 0.5}),
    "a text before a usual name": lambda _: metrics(**{f"{SECRET}/loss": 0.5}),
    "bytes as a name": lambda _: of_kind(DataKind.METRICS, {SECRET.encode(): 0.5}),
    "numbers as names": lambda _: of_kind(DataKind.METRICS, dict.fromkeys((1, 2, 5), 0.5)),
    "a text": lambda _: metrics(loss=SECRET),
    "a long text": lambda _: metrics(loss=SECRET * 100_000),
    "bytes": lambda _: metrics(loss=SECRET.encode()),
    "a set": lambda _: metrics(loss={SECRET}),
    "a date": lambda _: metrics(loss=datetime(2005, 5, 2)),
    "a complex number": lambda _: metrics(loss=complex(0, NUMBER)),
    "a number of another type": lambda _: metrics(loss=attributed(Loud(0.5), x=HIDDEN)),
    "a decimal number": lambda _: metrics(loss=Decimal("0." + "1" * 500)),
    "an array of one number": lambda _: metrics(loss=np.array(NUMBER)),
    "a tensor": lambda _: metrics(loss=torch.full((5,), NUMBER)),
    "an object with attributes": lambda _: metrics(loss=Parcel()),
    "a table with attributes": lambda _: metrics(loss=attributed(Table(), x=HIDDEN)),
    "nothing under a text": lambda _: metrics(**{SECRET: None}),
    "empty tables under texts": lambda _: of_kind(
        DataKind.METRICS, {f"{SECRET[:12]}{number}": {} for number in range(50)}
    ),
    "an array in a header": lambda u: with_header(weights(u), "x", HIDDEN),
    "a text in a header": lambda u: with_header(weights(u), "x", SECRET),
    "a header alone": lambda _: with_header(Shareable(), "x", HIDDEN),
    "a header of metrics": lambda _: with_header(metrics(loss=0.5), "x", HIDDEN),
    "the round's number": lambda u: with_header(weights(u), AppConstants.CURRENT_ROUND, SECRET),
    "a cookie that the server did not set": lambda u: with_header(
        weights(u), ReservedHeaderKey.COOKIE_JAR, {"x": SECRET}
    ),
    "peer properties": lambda u: with_header(
        weights(u), ReservedHeaderKey.PEER_PROPS, {"x": HIDDEN}
    ),
    "the return code": lambda _: make_reply(SECRET),
    "the type of the content": lambda u: with_header(
        weights(u), ReservedHeaderKey.CONTENT_TYPE, SECRET
    ),
    "an error's header": lambda _: make_reply(
        ReturnCode.EXECUTION_EXCEPTION, {ReservedHeaderKey.ERROR: SECRET}
    ),
    "headers that are a list": lambda _: beside(Shareable(), ReservedHeaderKey.HEADERS, [HIDDEN]),
    "an array in meta": lambda u: with_meta(u, x=HIDDEN),
    "a text in meta": lambda u: with_meta(u, x=SECRET),
    "metrics in meta that are weights": lambda u: with_meta(
        u, **{MetaKey.INITIAL_METRICS: arrays(u.after)}
    ),
    "the number of steps": lambda u: with_meta(
        u, **{MetaKey.NUM_STEPS_CURRENT_ROUND: HIDDEN.tolist()}
    ),
    "the filters' history": lambda u: with_meta(u, **{MetaKey.FILTER_HISTORY: [SECRET]}),
    "the algorithm": lambda u: with_meta(u, **{MetaKey.PROCESSED_ALGORITHM: SECRET}),
    "another job's number": lambda u: with_meta(u, **{FLMetaKey.JOB_ID: SECRET}),
    "meta that is a list": lambda u: broken(
        {"kind": "WEIGHTS", "data": arrays(u.after), "meta": [HIDDEN]}
    ),
    "more in an object": lambda u: broken(
        {"kind": "WEIGHTS", "data": arrays(u.after), "meta": {}, "x": HIDDEN}
    ),
    "a second object": lambda u: beside(weights(u), "x", HIDDEN),
    "a number beside the object": lambda u: beside(weights(u), "x", 1),
    "no object": lambda u: Shareable({"weights": arrays(u.after)}),
    "weights in an error": lambda u: with_header(
        weights(u), ReservedHeaderKey.RC, ReturnCode.EXECUTION_EXCEPTION
    ),
    "an optimizer's state": lambda u: model(u, optimizer_params={"x": HIDDEN}),
    "a model's metrics": lambda u: model(u, metrics={"loss": HIDDEN}),
    "a model's meta": lambda u: model(u, meta={"x": SECRET}),
    "a model's type": lambda u: model(u, params_type=SECRET),
    "a model of more": lambda u: model(u, x=HIDDEN),
    "a model of metrics alone": lambda _: of_kind(DataKind.FL_MODEL, {"metrics": {"x": HIDDEN}}),
    "an unknown tensor": lambda u: changed(u, more=HIDDEN),
    "a text as a tensor's name": lambda u: changed(u, **{SECRET: np.zeros(1)}),
    "another shape": lambda u: changed(u, fc__bias=np.full(50, NUMBER)),
    "a list of numbers as weights": lambda u: changed(u, fc__bias=HIDDEN.tolist()),
    "tables as weights": lambda u: changed(u, fc__bias={"x": HIDDEN}),
    "bytes as weights": lambda u: changed(u, fc__bias=SECRET.encode()),
    "objects as weights": lambda u: changed(u, fc__bias=np.array([Parcel()] * 5)),
    "texts as weights": lambda u: changed(u, fc__bias=np.array([SECRET] * 5)),
    "a tensor of another type": lambda u: changed(
        u, fc__bias=attributed(torch.zeros(5).as_subclass(Kept), x=HIDDEN)
    ),
    "integers as weights": lambda u: changed(u, fc__bias=full(1150963840, np.int32)),
    "complex weights": lambda u: changed(u, fc__bias=full(complex(0, NUMBER), np.complex64)),
    "payload of NaN": lambda u: changed(u, fc__bias=full(0x7FC01234, np.int32).view(np.float32)),
    "a counter": lambda u: changed(u, norm__num_batches_tracked=np.array(2**40)),
    "integers that encode numbers": lambda u: changed(u, ids=np.full(4, 1150963840)),
    "truth values that encode labels": lambda u: changed(
        u, mask=np.array([True, False, False, True])
    ),
    "a change of integers": lambda u: of_kind(
        DataKind.WEIGHT_DIFF, {**arrays(change_of_floats(u)), "ids": np.full(4, 1150963840)}
    ),
    "a table of weights with attributes": lambda u: of_kind(
        DataKind.WEIGHTS, attributed(Table(arrays(u.after)), x=HIDDEN)
    ),
    "a result of another type": lambda u: attributed(Reply(weights(u)), x=HIDDEN),
    "no result": lambda _: {"weights": HIDDEN},
    "nothing": lambda _: None,
}


def change_of_floats(update):
    return {
        name: value - update.before[name] if value.is_floating_point() else value * 0
        for name, value in update.after.items()
    }
