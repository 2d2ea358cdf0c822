"""Properties of the interpreter's ops: one drawn op at a time, against an oracle that shares no code with it."""
