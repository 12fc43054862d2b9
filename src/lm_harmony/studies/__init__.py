"""Many runs: models x benchmarks x seeds, carried out so that nothing is lost."""
