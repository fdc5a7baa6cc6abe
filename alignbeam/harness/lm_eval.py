"""``python -m alignbeam.harness.lm_eval``: the lm_eval command line, with our model in its list.

lm-eval looks for models in its own package only, so its command has to be started from here.
"""

from __future__ import annotations

from typing import Final

from alignbeam.errors import how_to_install

_MODEL: Final = "alignbeam.harness.lm_eval_model:AlignBeamLM"


def register() -> None:
    """Put ``alignbeam`` among lm-eval's models; its module is loaded when it is asked for.

    Raises
    ------
    ImportError
        lm-eval is not installed.
    """
    try:
        from lm_eval import models  # noqa: F401  fills the registry that ours joins
        from lm_eval.api.registry import model_registry
    except ImportError as error:
        raise ImportError(
            f"lm-eval cannot be loaded ({error}): {how_to_install('lm-eval')}"
        ) from error
    if "alignbeam" not in model_registry:
        model_registry.register("alignbeam", target=_MODEL)


def main() -> None:
    """Run lm-eval's command line."""
    try:
        register()
    except ImportError as error:
        raise SystemExit(f"alignbeam: error: {error}") from error
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
