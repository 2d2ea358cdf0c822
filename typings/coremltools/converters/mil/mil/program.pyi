from typing import Any

Placeholder: Any
StateTensorPlaceholder: Any
Symbol: Any
k_num_internal_syms: int
k_used_symbols: Any
