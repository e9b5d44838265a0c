"""One audit: run it, record it, judge it."""

from labelleak.audit.ceiling import Ceiling, moment_ceiling
from labelleak.audit.expected import expected_score
from labelleak.audit.labels import read_labels
from labelleak.audit.record import AuditRecord, read_record
from labelleak.audit.remedies import REMEDIES
from labelleak.audit.rule import Measure, Rule, read_prior
from labelleak.audit.running import audit_observation
from labelleak.audit.verdict import Verdict

__all__ = [
    "REMEDIES",
    "AuditRecord",
    "Ceiling",
    "Measure",
    "Rule",
    "Verdict",
    "audit_observation",
    "expected_score",
    "moment_ceiling",
    "read_labels",
    "read_prior",
    "read_record",
]
