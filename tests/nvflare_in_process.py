"""NVIDIA FLARE's client around the filter, in this process: its context, its tasks, its bytes."""

from collections import OrderedDict

import torch
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.event_type import EventType
from nvflare.apis.filter import FilterChainType, FilterContextKey
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.utils.decomposers import flare_decomposers
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.decomposers import numpy_decomposers
from nvflare.fuel.utils import fobs
from torch import nn

from labelleak.federated import train_locally
from labelleak.federated.nvflare import LeakageAudit
from labelleak.training import LocalTraining

CLASSES, SAMPLES, RATE, ROUND = 5, 12, 0.1, 3


flare_decomposers.register()
numpy_decomposers.register()


def made_update(**buffers):
    """A client's local step, of which iLRG restores all labels; tensors that stay as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = OrderedDict(
            body=nn.Linear(6, 16), norm=nn.BatchNorm1d(16), act=nn.ReLU(), fc=nn.Linear(16, CLASSES)
        )
        model = nn.Sequential(layers).eval()
    for name, value in buffers.items():
        model.register_buffer(name, value)
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    inputs = 1 + 0.02 * torch.randn(SAMPLES, 6, generator=generator)
    return train_locally(model, inputs, labels, LocalTraining(learning_rate=RATE), classes=CLASSES)


def made_site(folder, update, action="record", policy="", **settings):
    """The filter of a site: its policy and labels are files in a folder."""
    path = folder / "policy.toml"
    path.write_text(f'action = "{action}"\nattack = "ilrg"\nrecords = "{folder / "r"}"\n{policy}')
    labels = folder / "labels.txt"
    own = torch.arange(CLASSES).repeat_interleave(update.true_counts)
    labels.write_text(" ".join(map(str, own.tolist())))
    known = {"policy": str(path), "labels": str(labels)}
    training = {"learning_rate": RATE, "steps": 1, **settings.pop("training", {})}
    audit = LeakageAudit(**{**known, "training": training, **settings})
    audit.set_prop(FilterContextKey.CHAIN_TYPE, FilterChainType.TASK_RESULT_CHAIN)
    return audit


def context(task="train"):
    fl_ctx = FLContext()
    fl_ctx.set_prop(ReservedKey.IDENTITY_NAME, "site-1", private=False, sticky=True)
    fl_ctx.set_prop(ReservedKey.RUN_NUM, "job-7", private=False, sticky=True)
    fl_ctx.set_prop(FLContextKey.TASK_NAME, task, private=True, sticky=False)
    return fl_ctx


def arrays(state):
    return {name: value.numpy() for name, value in state.items()}


def change(update):
    return {name: value - update.before[name] for name, value in update.after.items()}


def task_of(update):
    data = DXO(DataKind.WEIGHTS, data=arrays(update.before)).to_shareable()
    data.set_header(AppConstants.CURRENT_ROUND, ROUND)
    return data


def start(audit, update, fl_ctx, data=None):
    """What FLARE's client does before it trains."""
    fl_ctx.set_prop(
        FLContextKey.TASK_DATA,
        task_of(update) if data is None else data,
        private=True,
        sticky=False,
    )
    audit.handle_event(EventType.BEFORE_TASK_EXECUTION, fl_ctx)
    fl_ctx.set_prop(FLContextKey.TASK_DATA, None, private=True, sticky=False)


def run(audit, update, result, data=None, task="train"):
    fl_ctx = context(task)
    start(audit, update, fl_ctx, data)
    return audit.process(result, fl_ctx)


def weights(update, **meta):
    return DXO(DataKind.WEIGHTS, data=arrays(update.after), meta=meta).to_shareable()


def wire(result):
    """The bytes that FLARE sends of a result."""
    return fobs.dumps(result)
