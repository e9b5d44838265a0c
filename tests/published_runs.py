"""The published runs of a setting."""

from labelleak.lab.published import published


def find(source, **settings):
    """All runs of a table or figure whose attributes have the given values, in the files' order."""
    return [
        run
        for run in published().values()
        if run.source == source and all(getattr(run, name) == v for name, v in settings.items())
    ]
