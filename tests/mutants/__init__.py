"""Does a test fail when a pass is wrong? Every small change of every pass, and the tests that notice it."""
