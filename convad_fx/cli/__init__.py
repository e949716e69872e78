"""The command line `convad-fx`: one module per command, loaded when the command is used.

Results go to stdout, everything else to stderr. Exit codes: 0 success; 1 a negative or partial
result (findings, an unreadable image); 2 no result, with the reason on stderr.
"""

from convad_fx.cli.app import app

__all__ = ["app"]
