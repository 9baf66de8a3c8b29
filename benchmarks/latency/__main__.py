from benchmarks.latency.cli import main

main()
