"""Views of records: pages, plots and tables. No result is computed here."""

from labelleak.report.audit import audit_page
from labelleak.report.experiments import study_page, summary_csv
from labelleak.report.rounds import rounds_page

__all__ = ["audit_page", "rounds_page", "study_page", "summary_csv"]
