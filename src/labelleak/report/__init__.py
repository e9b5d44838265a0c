"""Views of records: pages, charts, tables and words. No result is computed here.

Import the module that is meant: `text` needs nothing, pages need jinja2, charts matplotlib.
"""
