"""`python -m convad_fx` is `convad-fx`."""

from convad_fx.cli import app

if __name__ == "__main__":
    app(prog_name="convad-fx")
