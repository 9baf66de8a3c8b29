"""Time and memory: of a clip, of growing sizes, of a stream."""
