"""``abmll push``: a run or a posterior to a model hub."""

from pathlib import Path

from abmll.cli.console import print_result


def push(
    folder: Path,
    name: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    license: str | None = None,
    datasets: tuple[str, ...] = (),
    message: str | None = None,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Put a run or a posterior on a model hub, with a card; needs a token ('hf auth login', or HF_TOKEN).

    Of a run the newest checkpoint is put there. The hub is huggingface.co, or the one of HF_ENDPOINT.

    Args:
        folder: what 'abmll train', 'abmll adapt' or 'abmll classify --save' wrote
        name: where to put it, user/name; made where it is not there yet
        private: whether a new repository is private (default: as the hub's settings have it)
        revision: branch to put it on, made where it is not there yet (default: main)
        license: licence that the card names, such as apache-2.0 (default: none is named)
        datasets: hub's names of the data sets that were learned from, for the card
        message: commit message
    """
    from huggingface_hub.utils import disable_progress_bars

    from abmll.model.card import CardOptions
    from abmll.model.hub import push_folder

    if quiet:
        disable_progress_bars()
    options = CardOptions(license, datasets)
    url = push_folder(folder, name, private=private, revision=revision, commit_message=message, card=options)
    print_result({"folder": str(folder), "url": url}, {"pushed": str(folder), "to": url}, quiet, json)
