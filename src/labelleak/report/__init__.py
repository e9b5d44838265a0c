"""Views of records: pages, charts, CSV files and words. No result is computed here.

The package itself imports nothing: `labelleak.report.text` needs neither jinja2 nor matplotlib.
"""
