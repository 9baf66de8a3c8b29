"""The command line: recordings and sentences in, files and pictures out."""
