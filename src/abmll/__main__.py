"""``python -m abmll``: the same as the command ``abmll``."""

from abmll.cli.main import entry

if __name__ == "__main__":
    raise SystemExit(entry())
