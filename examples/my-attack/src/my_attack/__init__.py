"""An attack for labelleak in a package of its own."""
