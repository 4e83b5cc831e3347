"""Wrong schedulers, each with the rule that must catch it: the test of the conformance kit."""
