"""Import Box2D before any test does, with its warnings off.

Its SWIG types raise DeprecationWarnings while the extension module is created; turned into errors
there (as pytest is told to), they end the process with a segmentation fault.
"""

import warnings
from contextlib import suppress

with warnings.catch_warnings(), suppress(ImportError):
    warnings.simplefilter("ignore")
    import Box2D  # noqa: F401 - imported for its effect
