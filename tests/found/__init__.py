"""coremltools' own passes under milopt's tester; what it finds is in docs/found.md."""
