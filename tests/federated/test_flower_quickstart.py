"""One line more in Flower's own PyTorch quick-start: it is audited, and nothing else changes.

The app is the quick-start's with the embedded digits as its data: written out here, and where the
installed Flower still ships it as a template, taken from there.
"""

import random
import sys
from collections import OrderedDict
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("flwr")

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from flower_in_process import InProcess, Site, context
from labelleak.federated import Policy, read_rounds
from labelleak.federated.flower import AuditStrategy, LeakageAudit
from labelleak.lab.datasets import load
from labelleak.training import LocalTraining

# The run-time checks of types draw from Python's generator; outside the tests nothing does.
pytestmark = pytest.mark.usefixtures("unchecked")

SITES, BATCH = 3, 16
TEMPLATES = Path(find_spec("flwr").origin).parent / "cli/new/templates/app/code"


class Net(nn.Module):
    """The quick-start's network, for pictures of 28 x 28 in gray; with BatchNorm besides."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(1, 6, 5),
                norm=nn.BatchNorm2d(6),
                relu1=nn.ReLU(),
                pool1=nn.MaxPool2d(2, 2),
                conv2=nn.Conv2d(6, 16, 5),
                relu2=nn.ReLU(),
                pool2=nn.MaxPool2d(2, 2),
                flat=nn.Flatten(),
                fc1=nn.Linear(16 * 4 * 4, 120),
                relu3=nn.ReLU(),
                fc2=nn.Linear(120, 84),
                relu4=nn.ReLU(),
            )
        )
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        return self.fc3(self.body(x))


def load_data(partition_id, num_partitions, batch_size=BATCH):
    """80 % of a site's digits to train with, shuffled by PyTorch's own generator; and the rest."""
    inputs, labels = load("mnist-sample").batch(torch.arange(partition_id, 120, num_partitions))
    digits = [{"img": x, "label": y} for x, y in zip(inputs, labels, strict=True)]
    train, test = digits[:32], digits[32:]
    shuffled = torch.utils.data.DataLoader(train, batch_size=batch_size, shuffle=True)
    return shuffled, torch.utils.data.DataLoader(test, batch_size=batch_size)


def train_net(net, loader, epochs, lr, device):
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.to(device).train()
    total = 0.0
    for _ in range(epochs):
        for batch in loader:
            optimizer.zero_grad()
            loss = nn.CrossEntropyLoss()(net(batch["img"].to(device)), batch["label"].to(device))
            loss.backward()
            optimizer.step()
            total += loss.item()
    return total / (epochs * len(loader))


def quickstart(*mods):
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(msg, context):
        model = Net()
        model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
        sites = context.node_config["partition-id"], context.node_config["num-partitions"]
        loader, _ = load_data(*sites, context.run_config["batch-size"])
        epochs, lr = context.run_config["local-epochs"], msg.content["config"]["lr"]
        loss = train_net(model, loader, epochs, lr, torch.device("cpu"))
        metrics = {"train_loss": loss, "num-examples": len(loader.dataset)}
        records = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord(metrics)}
        return Message(content=RecordDict(records), reply_to=msg)

    @app.evaluate()
    def evaluate(msg, context):
        model = Net()
        model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
        sites = context.node_config["partition-id"], context.node_config["num-partitions"]
        _, loader = load_data(*sites)
        with torch.no_grad():
            right = sum(
                int((model(batch["img"]).argmax(1) == batch["label"]).sum()) for batch in loader
            )
        metrics = {"eval_acc": right / len(loader.dataset), "num-examples": len(loader.dataset)}
        return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)

    return app


def run(app, wrap=lambda strategy: strategy, net=Net):
    """Three rounds with one seed: every weight's bytes after each, and all metrics."""
    torch.manual_seed(0)
    random.seed(0)
    node_configs = [{"partition-id": site, "num-partitions": SITES} for site in range(SITES)]
    sites = {
        100 + site: Site(
            app, context(100 + site, config, local_epochs=1, batch_size=BATCH, lr=0.01)
        )
        for site, config in enumerate(node_configs)
    }
    seen = []
    result = wrap(FedAvg()).start(
        InProcess(sites),
        ArrayRecord(net().state_dict()),
        num_rounds=3,
        train_config=ConfigRecord({"lr": 0.01}),
        evaluate_fn=lambda _, arrays: seen.append([a.data for a in arrays.values()]),
    )
    metrics = result.train_metrics_clientapp, result.evaluate_metrics_clientapp
    return seen, metrics, torch.get_rng_state().tolist(), random.getstate()


def test_one_line_audits_it_and_changes_nothing_else(tmp_path):
    audit = LeakageAudit(
        Policy(records=str(tmp_path / "site")), training=LocalTraining(momentum=0.9)
    )
    assert run(quickstart(audit)) == run(quickstart())
    records = read_rounds(tmp_path / "site")
    assert len(records) == 3 * SITES
    assert {record["error"] for record in records} == {None}
    assert all(sum(record["audit"]["counts"]) == 32 for record in records)


def test_a_wrapped_strategy_changes_nothing_either(tmp_path):
    def wrap(strategy):
        policy = Policy(records=str(tmp_path / "server"))
        return AuditStrategy(strategy, policy, run_config={"batch-size": BATCH})

    assert run(quickstart(), wrap) == run(quickstart())
    assert len(read_rounds(tmp_path / "server")) == 3 * SITES


def rendered(name, tmp_path, **names):
    text = (TEMPLATES / f"{name}.pytorch.py.tpl").read_text()
    for key, value in {"framework_str": "PyTorch", "project_name": "app", **names}.items():
        text = text.replace(f"${key}", value)
    path = tmp_path / f"{name}.py"
    path.write_text(text)
    return path


def loaded(path):
    spec = spec_from_file_location(f"quickstart_{path.stem}", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not TEMPLATES.exists(), reason="newer Flowers fetch the template")
def test_the_template_with_one_line_more(tmp_path, monkeypatch):
    task = SimpleNamespace(
        Net=Net, load_data=load_data, train=train_net, test=lambda *_: (0.0, 0.0)
    )
    monkeypatch.setitem(sys.modules, "app", SimpleNamespace(task=task))
    monkeypatch.setitem(sys.modules, "app.task", task)
    path = rendered("client", tmp_path, import_name="app")
    plain = run(loaded(path).app)
    line = f"LeakageAudit(records_only, training=LocalTraining(batch_size={BATCH}, momentum=0.9))"
    text = path.read_text()
    assert text.count("app = ClientApp()\n") == 1
    path.write_text(
        "from labelleak import LocalTraining\n"
        "from labelleak.federated import Policy\n"
        "from labelleak.federated.flower import LeakageAudit\n"
        f"records_only = Policy('record', records={str(tmp_path / 'r')!r})\n"
        + text.replace("app = ClientApp()\n", f"app = ClientApp(mods=[{line}])\n")
    )
    assert run(loaded(path).app) == plain
    assert {record["error"] for record in read_rounds(tmp_path / "r")} == {None}
