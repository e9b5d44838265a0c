"""What an audit in a federation is written down under, and what becomes of a reply."""

from dataclasses import dataclass

from labelleak.federated.rounds import RoundRecord


@dataclass(frozen=True)
class Occasion:
    """What an audit is written down under.

    Attributes:
        round: Number of the round.
        client: Name of the client.
        label: Where in the client this is, ``"before clipping"`` say.
        framework: Name of the framework.
        epsilon: Of the differential privacy that the framework accounts for.
        delta: The same.
        aggregate_of: Number of clients that the update adds up.
        run: The framework's own name or number of the run.
        task: What was asked of the client, ``"train"`` or ``"evaluate"``.

    Examples:
        >>> Occasion(round=3, client="hospital 3", label="before clipping").round
        3
    """

    round: int
    client: str
    label: str = ""
    framework: str = ""
    epsilon: float | None = None
    delta: float | None = None
    aggregate_of: int | None = None
    run: str = ""
    task: str = ""


@dataclass(frozen=True)
class Decision:
    """What becomes of a reply.

    Attributes:
        record: What was written down.
        send: False: the policy refuses to send it.
        reason: Why, in one sentence.

    Examples:
        >>> import tempfile
        >>> from labelleak.federated import Auditor, Occasion, Policy
        >>> auditor = Auditor(Policy(action="refuse", records=tempfile.mkdtemp()))
        >>> decision = auditor.failed("the reply is empty", Occasion(round=1, client="a"))
        >>> decision.send, decision.record.verdict
        (False, 'failed')
    """

    record: RoundRecord
    send: bool
    reason: str
