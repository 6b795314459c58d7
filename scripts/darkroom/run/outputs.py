"""What is made of all shards together, under names that stay: tables, exports, plots, the gallery's index.

Their names cannot say what they were made for, so each has a manifest of its own, `.darkroom/made/{name}.manifest`.
"""

import os
from dataclasses import dataclass

from darkroom.store.manifest import Manifest, combined, read_manifest


@dataclass(frozen=True)
class Output:
    """Files that one job makes of the whole set.

    name: of the job's manifest. files: as the rules name them. digest: what they are made for. inputs: the manifests of what
    they are made from, in order. made: the path of their own manifest.
    """

    name: str
    files: list[str]
    digest: str
    inputs: list[str]
    made: str

    def manifest(self, records: int = 0) -> Manifest:
        """The manifest for files that are written now. Equal digest and inputs give equal bytes, so `content` is a hash of these."""
        made_from = [self.made_from()]
        return Manifest(
            digest=self.digest,
            records=records,
            failed=0,
            content=combined([self.digest, *made_from]),
            made_from=made_from,
        )

    def is_made(self) -> bool:
        """Whether the files are there, made for what is wanted now."""
        manifest = read_manifest(self.made)
        return manifest is not None and manifest["digest"] == self.digest and all(map(os.path.exists, self.files))

    def made_from(self) -> str:
        """One hash of the content of all inputs as they are now; of one that is missing, nothing."""
        found = (read_manifest(path) for path in self.inputs)
        return combined(manifest["content"] if manifest else "" for manifest in found)
