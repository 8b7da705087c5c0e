"""Runs lm-evaluation-harness with ABMLL among its models: ``python -m abmll.cli.harness --model abmll ...``.

All its flags are lm_eval's. Of the --model_args, ``pretrained`` is what 'abmll adapt' or 'abmll train' wrote.
"""

import sys

from abmll.cli.console import complain, quiet_libraries
from abmll.common.errors import AbmllError


def main() -> int:
    """The harness's own command line. Returns the exit code."""
    quiet_libraries()
    try:
        from lm_eval.__main__ import cli_evaluate

        import abmll.cli.harness_model  # noqa: F401 (which makes the model known)

        cli_evaluate()
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "lm_eval":
            raise
        complain('error: harness: lm-eval is not installed; run: pip install "abmll[lm-eval]"')
        return 2
    except AbmllError as error:
        complain(f"error: {error}")
        return 2
    except ValueError as error:
        if not str(error).startswith("Tasks not found"):  # as the harness says it, under a traceback
            raise
        complain(f"error: {error}; name the export's folder with --include_path, and a task of it with --tasks")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
