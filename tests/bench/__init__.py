"""The benchmark: what mcvirt costs, beside what the least of programs costs that does the same with plain Pyro4."""
