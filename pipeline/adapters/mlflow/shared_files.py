"""Files that several versions of one lineage are loaded from, kept once in MLflow under their SHA-256.

An accumulator is tens of megabytes and stands under up to 31 versions; each version's manifest names it by its URI.
The files lie in a run of their own, so deleting another version, or its run, breaks nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.domain.errors import IntegrityBroken
from pipeline.domain.formats.canonical import sha256_file
from pipeline.domain.rank_api import FileRef
from pipeline.domain.scratch import scratch_folder

SHARED_TAG = "corrigenda.shared_files"
"""Marks the run that holds the files."""
FOLDER = "files"


def keep_files(
    client: Any, experiment_id: str, group: str, files: Sequence[FileRef], *, is_again: bool = False
) -> Mapping[str, str]:
    """Upload those files that are not there yet; return digest -> URI of each.

    May be repeated after a kill at any point: a file counts as uploaded when one of its name and size is there.

    Args:
        client: an `MlflowClient`.
        experiment_id: the experiment of the lineage.
        group: folder inside the run; short groups keep the listing short.
        files: what to keep.
        is_again: whether a version with these files is there already and cannot be used: then what is there is read,
            and put right where it is not what it was.

    Raises:
        IntegrityBroken: if a file does not have its digest.
    """
    if not files:
        return {}
    run_id, folder = _run(client, experiment_id), f"{FOLDER}/{group}"
    there = {found.path: found.file_size for found in client.list_artifacts(run_id, folder)}
    uris = {}
    for file in files:
        name = f"{file.digest}{Path(file.path).suffix}"
        is_there = there.get(f"{folder}/{name}") == Path(file.path).stat().st_size
        if not is_there or (is_again and _digest_of(client, run_id, f"{folder}/{name}") != file.digest):
            _upload(client, run_id, folder, name, file)
        uris[file.digest] = f"runs:/{run_id}/{folder}/{name}"
    return uris


def _run(client: Any, experiment_id: str) -> str:
    """Return the oldest run of shared files; two that are made at once do no harm, a manifest names the run."""
    wanted = f"tags.`{SHARED_TAG}` = 'true'"
    found = client.search_runs([experiment_id], wanted, max_results=1, order_by=["attributes.start_time ASC"])
    if found:
        return str(found[0].info.run_id)
    run_id = str(client.create_run(experiment_id, run_name="shared files", tags={SHARED_TAG: "true"}).info.run_id)
    client.update_run(run_id, status="FINISHED")
    return run_id


def _digest_of(client: Any, run_id: str, path: str) -> str:
    with scratch_folder("check") as folder:
        return sha256_file(Path(client.download_artifacts(run_id, path, str(folder))))


def _upload(client: Any, run_id: str, folder: str, name: str, file: FileRef) -> None:
    found = sha256_file(Path(file.path))
    if found != file.digest:
        raise IntegrityBroken(f"expected {file.path} to have the digest {file.digest[:12]}, got {found[:12]}")
    # MLflow keeps a file under the name that it has here.
    with scratch_folder("upload") as staging:
        renamed = Path(staging, name)
        renamed.symlink_to(Path(file.path).absolute())
        client.log_artifact(run_id, str(renamed), artifact_path=folder)
