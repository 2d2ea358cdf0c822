"""Programs with a key/value cache, driven alike whichever form the cache has.

The cache is seen through slots: slot ``j`` holds what the token at position ``j`` left behind, and column ``j`` of a
mask is about slot ``j``. A program of the *past* form is given all slots but those of the new tokens, or the last so
many, and returns [past | new]; one of the *state* form keeps the slots in states and is told where the new tokens go.
Where a state is a ring, it holds the newest of those slots.
"""

from milopt.cachecolumns import column_order
from milopt.cachedrive.caches import Caches
from milopt.cachedrive.layout import CacheLayout, fitted
from milopt.cachedrive.recognition import recognise, recognise_flexible
from milopt.signature import WINDOW_KEY

__all__ = ["WINDOW_KEY", "CacheLayout", "Caches", "column_order", "fitted", "recognise", "recognise_flexible"]
