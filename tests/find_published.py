"""The published runs of a setting."""

from labelleak.lab.published_figures import published_runs


def find(source, **settings):
    """All runs of a table or figure whose attributes have the given values, in the files' order."""
    return [
        run
        for run in published_runs().values()
        if run.source == source and all(getattr(run, name) == v for name, v in settings.items())
    ]
