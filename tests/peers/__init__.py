"""coremltools' own tests, with the predictions that they leave out on Linux answered by milopt."""
