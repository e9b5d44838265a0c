"""The tables and figures of iLRG (Ma et al., ICLR 2023) as data, read by `labelleak.lab.paper`."""

NAMES = (
    "table1", "table3", "table4", "table5", "figure2", "figure3", "figure4", "figure5", "extras",
)  # fmt: skip
"""Names of the studies, each a TOML file in this folder."""
