"""Models, contestants, workers, tables and pictures: the base of all benchmarks."""
