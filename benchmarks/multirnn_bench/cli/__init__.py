"""The commands `multirnn bench` and `multirnn doctor`, a file each; `multirnn.cli` imports them on demand."""
