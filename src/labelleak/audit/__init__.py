"""One audit: run it, record it, judge it."""

from labelleak.audit.labels import read_labels
from labelleak.audit.record import AuditRecord, read_record
from labelleak.audit.running import audit_observation
from labelleak.audit.verdict import Verdict

__all__ = ["AuditRecord", "Verdict", "audit_observation", "read_labels", "read_record"]
