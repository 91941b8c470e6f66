"""The base models that a serving process holds, each once, whoever asks for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import replace

from editors.weights.serving import BASE_REF_VARIABLE
from editors.weights.swapping import SwappableBase
from pipeline.domain.rank_api import BaseSpec


class Bases:
    """Loads bases when they are first needed. Lineages on the same base share its memory.

    Args:
        device: where they go.
        most: how many are held; the one that was asked for longest ago goes. None for all.
    """

    def __init__(self, device: str = "cpu", *, most: int | None = None) -> None:
        self._device, self._most = device, most
        self._lock = threading.Lock()
        self._loaded: dict[tuple[str, str], SwappableBase] = {}

    def get(self, base: BaseSpec, inner_param_names: Sequence[str]) -> SwappableBase:
        """Return a base; where it lies on this machine may be said in $CORRIGENDA_BASE_REF.

        Raises:
            WrongBase: if the folder holds another model.
            Misconfigured: if it cannot be loaded.
        """
        # Two lineages may have the same weights under a digest of before and one of now; each is checked.
        key = (base.digest, base.config_digest or "")
        with self._lock:
            found = self._loaded.pop(key, None)
            while found is None and self._most is not None and len(self._loaded) >= self._most:
                del self._loaded[next(iter(self._loaded))]
            if found is None:
                here = replace(base, ref=os.environ.get(BASE_REF_VARIABLE) or base.ref)
                found = SwappableBase.load(here, inner_param_names=inner_param_names, device=self._device)
            self._loaded[key] = found
        return found
