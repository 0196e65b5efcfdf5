"""sppo push: uploads the trained policy of a run to the hub, with a model card written from the run.

    sppo push outputs/first --repo me/my-model --dry-run     # writes the card, shows what would be uploaded
    sppo push outputs/first --repo me/my-model --private

The card (README.md) and its picture are written into the run's hf/ folder; a card that you wrote yourself is kept
unless --overwrite-card is given. The token is that of `hf auth login` or of HF_TOKEN.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from sppo_megatron.cluster.exit_codes import exit_code_of
from sppo_megatron.data.atomic_file import write_atomically
from sppo_megatron.errors import ConfigError, TrainingError
from sppo_report.model_card import PICTURE, make_card
from sppo_report.run_folder import read_run

CARD = "README.md"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="sppo push", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the output_dir of a run that has ended: its hf/ is uploaded")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="is made if it doesn't exist")
    parser.add_argument("--revision", help="a branch (default: the main one)")
    parser.add_argument("--private", action="store_true", help="if the repository is made now")
    parser.add_argument("--dry-run", action="store_true", help="write the card and show the files; upload nothing")
    parser.add_argument("--overwrite-card", action="store_true", help="also if hf/README.md is there")
    options = parser.parse_args(arguments)
    return exit_code_of("push", lambda: _push(options))


def _push(options: argparse.Namespace) -> int:
    folder = options.run / "hf"
    if not (folder / "config.json").exists():
        raise ConfigError(f"{folder} holds no model: give the output_dir of a run that has ended")
    if options.repo.count("/") != 1:
        raise ConfigError(f"--repo {options.repo} must be OWNER/NAME")
    if options.overwrite_card or not (folder / CARD).exists():
        card = make_card(read_run(options.run), options.repo.rpartition("/")[2])
        write_atomically(folder / CARD, card.text)
        write_atomically(folder / PICTURE, card.picture)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in files:
        print(f"{path.stat().st_size:>14,}  {path.name}")
    if options.dry_run:
        print(f"nothing was uploaded; without --dry-run this goes to {options.repo}")
        return 0
    _upload(folder, options)
    return 0


def _upload(folder: Path, options: argparse.Namespace) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi(library_name="sppo_megatron")
    try:
        api.create_repo(options.repo, private=options.private, exist_ok=True)
        done = api.upload_folder(repo_id=options.repo, folder_path=folder, revision=options.revision)
    except LocalTokenNotFoundError as error:
        raise ConfigError("no token: run `hf auth login`, or set HF_TOKEN") from error
    except Exception as error:
        if isinstance(error, HfHubHTTPError) or any(isinstance(cause, OSError) for cause in _causes(error)):
            raise TrainingError(f"the upload to {options.repo} failed: {error}; it may be tried again") from error
        raise
    print(done)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came from. The HTTP library's errors are classes of its own over the system's."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
