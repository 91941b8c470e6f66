"""What a rank imports until it has loaded a small base: four seconds of a processor, for `tests.support.forked`."""

import sys
from importlib import import_module

from workers.rank.__main__ import NOT_FOR_RANKS

IMPORTED = (
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "workers.rank.command_loop",
)
HIDDEN = [name for name in NOT_FOR_RANKS if name not in sys.modules]

sys.modules.update(dict.fromkeys(HIDDEN))  # type: ignore[arg-type]
for name in IMPORTED:
    import_module(name)
for name in HIDDEN:
    del sys.modules[name]  # the other programs may want them
