"""Every rule and pass of milopt on thousands of programs."""
